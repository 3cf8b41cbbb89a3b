"""The fault table in Markdown."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any

from common.tables import markdown

if TYPE_CHECKING:
    from common.results import Results

BOUNDS_S = {"raise": 1.0, "SIGKILL": 1.0, "os._exit(0)": 1.0, "SIGSTOP": 5.0}
"""Seconds within which every survivor is to have the error."""


def bound_s(row: dict[str, Any], hang_s: float) -> float:
    """Return what was promised for a cell: of a hang, a second more than its limit."""
    is_action = row["phase"] in {"forward", "backward", "optimizer"}
    return BOUNDS_S.get(row["fault"], 1.0 + hang_s * (1 if is_action else 10))


def table(results: Results) -> str:
    """Return Markdown: a row for each fault, phase and launcher."""
    groups = defaultdict(list)
    for row in results["runs"]:
        groups[row["launcher"], row["fault"], row["phase"]].append(row)
    rows = [_line(key, found, results["hang_s"]) for key, found in groups.items()]
    head = (
        "launcher|fault|phase|runs|named p50 s|max s|promised s|not named|wrong blame|exit codes|"
        "gone max s|processes|ports|files"
    )
    exposed = sorted({a for row in results["runs"] for a in row["exposed"]})
    theirs = sorted({a for row in results["runs"] for a in row["exposed_by_torchrun"]})
    return "\n\n".join(
        [
            markdown(head.split("|"), rows),
            _totals(results),
            "Addresses other than loopback that were listened on: by ranks and `intandem run` "
            f"{', '.join(exposed) or 'none'}; by torchrun itself {', '.join(theirs) or 'none'}.",
        ]
    )


def _line(key: tuple[str, str, str], found: list[dict[str, Any]], hang_s: float) -> list[object]:
    launcher, fault, phase = key
    named = [max(row["named_s"]) for row in found if row["named_s"]]
    codes = sorted({row["code"] for row in found})

    def total(name: str) -> int:
        return sum(row[name] for row in found)

    return [
        launcher, fault, phase, len(found),
        f"{median(named):.2f}" if named else None, f"{max(named):.2f}" if named else None,
        f"{bound_s(found[0], hang_s):g}", total("num_unnamed"), total("num_wrong"),
        " ".join(map(str, codes)), f"{max(row['gone_s'] for row in found):.2f}",
        total("num_processes"), total("num_ports"), total("num_files"),
    ]  # fmt: skip


def _totals(results: Results) -> str:
    runs, hang_s = results["runs"], results["hang_s"]
    late = sum(s > bound_s(row, hang_s) for row in runs for s in row["named_s"])
    survivors = sum(len(row["named_s"]) + row["num_unnamed"] for row in runs)
    zero = sum(row["code"] == 0 for row in runs)
    left = sum(row["num_processes"] + row["num_ports"] + row["num_files"] for row in runs)
    return (
        f"{len(runs)} runs, {survivors} survivors: {sum(r['num_unnamed'] for r in runs)} without "
        f"the error, {sum(r['num_wrong'] for r in runs)} that blamed another rank, {late} later "
        f"than promised; {zero} runs with exit code 0; {left} processes, ports and files left."
    )


def figures(results: Results) -> dict[str, Any]:
    """Draw nothing."""
    del results
    return {}
