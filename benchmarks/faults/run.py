"""Whatever happens to one rank: who is told, when, and what is left.

    python benchmarks/faults/run.py --json found.json             # about an hour
    python benchmarks/faults/run.py --quick --ranks 2             # one run of each cell
    python benchmarks/faults/run.py --only 'hang.*torchrun'       # cells that match

A fault (an exception, SIGKILL, SIGSTOP, os._exit(0), a hang) in a phase of training (forward,
backward, optimizer, checkpoint, shutdown) under a launcher, on the whole library. The faulty rank
writes the time at the moment of its fault, every survivor when it has its error: the clock is that
of the machine. The limit of a hang is 0.5 s here instead of 30 s, and ten times that for checkpoint
and shutdown.
"""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from common.results import Results, finish, parser_of
from common.rounds import Progress
from fault_cells import HANG_S, Cell, Found, cells, run_cell
from fault_report import figures, table

if TYPE_CHECKING:
    import argparse


def measure(options: argparse.Namespace) -> Results:
    """Run every cell as often as is asked for."""
    chosen = [
        c for c in cells(tuple(options.ranks)) if re.search(options.only, " ".join(map(str, c)))
    ]
    jobs = chosen * (1 if options.quick else options.rounds)
    progress = Progress(len(jobs), "faults")

    def run(cell: Cell) -> Found:
        found = run_cell(cell)
        progress.advance()
        return found

    with ThreadPoolExecutor(options.parallel) as pool:
        found = list(pool.map(run, jobs))
    return {"hang_s": HANG_S, "runs": [one.as_json() for one in found]}


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="one run of each cell")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3], help="numbers of ranks")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each cell")
    parser.add_argument("--parallel", type=int, default=1, help="cells that run at a time")
    parser.add_argument("--only", default="", help="cells that match, such as 'raise forward'")
    options = parser.parse_args()
    finish(options, lambda: measure(options), table, figures)


if __name__ == "__main__":
    main()
