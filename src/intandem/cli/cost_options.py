"""Costs as the commands take them: numbers per kind, or a JSON file, for any number of stages."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from intandem.cli.files import read_text
from intandem.costs import CostModel, costs_from_json, parse_costs


@dataclass(frozen=True, slots=True)
class CostOptions:
    """What ``--costs`` and ``--transfer`` say.

    Attributes:
        text: ``F=1,I=1,W=1``, or the content of a JSON file.
        transfer_s: seconds that a message takes, with the first form.
        path: of the file, with the second.
    """

    text: str
    transfer_s: float = 0.0
    path: Path | None = None

    @property
    def _is_json(self) -> bool:
        return "=" not in self.text.partition("{")[0]

    def per_stage(self, num_stages: int) -> CostModel:
        """Return the costs of ``num_stages`` stages; a number without a list is of each stage.

        Raises:
            ValueError: if the text is malformed, or has lists of another length.
        """
        if self._is_json:
            return self._from_json(num_stages)
        return parse_costs(self.text, num_stages=num_stages, transfer_s=self.transfer_s)

    def of_model(self, num_stages: int, num_ranks: int) -> CostModel:
        """Return the costs of the same model, cut into ``num_stages`` stages.

        A number without a list is of a ``num_ranks``-th of the model.

        Raises:
            ValueError: if the text is malformed, or its lists are of a number of stages that
                neither divides ``num_stages`` nor is divided by it.
        """
        return cut_again(self.per_stage(self.num_listed or num_ranks), num_stages)

    def _from_json(self, num_stages: int) -> CostModel:
        try:
            return costs_from_json(self.text, num_stages=num_stages)
        except ValueError as error:
            msg = f"{self.path}: {error}" if self.path else str(error)
            raise ValueError(msg) from None

    @property
    def num_listed(self) -> int | None:
        """Stages that the file has lists for; None if it has none."""
        try:
            content = json.loads(self.text) if self._is_json else None
        except json.JSONDecodeError:  # said by whoever reads the costs
            return None
        pairs = content.items() if isinstance(content, dict) else ()
        lists = ((key, value) for key, value in pairs if isinstance(value, list))
        return next((len(value) + (key == "boundary_bytes") for key, value in lists), None)


def read_costs(costs: str, transfer_s: float | None) -> CostOptions:
    """Read ``--costs`` and ``--transfer``.

    Raises:
        ValueError: if both a file and ``--transfer`` are given, or the text is malformed.
        OSError: if there is no such file.
    """
    if "=" in costs:
        if transfer_s is not None and not (math.isfinite(transfer_s) and transfer_s >= 0):
            msg = f"--transfer is {transfer_s:g}; expected seconds, 0 or more"
            raise ValueError(msg)
        found = CostOptions(costs, transfer_s or 0.0)
        found.per_stage(1)
        return found
    if transfer_s is not None:
        msg = "--transfer goes with --costs F=...; put latency_s into the JSON file instead"
        raise ValueError(msg)
    return _from_file(Path(costs))


def _from_file(path: Path) -> CostOptions:
    found = CostOptions(_content(path), path=path)
    found.per_stage(found.num_listed or 1)
    return found


def _content(path: Path) -> str:
    if not path.is_file():
        msg = f"--costs {path}: expected F=1,I=1,W=1, F=1,B=2 or the name of a JSON file"
        raise ValueError(msg)
    return read_text(path, option="--costs")


def cut_again(costs: CostModel, num_stages: int) -> CostModel:
    """Return ``costs`` of the same model cut into another number of stages.

    More stages: each is cut into equal parts, which hand on what it hands on. Fewer: neighbours
    are joined.

    Raises:
        ValueError: if neither number of stages divides the other.
    """
    had = costs.num_stages
    if num_stages % had and had % num_stages:
        msg = f"costs of {had} stages are neither joined nor cut into {num_stages} stages"
        raise ValueError(msg)
    changes: dict[str, Any] = {}
    for field in fields(CostModel):
        values = getattr(costs, field.name)
        if isinstance(values, tuple) and values:
            again = _boundaries if field.name == "boundary_bytes" else _per_stage
            changes[field.name] = again(values, had, num_stages)
    return replace(costs, **changes)


def _per_stage(values: tuple[Any, ...], had: int, num_stages: int) -> tuple[Any, ...]:
    if num_stages <= had:
        joined = had // num_stages
        return tuple(sum(values[s : s + joined]) for s in range(0, had, joined))
    parts = num_stages // had
    if all(isinstance(value, int) for value in values):
        return tuple(-(-value // parts) for value in values for _ in range(parts))
    return tuple(value / parts for value in values for _ in range(parts))


def _boundaries(values: tuple[int, ...], had: int, num_stages: int) -> tuple[int, ...]:
    if num_stages <= had:
        joined = had // num_stages
        return values[joined - 1 :: joined]
    parts = num_stages // had
    within = (*values, values[-1])
    return tuple(size for size in within for _ in range(parts))[: num_stages - 1]
