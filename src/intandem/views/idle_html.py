"""Where the idle time of each rank went: a bar per rank, and the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.views import units
from intandem.views.clock import GAP, LEFT, ROW, WIDTH
from intandem.views.colors import ink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.ir import Timeline
    from intandem.ir.analysis import IdleParts

RIGHT = 12


@dataclass(frozen=True, slots=True)
class _Look:
    """How a part is named and explained, and the colour of its bar."""

    name: str
    color: str
    meaning: str


LOOKS = {
    "fill_s": _Look("fill", "#56B4E9", "the schedule's wait before the first backward"),
    "drain_s": _Look("drain", "#3A7CA5", "the schedule's wait after the last forward"),
    "order_s": _Look("order", "#7F6BB0", "the schedule's waits in between"),
    "imbalance_s": _Look("imbalance", "#B8336A", "waits for stages that take longer than others"),
    "knock_on_s": _Look(
        "knock-on", "#E8A2BE", "waits for micro-batches that differ, and what others' delays shift"
    ),
    "transfer_s": _Look("transfer", "#F0E442", "messages under way"),
    "overhead_s": _Look("overhead", "#8D6E63", "all was there, and nothing ran"),
    "optimizer_s": _Look("optimizer", "#D55E00", "updates, until the last rank has updated"),
}
"""By field of ``IdleParts``, in the order of bars and columns."""

_BUSY = "#9AA5B1"


def idle_section(idle: Sequence[IdleParts], timeline: Timeline, name: str) -> str:
    """Return the section's HTML; empty without parts.

    Args:
        idle: by rank.
        timeline: that they are of.
        name: ``measured`` or ``planned``.
    """
    if not idle:
        return ""
    busy_s = [timeline.busy_of_rank_s(rank) for rank in range(len(idle))]
    seen = [key for key in LOOKS if any(getattr(parts, key) > 0 for parts in idle)]
    meanings = "".join(
        f"<div><dt>{LOOKS[key].name}</dt><dd>{LOOKS[key].meaning}</dd></div>" for key in seen
    )
    return "\n".join(
        [
            "<section>",
            f"<h2>Where the time went <small>of each rank, {name}; the parts add up to the idle "
            "time</small></h2>",
            f'<div class="scroll">{_bars(idle, busy_s, seen)}</div>',
            f'<div class="scroll">{_table(idle, busy_s, seen)}</div>',
            f'<dl class="meanings">{meanings}</dl>',
            "</section>",
        ]
    )


def _bars(idle: Sequence[IdleParts], busy_s: Sequence[float], seen: Sequence[str]) -> str:
    longest_s = max(parts.total_s + busy for parts, busy in zip(idle, busy_s, strict=True)) or 1.0
    height = len(idle) * (ROW + GAP)
    rows = "\n".join(
        _row(rank, parts, busy, seen, (WIDTH - LEFT - RIGHT) / longest_s)
        for rank, (parts, busy) in enumerate(zip(idle, busy_s, strict=True))
    )
    head = f'<svg class="parts" viewBox="0 0 {WIDTH} {height}" role="img"'
    return f'{head} aria-label="shares of each rank\'s time; the table below has them">{rows}</svg>'


def _row(
    rank: int, parts: IdleParts, busy_s: float, seen: Sequence[str], width_per_s: float
) -> str:
    y, x = rank * (ROW + GAP), float(LEFT)
    drawn = [f'<text class="rank" x="{LEFT - 10}" y="{y + ROW / 2 + 4:g}">rank {rank}</text>']
    bars = [("computing", _BUSY, busy_s)]
    bars += [(LOOKS[key].name, LOOKS[key].color, getattr(parts, key)) for key in seen]
    for name, color, seconds in bars:
        width = seconds * width_per_s
        if width >= 0.3:
            drawn.append(_bar(name, color, seconds, (x, y, width)))
        x += width
    return "".join(drawn)


def _bar(name: str, color: str, seconds: float, place: tuple[float, float, float]) -> str:
    x, y, width = place
    text = ""
    if width >= 8 + 6.2 * len(name):
        where = f'x="{x + width / 2:.1f}" y="{y + ROW / 2 + 4:g}"'
        text = f'<text class="part" style="fill:{ink(color)}" {where}>{name}</text>'
    rect = f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW}" fill="{color}"/>'
    return f"<g><title>{name} {units.duration(seconds)}</title>{rect}{text}</g>"


def _table(idle: Sequence[IdleParts], busy_s: Sequence[float], seen: Sequence[str]) -> str:
    names = ("rank", "computing", "idle", *(LOOKS[key].name for key in seen))
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = (
        "".join(f"<td>{cell}</td>" for cell in _cells(rank, parts, busy, seen))
        for rank, (parts, busy) in enumerate(zip(idle, busy_s, strict=True))
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _cells(rank: int, parts: IdleParts, busy_s: float, seen: Sequence[str]) -> Iterator[str]:
    whole_s = parts.total_s + busy_s or 1.0
    yield str(rank)
    for seconds in (busy_s, parts.total_s, *(getattr(parts, key) for key in seen)):
        share = f"<small>{units.share(seconds / whole_s)}</small>"
        yield f"{units.duration(seconds)} {share}" if seconds > 0 else "0"
