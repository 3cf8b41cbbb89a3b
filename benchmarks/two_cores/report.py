"""Tables and a plot of what was measured. Only raw results in, so that they can be made later."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from common.plots import COLORS, panels
from common.ratios import Ratio, paired_ratio
from common.tables import markdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from common.results import Results

    Key = TypeVar("Key")
    Row = list[object]

Sides = dict[str, dict[str, Any]]
"""What was measured of each side of a comparison, by name."""

ZERO_BUBBLE = ("zb-h1", "zb-h2", "zb-1p", "zb-2p", "zb-v", "v-half", "v-min", "interleaved-zb")


def merged(starts: Sequence[Sides]) -> Sides:
    """Return what was found in several starts as if it were one; a side has to run in all."""
    found: Sides = {}
    for name in starts[0]:
        parts = [sides[name] for sides in starts]
        failed = [part for part in parts if "failed" in part]
        found[name] = failed[0] if failed else _merged(parts)
    return found


def _merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sizes = zip(*(part["peak_bytes"] for part in parts), strict=True)
    return {
        **parts[0],
        "gradient_error": max(part["gradient_error"] for part in parts),
        "cut": " / ".join(dict.fromkeys(part["cut"] for part in parts)),
        "tokens_per_s": [rate for part in parts for rate in part["tokens_per_s"]],
        "peak_bytes": [max(of_process) for of_process in sizes],
    }


def ratio(sides: Sides, name: str, other: str) -> Ratio | None:
    """Return tokens per second of one side over another's, if both ran."""
    found, base = (sides.get(one, {}).get("tokens_per_s") for one in (name, other))
    return None if found is None or base is None or name == other else paired_ratio(found, base)


def speed(sides: Sides, name: str) -> float:
    """Return the median of tokens per second."""
    return median(sides[name]["tokens_per_s"])


def table(results: Results) -> str:
    """Return Markdown: what was compared alike in one table, then the questions that it answers.

    A side that took part several times, as a reference of others, is shown as it was first. Where
    M differs, a table of all sides by M stands first.
    """
    alike: dict[tuple[int, ...], list[Sides]] = {}
    for found in results["comparisons"]:
        key = found["microbatches"], found["num_rounds"], found.get("num_starts", 1)
        alike.setdefault(key, []).append(found["sides"])
    texts = [_by_size(results), *(_compared(*key, parts) for key, parts in alike.items())]
    return "\n\n".join(text for text in texts if text)


def _by_size(results: Results) -> str:
    """Return a table of how fast each side is, a column for each M; nothing where M is one."""
    over_one = _by_microbatches(results, "one")
    over_ceiling = _by_microbatches(results, "ceiling")
    if len(over_one) < 2:
        return ""
    names = dict.fromkeys(name for sides in over_one.values() for name in sides)
    header = ["tokens/s over one process, over the ceiling", *(f"M = {m}" for m in over_one)]
    rows = [
        [name, *(_both(over_one[m].get(name), over_ceiling[m].get(name)) for m in over_one)]
        for name in names
    ]
    return markdown(header, rows)


def _both(one: Ratio | None, ceiling: Ratio | None) -> str | None:
    found = [f"{ratio.median:.2f}" for ratio in (one, ceiling) if ratio is not None]
    return ", ".join(found) or None


def _compared(microbatches: int, num_rounds: int, num_starts: int, parts: Sequence[Sides]) -> str:
    rows = _rows([(name, sides) for sides in parts for name in sides], _side)
    header = ["side", "tokens/s", "over one", "over ceiling", "steps in a turn",
              "peak MB per process", "largest gradient error", "cut before"]  # fmt: skip
    failed = {f"{n} did not run: {s['failed']}": None for p in parts for n, s in p.items()
              if "failed" in s}  # fmt: skip
    heading = f"### M = {microbatches}, {num_rounds} round" + ("s" if num_rounds > 1 else "")
    heading += f" in {num_starts} starts" if num_starts > 1 else ""
    texts = [heading, markdown(header, rows), _answers(parts), "\n".join(failed)]
    return "\n\n".join(text for text in texts if text)


def _rows(asked: Iterable[tuple[Key, Sides]], row: Callable[[Key, Sides], Row | None]) -> list[Row]:
    """Return a row for every key, the first time that there is one."""
    found: dict[Key, Row] = {}
    for key, sides in asked:
        if key not in found and (one := row(key, sides)) is not None:
            found[key] = one
    return list(found.values())


