"""The critical path in words and numbers."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from intandem.views import units
from intandem.views.colors import LOOKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.ir.analysis import PathStep


def path_section(path: Sequence[PathStep], name: str) -> str:
    """Return the section's HTML; empty without a path.

    Args:
        path: first action to last.
        name: ``measured`` or ``planned``.
    """
    if not path:
        return ""
    busy_s = sum(step.span.end_s - step.span.start_s for step in path)
    gap_s = sum(step.gap_s for step in path)
    hops = [step for step in path if step.by_message]
    facts = (
        f"{len(path)} actions on {len({step.span.rank for step in path})} ranks take "
        f"{units.duration(busy_s)} ({units.share(busy_s / ((busy_s + gap_s) or 1))}); what is "
        f"between them {units.duration(gap_s)}, of which {len(hops)} hand-overs to another rank "
        f"{units.duration(sum(step.gap_s for step in hops))}. A step gets shorter where this path "
        "does."
    )
    return "\n".join(
        [
            "<section>",
            f"<h2>Critical path <small>{name}; underlined in the drawing above</small></h2>",
            f"<p>{facts}</p>",
            f'<div class="scroll">{_table(path)}</div>',
            f"<details><summary>All {len(path)} actions, in order</summary>",
            f"<p>{_words(path)}</p></details>",
            "</section>",
        ]
    )


def _table(path: Sequence[PathStep]) -> str:
    """Seconds on the path by stage and kind."""
    seconds: dict[tuple[int, str], float] = defaultdict(float)
    for step in path:
        action = step.span.action
        seconds[action.stage, action.kind] += step.span.end_s - step.span.start_s
    kinds = [kind for kind in LOOKS if any(of == kind for _, of in seconds)]
    heads = "".join(f'<th scope="col">{kind} ({LOOKS[kind].name})</th>' for kind in kinds)
    rows = []
    for stage in sorted({stage for stage, _ in seconds}):
        cells = (seconds.get((stage, kind), 0.0) for kind in kinds)
        row = "".join(f"<td>{units.duration(cell) if cell else '0'}</td>" for cell in cells)
        rows.append(f"<tr><td>{stage}</td>{row}</tr>")
    body = "\n".join(rows)
    head = f'<thead><tr><th scope="col">stage</th>{heads}</tr></thead>'
    return f"<table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table>"


def _words(path: Sequence[PathStep]) -> str:
    return " ".join(f"{'&rarr; ' if step.by_message else ''}{step.span.action}" for step in path)
