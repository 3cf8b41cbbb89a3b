"""What the user asks for, checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intandem.errors import RunError, ScheduleError
from intandem.ir import Schedule
from intandem.schedules import build_schedule, schedule_names
from intandem.schedules.registry import unknown_schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import nn

    from intandem.recorder import Arguments

AUTO_SCHEDULE = "1f1b"
MICROBATCHES_PER_RANK = 4


@dataclass(frozen=True, slots=True)
class Options:
    """What rarely needs to be said.

    Attributes:
        device: where ranks compute: ``cpu``, ``cuda``, ``cuda:1``; by default CUDA where there is
            any: the process's own under a launcher, one for all local ranks without.
        seed: keys every random draw of the run.
        timeout_s: how long processes may take to find each other, in seconds.
        threads_per_rank: torch's own threads for each local rank; by default the cores shared out.
    """

    device: torch.device | str | None = None
    seed: int = 0
    timeout_s: float = 300.0
    threads_per_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """Arguments of a ``Pipeline``; see there."""

    model: nn.Module
    loss: Callable[[Any, Any], Any] | None
    ranks: int | None
    schedule: str | Schedule
    microbatches: int | None
    stages: str | Sequence[str]
    recompute: str | bool
    split: Mapping[str, int | None] | None
    count: Callable[[Any], float] | None
    inputs: Callable[[Any], Arguments] | None
    options: Options = field(default_factory=Options)

    def check(self) -> None:
        """Refuse what cannot be built, whatever the model is.

        Raises:
            ValueError: if a count is less than 1, or a word is not known.
            ScheduleError: if there is no such schedule.
        """
        if self.microbatches is not None and self.microbatches < 1:
            msg = f"microbatches={self.microbatches}; a batch is split into 1 or more"
            raise ValueError(msg)
        if self.ranks is not None and self.ranks < 1:
            msg = f"ranks={self.ranks}; a pipeline has 1 or more"
            raise ValueError(msg)
        if self.recompute not in {"auto", "none", "all", True, False}:
            msg = f"recompute={self.recompute!r}; expected 'auto', 'none' or 'all'"
            raise ValueError(msg)
        if isinstance(self.stages, str) and self.stages != "auto":
            msg = f"stages={self.stages!r}; expected 'auto' or a list of module names"
            raise ValueError(msg)
        if isinstance(self.schedule, str) and self.schedule not in {"auto", *schedule_names()}:
            raise ScheduleError(unknown_schedule(self.schedule))

    @property
    def recomputes(self) -> bool:
        """Whether every stage runs its forward again before its backward."""
        return self.recompute in {"all", True}

    def num_microbatches(self, num_ranks: int) -> int:
        """Micro-batches that a batch is split into, if it has enough rows."""
        if self.microbatches is not None:
            return self.microbatches
        if isinstance(self.schedule, Schedule):
            return self.schedule.num_microbatches
        return MICROBATCHES_PER_RANK * num_ranks

    def build_schedule(self, num_ranks: int, num_microbatches: int) -> Schedule:
        """Return the schedule for a number of micro-batches.

        Raises:
            ScheduleError: if a schedule was given as a value and is for other numbers.
        """
        if isinstance(self.schedule, str):
            name = AUTO_SCHEDULE if self.schedule == "auto" else self.schedule
            return build_schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
        found = (self.schedule.num_ranks, self.schedule.num_microbatches)
        if found != (num_ranks, num_microbatches):
            msg = (
                f"schedule {self.schedule.name} is for {found[0]} ranks and {found[1]} "
                f"micro-batches, and is to run {num_ranks} and {num_microbatches}; build it for "
                "these, or give its name"
            )
            raise ScheduleError(msg)
        return self.schedule


def resolve_num_ranks(asked: int | None, launched: int | None) -> int:
    """Return the ranks of the pipeline.

    Args:
        asked: by the user, or None.
        launched: processes that a launcher started, or None without one.

    Raises:
        RunError: if the user asks for other than what was launched.
    """
    if launched is None:
        return asked or 1
    if asked is not None and asked != launched:
        msg = (
            f"ranks={asked}, but the launcher started {launched} processes (WORLD_SIZE); leave "
            f"ranks out, or start {asked}"
        )
        raise RunError(msg)
    return launched
