"""Schedules and programs as the commands take them: by name or from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intandem.cli.files import read_text
from intandem.cli.schedule_help import takers
from intandem.errors import ScheduleError, ScheduleParseError
from intandem.ir import (
    Program,
    Schedule,
    parse_compute_csv,
    parse_program,
    parse_schedule,
)
from intandem.ir.text import PROGRAM_HEADER
from intandem.rules import check_memory
from intandem.schedules import build_schedule, schedule_names
from intandem.schedules.registry import FAMILIES, unknown_schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.costs import CostModel


@dataclass(frozen=True, slots=True)
class Sizes:
    """What was asked for; None where it was left open.

    Attributes:
        num_ranks: needed for a name; must agree with a file.
        num_microbatches: likewise.
        stages_per_rank: for schedules that leave it open.
        max_activations: cap on the stage activations that a rank holds.
    """

    num_ranks: int | None = None
    num_microbatches: int | None = None
    stages_per_rank: int | None = None
    max_activations: int | None = None


def read_order(path: Path) -> Schedule | Program:
    """Read a schedule, a program or a compute-order CSV. The result is not verified.

    Raises:
        ScheduleParseError: if the file is none of them.
        ValueError: if there is no such file, or it is not text.
        OSError: if it cannot be read.
    """
    text = read_text(path)
    try:
        return _order_of(text, path)
    except ScheduleParseError as error:
        msg = f"{path}: {error}"
        raise ScheduleParseError(msg) from None


def _order_of(text: str, path: Path) -> Schedule | Program:
    if path.suffix == ".csv":
        if not text.strip():
            msg = "the file is empty; expected a row of actions per rank, e.g. 0F0,0B0"
            raise ScheduleParseError(msg)
        return parse_compute_csv(text, name=path.stem)
    if text.startswith(PROGRAM_HEADER.rsplit(" ", 1)[0]):
        return parse_program(text)
    return parse_schedule(text)


def size_of(order: Schedule | Program) -> tuple[str, ...]:
    """Write ranks, stages if they are more, and micro-batches, as ``("2 ranks", ...)``."""
    num_stages = order.placement.num_stages
    stages = () if num_stages == order.num_ranks else (counted(num_stages, "stage"),)
    copies = order.placement.num_replicas
    replicas = () if copies == 1 else (f"{copies} copies of the model",)
    ranks = counted(order.num_ranks, "rank")
    microbatches = counted(order.num_microbatches, "micro-batch")
    return ranks, *stages, microbatches, *replicas


def find_order(
    source: str, sizes: Sizes, costs_of: Callable[[int], CostModel]
) -> Schedule | Program:
    """Build the schedule called ``source``, or read the file of that name.

    Args:
        source: a known name, or a path.
        sizes: that it is to have.
        costs_of: costs of so many stages, for schedules that are made for their costs.

    Raises:
        ScheduleError: if there is neither such a name nor such a file.
        ValueError: if a count is missing, or does not go with the schedule or file.
    """
    if source in schedule_names():
        return build_named(source, sizes, costs_of)
    path = Path(source)
    if path.is_dir():
        msg = f"{source} is a folder; expected a schedule's name or a file"
        raise ScheduleError(msg)
    if not path.is_file():
        unknown = f"{unknown_schedule(source)}; there is no such file either"
        is_path = path.suffix or len(path.parts) > 1
        msg = f"there is no file {source}" if is_path else unknown
        raise ScheduleError(msg)
    order = read_order(path)
    for option, asked, found in (
        ("--ranks", sizes.num_ranks, order.num_ranks),
        ("--microbatches", sizes.num_microbatches, order.num_microbatches),
    ):
        if asked not in {None, found}:
            msg = f"{option} is {asked}, but {source} has {found}; leave {option} out"
            raise ValueError(msg)
    if sizes.stages_per_rank is not None:
        msg = f"--stages-per-rank goes with a schedule's name; {source} says where its stages are"
        raise ValueError(msg)
    return order


def check_cap(order: Schedule | Program, cap: int | None) -> None:
    """Refuse an order whose ranks hold more stage activations than asked for.

    Raises:
        ValueError: naming the ranks and slots.
    """
    if cap is not None and (over := check_memory(order, cap)):
        msg = f"{order.name} does not keep within the cap: {'; '.join(map(str, over))}"
        raise ValueError(msg)


def build_named(name: str, sizes: Sizes, costs_of: Callable[[int], CostModel]) -> Schedule:
    """Build the schedule called ``name``; the cap is passed on to those that are made for one.

    Raises:
        ScheduleError: if the schedule cannot be built as asked.
        ValueError: likewise; or if a count is missing, or is one that the schedule does not take.
    """
    if sizes.num_ranks is None or sizes.num_microbatches is None:
        msg = f"schedule {name!r} needs --ranks and --microbatches"
        raise ValueError(msg)
    takes = takes_of(name)
    if sizes.stages_per_rank is not None and "stages_per_rank" not in takes:
        msg = f"schedule {name!r} takes no --stages-per-rank; those that do: "
        raise ValueError(msg + takers("stages_per_rank"))
    costs = costs_of(num_stages_of(name, sizes)) if "costs" in takes else None
    return build_schedule(
        name,
        num_ranks=sizes.num_ranks,
        num_microbatches=sizes.num_microbatches,
        stages_per_rank=sizes.stages_per_rank,
        costs=costs,
        max_activations=sizes.max_activations if "max_activations" in takes else None,
    )


def num_stages_of(name: str, sizes: Sizes) -> int:
    """Return the stages of the schedule called ``name``, which do not depend on micro-batches.

    Raises:
        ScheduleError: if the schedule cannot be built as asked.
        ValueError: likewise.
    """
    try:
        return _sketch(name, sizes, 1).num_stages
    except (ScheduleError, ValueError):  # too few micro-batches for this one, or none would do
        return _sketch(name, sizes, sizes.num_microbatches or 1).num_stages


def _sketch(name: str, sizes: Sizes, num_microbatches: int) -> Schedule:
    return build_schedule(
        name,
        num_ranks=sizes.num_ranks or 1,
        num_microbatches=num_microbatches,
        stages_per_rank=sizes.stages_per_rank,
    )


def takes_of(name: str) -> tuple[str, ...]:
    """Keywords of ``build_schedule`` that matter to the schedule called ``name``."""
    return next(family.takes for family in FAMILIES if family.name == name)


def counted(count: int | str, what: str) -> str:
    """Write ``count`` and ``what``, in the plural unless it is one."""
    plural = "" if str(count) == "1" else "es" if what.endswith("h") else "s"
    return f"{count} {what}{plural}"
