"use strict";
(() => {
  const tip = document.getElementById("tip");
  const boxes = [...document.querySelectorAll(".box")];
  const drawings = [...document.querySelectorAll(".timeline")];

  // The native tooltip serves pages without scripts; here the label takes over.
  for (const box of boxes) box.querySelector("title").remove();
  for (const drawing of drawings) drawing.querySelector(".box")?.setAttribute("tabindex", "0");

  function show(box, x, y) {
    hide();
    box.classList.add("shown");
    const same = box.dataset.mb === undefined ? [] : boxes.filter((b) => b.dataset.mb === box.dataset.mb);
    for (const other of [box, ...same]) other.classList.add("same");
    for (const drawing of drawings) drawing.classList.add("dimmed");
    tip.textContent = box.getAttribute("aria-label");
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - width - 8))}px`;
    tip.style.top = `${y + 18 + height > innerHeight ? y - height - 10 : y + 18}px`;
  }

  function hide() {
    tip.hidden = true;
    for (const box of boxes) box.classList.remove("shown", "same");
    for (const drawing of drawings) drawing.classList.remove("dimmed");
  }

  function showFocused(box) {
    const place = box.getBoundingClientRect();
    show(box, place.left, place.bottom - 10);
  }

  // Left and right go along a rank, up and down to the action of the next rank at that time.
  function neighbour(box, key) {
    const all = [...box.closest("svg").querySelectorAll(".box")];
    const rank = Number(box.dataset.rank);
    const left = (b) => b.getBoundingClientRect().left;
    const row = (r) => all.filter((b) => Number(b.dataset.rank) === r).sort((a, b) => left(a) - left(b));
    const own = row(rank);
    if (key === "ArrowRight") return own[own.indexOf(box) + 1];
    if (key === "ArrowLeft") return own[own.indexOf(box) - 1];
    const step = { ArrowDown: 1, ArrowUp: -1 }[key];
    const distance = (b) => Math.abs(left(b) - left(box));
    return step && row(rank + step).sort((a, b) => distance(a) - distance(b))[0];
  }

  for (const drawing of drawings) {
    drawing.addEventListener("pointermove", (event) => {
      const box = event.target.closest(".box");
      if (box) show(box, event.clientX, event.clientY); else hide();
    });
    drawing.addEventListener("pointerleave", hide);
    drawing.addEventListener("focusin", (event) => showFocused(event.target.closest(".box")));
    drawing.addEventListener("focusout", hide);
    drawing.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      const box = event.target.closest(".box");
      const next = box && event.key.startsWith("Arrow") && neighbour(box, event.key);
      if (!next) return;
      event.preventDefault();
      box.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }

  // A link may name an action: report.html#measured-1F3.
  function showLinked() {
    const box = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (box?.classList.contains("box")) showFocused(box);
  }
  addEventListener("hashchange", showLinked);
  showLinked();

  // Stretches time only: what lies in the plot moves apart, what is beside it moves along.
  function stretch(svg, level) {
    const [, , width, height] = (svg.dataset.box ??= svg.getAttribute("viewBox")).split(" ").map(Number);
    const left = Number(svg.dataset.left), right = width - Number(svg.dataset.right);
    const moved = (x) => (x < left ? x : left + (Math.min(x, right) - left) * level + Math.max(x - right, 0));
    svg.setAttribute("viewBox", `0 0 ${moved(width)} ${height}`);
    svg.style.width = `${(100 * moved(width)) / width}%`;
    for (const part of svg.querySelectorAll("rect, line, text")) {
      for (const name of ["x", "x1", "x2"]) {
        if (!part.hasAttribute(name)) continue;
        part[`at_${name}`] ??= Number(part.getAttribute(name));
        part.setAttribute(name, moved(part[`at_${name}`]));
      }
      if (part.hasAttribute("width")) {
        part.at_width ??= Number(part.getAttribute("width"));
        part.setAttribute("width", part.at_width * level);
      }
    }
    for (const path of svg.querySelectorAll("path")) {
      path.setAttribute("transform", `translate(${left * (1 - level)} 0) scale(${level} 1)`);
    }
  }

  // All drawings share one time axis, so they zoom and scroll together.
  const panes = [...document.querySelectorAll(".scroll.clock")];
  const zoom = document.getElementById("zoom");
  for (const pane of panes) {
    pane.addEventListener("scroll", () => {
      for (const other of panes) other.scrollLeft = pane.scrollLeft;
    });
  }
  function setZoom(level) {
    for (const pane of panes) {
      pane.classList.toggle("zoomed", level > 1);
      stretch(pane.querySelector("svg"), level);
    }
    zoom.textContent = `Zoom ${level}×`;
    zoom.dataset.level = level;
  }
  if (zoom) {
    zoom.hidden = false;
    zoom.addEventListener("click", () => setZoom({ 1: 2, 2: 4, 4: 1 }[zoom.dataset.level]));
  }

  const toggle = document.getElementById("scheme");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const root = document.documentElement;
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const current = root.style.colorScheme || system;
    root.style.colorScheme = current === "dark" ? "light" : "dark";
  });
})();