def _side(name: str, sides: Sides) -> Row:
    side = sides[name]
    if "failed" in side:
        return [name, "did not run", *[None] * 6]
    sizes = "/".join(f"{size / 1e6:.0f}" for size in side["peak_bytes"])
    return [
        name, f"{speed(sides, name):.0f}", ratio(sides, name, "one"),
        ratio(sides, name, "ceiling"), side["steps_in_turn"], sizes,
        f"{side['gradient_error']:.0e}", side.get("cut", ""),
    ]  # fmt: skip


def _answers(parts: Sequence[Sides]) -> str:
    """Ratios of pairs that belong together; tokens per second, higher is better."""
    asked = [
        (pair, sides)
        for sides in parts
        for pair in (*_zero_bubble_pairs(sides), *_barrier_pairs(sides), *_peer_pairs(sides))
    ]
    header = ["pair", "tokens/s, median (95 %)", "pairs", "largest peak memory"]
    rows = _rows(asked, _pair)
    return markdown(header, rows) if rows else ""


def _pair(pair: tuple[str, str], sides: Sides) -> Row | None:
    name, other = pair
    found = ratio(sides, name, other)
    if found is None:
        return None
    more = max(sides[name]["peak_bytes"]) / max(sides[other]["peak_bytes"])
    return [f"{name} / {other}", found, found.num_pairs, f"{more:.2f}"]


def _zero_bubble_pairs(sides: Sides) -> list[tuple[str, str]]:
    """Zero-bubble over 1f1b of the same kind: with a barrier both, or without both."""
    split = [name.partition(":") for name in sides]
    return [(f"{k}:{s}", f"{k}:1f1b") for k, _, s in split if s in ZERO_BUBBLE]


def _barrier_pairs(sides: Sides) -> list[tuple[str, str]]:
    """Without a barrier over with one, of the same schedule."""
    split = [name.partition(":") for name in sides if "-barrier:" not in name]
    return [(f"{k}:{s}", f"{k}-barrier:{s}") for k, _, s in split]


def _peer_pairs(sides: Sides) -> list[tuple[str, str]]:
    """Our fastest side over every peer, and our 1f1b over every peer's."""
    ran = [name for name in sides if "tokens_per_s" in sides[name]]
    ours = [name for name in ran if name.startswith(("local", "shared", "gloo"))]
    peers = [name for name in ran if name.startswith(("torch", "deepspeed"))]
    if not ours:
        return []
    best = max(ours, key=lambda name: speed(sides, name))
    alike = [p for p in peers if ":1F1B" in p or p.startswith("deepspeed")]
    plain = [name for name in ("shared:1f1b", "gloo:1f1b") if name in ran and name != best]
    return [(best, peer) for peer in peers] + [(name, peer) for name in plain for peer in alike]


def figures(results: Results) -> dict[str, Any]:
    """Draw tokens per second over those of one process, a panel for each M."""
    found = _by_microbatches(results, "one")
    longest = max(len(sides) for sides in found.values())
    figure, axes = panels(1, len(found), width=1.2 + 4.6 * len(found), height=1.3 + 0.24 * longest)
    for place, (microbatches, sides) in zip(axes[0], sorted(found.items()), strict=True):
        _panel(place, microbatches, sides)
    figure.suptitle("A GPT on two cores (higher is better)", fontsize=10)
    return {"two_cores": figure}


def _by_microbatches(results: Results, reference: str) -> dict[int, dict[str, Ratio]]:
    """Each side's speed over another's, of the first comparison that has it."""
    found: dict[int, dict[str, Ratio]] = {}
    for comparison in results["comparisons"]:
        sides = found.setdefault(comparison["microbatches"], {})
        for name in comparison["sides"]:
            if (over := ratio(comparison["sides"], name, reference)) is not None:
                sides.setdefault(name, over)
    return found


def _panel(axes: Any, microbatches: int, sides: dict[str, Ratio]) -> None:
    names = sorted(sides, key=lambda name: -sides[name].median)
    values = [sides[name].median for name in names]
    around = [
        [sides[name].median - sides[name].low for name in names],
        [sides[name].high - sides[name].median for name in names],
    ]
    colors = [COLORS.get(name.partition(":")[0], "gray") for name in names]
    bars = axes.barh(names, values, xerr=around, color=colors, error_kw={"elinewidth": 0.8})
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=7)
    if "ceiling" in sides:
        axes.axvline(sides["ceiling"].median, color="black", linewidth=0.8, linestyle="--")
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(x=0.12, y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s over those of one process on one core")
    axes.set_title(f"M = {microbatches}; dashed: two independent processes", fontsize=9)
