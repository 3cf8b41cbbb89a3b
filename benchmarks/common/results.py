"""How results are kept: measured once, as JSON; tables and plots are made from that.

run.py --json found.json --plot FOLDER     measure, keep, print the table, draw
run.py --read found.json --plot FOLDER     the same from what was kept, without measuring
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.plots import save
from intandem.errors import ScheduleError

if TYPE_CHECKING:
    from collections.abc import Callable

Results = dict[str, Any]
"""What a benchmark measured, raw, as JSON has it."""


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file to write everything measured to")
    parser.add_argument("--read", type=Path, help="such a file: do not measure, show it")
    parser.add_argument("--plot", type=Path, help="folder to draw into (PNG and SVG)")
    return parser


def finish(
    options: argparse.Namespace,
    measure: Callable[[], Results],
    table: Callable[[Results], str],
    figures: Callable[[Results], dict[str, Any]],
) -> None:
    """Measure or read, keep, print and draw, as the options say.

    Args:
        options: of a parser from ``parser_of``.
        measure: returns the results; the machine is added to them.
        table: Markdown of results.
        figures: figures of results, by the name of their files.
    """
    if options.read:
        results = _kept(options.read)
    else:
        machine = machine_found()
        try:
            results = {"machine": machine, **measure()}
        except ScheduleError as error:  # one that was asked for by name
            sys.exit(str(error))
        machine["load_after"] = os.getloadavg()[0]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), "utf-8")
    print(machine_line(results["machine"]) + "\n\n" + table(results))
    if options.plot:
        for name, figure in figures(results).items():
            save(figure, options.plot, name)


def machine_found() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": version("torch"),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Say on what was measured, and how busy it was otherwise."""
    return (
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, Python "
        f"{machine['python']}; load {machine['load_before']:.1f} before"
    )


def _kept(file: Path) -> Results:
    try:
        found: Results = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"--read {file}: {error}; give a file that --json has written")
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
