"""A few cells of ``benchmarks/faults`` in every run of the tests, all of them in the full matrix.

What is asserted never is a time: who is named, that the run failed, and that nothing is left.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "faults"))

from fault_cells import Cell, cells, run_cell

LEFT_S = 40.0
"""On a loaded machine a process that ends takes seconds; one that stays, stays for ever."""

EVERY_COMMIT = {
    Cell("raise", "optimizer", "intandem run", 2),
    Cell("SIGKILL", "checkpoint", "intandem run", 2),
    Cell("os._exit(0)", "backward", "torchrun", 2),
    Cell("hang", "shutdown", "intandem run", 2),
}


def table():
    """Every cell; those not run on every commit are slow."""
    return [
        pytest.param(
            cell,
            id="-".join(map(str, cell)).replace(" ", "_"),
            marks=() if cell in EVERY_COMMIT else (pytest.mark.slow,),
        )
        for cell in cells((2, 3))
    ]


@pytest.mark.parametrize("cell", table())
def test_every_survivor_names_the_culprit_and_nothing_is_left(cell):
    """No survivor without the error, none that blames another; exit code not 0; loopback only."""
    found = run_cell(cell, LEFT_S)

    assert found.num_unnamed == 0, found.text
    assert found.num_wrong == 0, found.errors
    assert found.code != 0
    assert cell.fault != "raise" or all("ValueError: boom" in error for error in found.errors)
    assert (found.num_processes, found.num_ports, found.num_files) == (0, 0, 0)
    assert found.exposed == []
