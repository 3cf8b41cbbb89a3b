"""The machine as a command takes it: a JSON file, for any number of ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from intandem.cli.files import read_text
from intandem.machine import machine_from_json

if TYPE_CHECKING:
    from pathlib import Path

    from intandem.costs import CostModel
    from intandem.machine import Machine


@dataclass(frozen=True, slots=True)
class MachineOption:
    """What ``--machine`` says.

    Attributes:
        path: of the file.
        text: its content.
    """

    path: Path
    text: str

    def of_ranks(self, num_ranks: int) -> Machine:
        """Return the machine of ``num_ranks`` ranks.

        Raises:
            ValueError: if the file is malformed, or is about ranks that there are not.
        """
        try:
            return machine_from_json(self.text, num_ranks=num_ranks)
        except ValueError as error:
            msg = f"{self.path}, on {num_ranks} ranks: {error}"
            raise ValueError(msg) from None


def read_machine(path: Path | None, transfer_s: float | None) -> MachineOption | None:
    """Read ``--machine``; None if it was not given.

    Raises:
        ValueError: if there is no such file, or ``--transfer`` is given as well.
        OSError: if it cannot be read.
    """
    if path is None:
        return None
    if transfer_s is not None:
        msg = "--transfer does not go with --machine; put latency_s into the machine's file instead"
        raise ValueError(msg)
    if not path.is_file():
        msg = f"--machine {path}: expected the name of a JSON file"
        raise ValueError(msg)
    return MachineOption(path, read_text(path, option="--machine"))


def at_its_fastest(costs: CostModel, machine: Machine | None) -> CostModel:
    """Return ``costs`` with the fastest of the machine's links between all ranks.

    What nothing is below with these, nothing is below on the machine.
    """
    if machine is None:
        return costs
    links = list(machine.links.values())
    if len(links) < machine.num_ranks * (machine.num_ranks - 1):
        links.append(machine.link)
    return replace(
        costs,
        latency_s=min((link.latency_s for link in links), default=0.0),
        bandwidth_bytes_per_s=max((link.bandwidth_bytes_per_s for link in links), default=math.inf),
    )
