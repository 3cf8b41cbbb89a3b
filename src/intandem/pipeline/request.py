"""What the user asks for, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intandem.argument_types import require_int, require_number, require_type
from intandem.errors import RunError, ScheduleError
from intandem.ir import Schedule, parse_compute_csv
from intandem.pipeline.options import Options
from intandem.pipeline.stages import check_hand_count, check_names_count
from intandem.recorder.blocks import find_blocks
from intandem.recorder.stage_chain import StageChain
from intandem.rules import early_backward, verify
from intandem.runtime.losses import WholeBatchLoss, refuse_trained_loss
from intandem.schedules import build_schedule, schedule_names
from intandem.schedules.registry import leaves_open, unknown_schedule
from intandem.schedules.replication import replicated

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.costs import CostModel
    from intandem.pipeline.materialise import Weights
    from intandem.recorder import Arguments
    from intandem.recorder.blocks import Open

AUTO_SCHEDULE = "1f1b"
WHOLE_BATCH_SCHEDULE = "gpipe"
MICROBATCHES_PER_RANK = 4


@dataclass(frozen=True, slots=True)
class Request:
    """Arguments of a ``Pipeline``; see there."""

    model: nn.Module
    loss: Callable[[Any, Any], Any] | None
    ranks: int | None
    schedule: str | Schedule
    microbatches: int | None
    stages: str | Sequence[str]
    split_points: Sequence[str] | None
    blocks: Sequence[str | type[nn.Module] | Open]
    recompute: str | bool
    split: Mapping[str, int | None] | None
    count: Callable[[Any], float] | None
    inputs: Callable[[Any], Arguments] | None
    weights: Weights | None = None
    options: Options = field(default_factory=Options)
    replicas: int = 1

    def check(self) -> None:
        """Refuse what cannot be built.

        Raises:
            TypeError: if an argument is of another type than it should be.
            ValueError: if a count is less than 1, a word is not known, or two arguments say the
                same thing.
            ScheduleError: if there is no such schedule.
            RunError: if there is no such device, or the model is wrapped or compiled.
        """
        self._check_types()
        self._check_values()
        _check_device(self.options.device)
        _refuse_wrapped(self.model)
        find_blocks(self.model, self.blocks)

    def check_for(self, num_ranks: int) -> None:
        """Refuse what cannot be built for a number of ranks, whatever the model does.

        Raises:
            ScheduleError: if the schedule is for other numbers, or does not serve the loss.
            LossError: if the loss has parameters of its own.
            CaptureError: if stages by hand or split points are of another number.
        """
        placement = self.build_schedule(num_ranks, self.num_microbatches(num_ranks)).placement
        refuse_trained_loss(self.loss)
        check_hand_count(self.model, placement.num_stages)
        if self.first_modules is not None:
            check_names_count(self.first_modules, placement.num_stages)

    def _check_types(self) -> None:
        require_type("model", self.model, nn.Module, "an nn.Module")
        require_type("options", self.options, Options, "intandem.Options")
        expected = "a name or a Schedule (of what search found: found.schedule)"
        require_type("schedule", self.schedule, (str, Schedule), expected)
        require_type("stages", self.stages, (str, Sequence), "'auto' or a list of module names")
        if self.split_points is not None:
            _check_names("split_points", self.split_points)
        _check_names("blocks", self.blocks, type)
        for name in ("ranks", "microbatches", "replicas"):
            require_int(name, getattr(self, name))
        require_int("options.threads_per_rank", self.options.threads_per_rank)
        require_int("options.seed", self.options.seed)
        require_number("options.timeout_s", self.options.timeout_s)
        require_number("options.hang_s", self.options.hang_s)
        if self.split is not None:
            require_type("split", self.split, Mapping, "a dictionary")
        for name in ("loss", "count", "inputs"):
            if (given := getattr(self, name)) is not None and not callable(given):
                msg = f"{name} is a {type(given).__name__}; expected a function"
                raise TypeError(msg)

    def _check_values(self) -> None:
        if self.microbatches is not None and self.microbatches < 1:
            msg = f"microbatches={self.microbatches}; a batch is split into 1 or more"
            raise ValueError(msg)
        if self.ranks is not None and self.ranks < 1:
            msg = f"ranks={self.ranks}; a pipeline has 1 or more"
            raise ValueError(msg)
        if self.replicas < 1:
            msg = f"replicas={self.replicas}; a pipeline has 1 or more"
            raise ValueError(msg)
        threads = self.options.threads_per_rank
        if threads is not None and threads < 1:
            msg = f"options.threads_per_rank={threads}; expected 1 or more"
            raise ValueError(msg)
        for name in ("timeout_s", "hang_s"):
            if not (seconds := getattr(self.options, name)) > 0:
                msg = f"options.{name}={seconds}; expected seconds, more than 0"
                raise ValueError(msg)
        if self.recompute not in {"auto", "none", "all", True, False}:
            msg = f"recompute={self.recompute!r}; expected 'auto', 'none' or 'all'"
            raise ValueError(msg)
        if isinstance(self.stages, str) and self.stages != "auto":
            msg = f"stages={self.stages!r}; expected 'auto' or a list of module names"
            raise ValueError(msg)
        if isinstance(self.schedule, str) and self.schedule not in {"auto", *schedule_names()}:
            raise ScheduleError(unknown_schedule(self.schedule))
        self._check_no_doubles()

    def _check_no_doubles(self) -> None:
        if self.count is not None and isinstance(self.loss, WholeBatchLoss):
            msg = "count has no use with a WholeBatchLoss, which weighs no micro-batches; drop it"
            raise ValueError(msg)
        if self.split_points is not None and self.stages != "auto":
            msg = "stages and split_points are the same thing; give split_points only"
            raise ValueError(msg)
        by_hand = isinstance(self.model, StageChain)
        if by_hand and (self.first_modules is not None or self.blocks):
            msg = (
                "model is a list of stages, which are cut where they end and kept whole; leave "
                "split_points, stages and blocks out"
            )
            raise ValueError(msg)

    @property
    def first_modules(self) -> tuple[str, ...] | None:
        """The modules that stages after the first begin with; None to find the best."""
        if self.split_points is not None:
            return tuple(self.split_points)
        return None if isinstance(self.stages, str) else tuple(self.stages)

    @property
    def recomputes(self) -> bool:
        """Whether every stage runs its forward again before its backward."""
        return self.recompute in {"all", True}

    def num_microbatches(self, num_ranks: int) -> int:
        """Micro-batches that a batch is split into, if it has enough rows."""
        if self.microbatches is not None:
            return self.microbatches
        if isinstance(self.schedule, Schedule):
            return self.schedule.num_microbatches * self.replicas
        return MICROBATCHES_PER_RANK * num_ranks

    def build_schedule(
        self, num_ranks: int, num_microbatches: int, costs: CostModel | None = None
    ) -> Schedule:
        """Return the schedule for a number of micro-batches, of all replicas together.

        A schedule given as a value serves fewer micro-batches too, where a batch has fewer rows.

        Args:
            num_ranks: of all replicas together.
            num_microbatches: that the batch gives.
            costs: of the stages, for schedules that are made for given costs, once they are known.

        Raises:
            ScheduleError: if a schedule was given as a value and is for other numbers, or begins
                backwards before the loss of the whole batch can be known.
        """
        if num_ranks % self.replicas:
            msg = f"replicas={self.replicas} do not share {num_ranks} ranks evenly"
            raise ScheduleError(msg)
        schedule = self._replicated(num_ranks // self.replicas, num_microbatches, costs)
        if isinstance(self.loss, WholeBatchLoss) and schedule.placement.replicas:
            msg = (
                "a WholeBatchLoss needs the outputs of every micro-batch on one rank, and schedule "
                f"{schedule.name!r} holds the last stage on {schedule.placement.num_replicas}; use "
                f"schedule={WHOLE_BATCH_SCHEDULE!r} and replicas=1"
            )
            raise ScheduleError(msg)
        if isinstance(self.loss, WholeBatchLoss) and (found := early_backward(schedule)):
            msg = (
                f"a WholeBatchLoss needs the outputs of every micro-batch before any backward, and "
                f"schedule {schedule.name!r} runs {found[0]} before {found[1]}; use "
                f"schedule={WHOLE_BATCH_SCHEDULE!r}, or leave schedule out"
            )
            raise ScheduleError(msg)
        return schedule

    def _replicated(
        self, num_ranks: int, num_microbatches: int, costs: CostModel | None
    ) -> Schedule:
        try:
            return replicated(
                lambda count: self._schedule_of(num_ranks, count, costs),
                self.replicas,
                num_microbatches,
            )
        except ScheduleError as error:
            if self.replicas == 1:
                raise
            msg = f"each of the {self.replicas} replicas has {num_ranks} ranks: {error}"
            raise ScheduleError(msg) from error

    def _schedule_of(
        self, num_ranks: int, num_microbatches: int, costs: CostModel | None
    ) -> Schedule:
        if isinstance(self.schedule, str):
            name = auto_schedule(self.loss) if self.schedule == "auto" else self.schedule
            return build_schedule(
                name,
                num_ranks=num_ranks,
                num_microbatches=num_microbatches,
                stages_per_rank=self._stages_per_rank(name, num_ranks),
                costs=costs,
            )
        ranks, most = self.schedule.num_ranks, self.schedule.num_microbatches
        asked = most if self.microbatches is None else -(-self.microbatches // self.replicas)
        if ranks != num_ranks or asked != most or num_microbatches > most:
            to_run = num_microbatches if asked == most else asked
            msg = (
                f"schedule {self.schedule.name} is for {ranks} ranks and {most} "
                f"micro-batches, and is to run {num_ranks} and {to_run}; build it for "
                "these, or give its name"
            )
            raise ScheduleError(msg)
        return _first_microbatches(self.schedule, num_microbatches)

    def _stages_per_rank(self, name: str, num_ranks: int) -> int | None:
        """As many as the user's cuts make, where the schedule leaves it open."""
        if not leaves_open(name, "stages_per_rank"):
            return None
        if isinstance(self.model, StageChain):
            return max(1, self.model.num_stages // num_ranks)
        if self.first_modules is None:
            return None
        return max(1, (len(self.first_modules) + 1) // num_ranks)


def auto_schedule(loss: object) -> str:
    """Return the name of the schedule that ``"auto"`` stands for."""
    return WHOLE_BATCH_SCHEDULE if isinstance(loss, WholeBatchLoss) else AUTO_SCHEDULE


def read_schedule(schedule: str | Schedule) -> str | Schedule:
    """Return ``schedule``, or what the ``.csv`` of that path holds.

    Raises:
        ScheduleError: if there is no such file, or it is no schedule.
    """
    if not isinstance(schedule, str) or not schedule.endswith(".csv"):
        return schedule
    path = Path(schedule)
    if not path.is_file():
        msg = f"schedule={schedule!r}: there is no file {path.resolve()}"
        raise ScheduleError(msg)
    try:
        return parse_compute_csv(path.read_text(encoding="utf-8"), name=path.stem)
    except (UnicodeDecodeError, ScheduleError) as error:
        why = error if isinstance(error, ScheduleError) else "it is not text in UTF-8"
        msg = f"schedule={schedule!r}: {why}"
        raise ScheduleError(msg) from error


def _first_microbatches(schedule: Schedule, count: int) -> Schedule:
    """Leave out later micro-batches; what is left keeps its order, so it obeys the same rules."""
    if count == schedule.num_microbatches:
        return schedule
    if schedule.placement.replicas or schedule.overlaps:
        msg = (
            f"schedule {schedule.name} is for {schedule.num_microbatches} micro-batches, and the "
            f"batch gives {count}; give the schedule by its name, which serves any number"
        )
        raise ScheduleError(msg)
    rows = tuple(tuple(a for a in row if a.microbatch < count) for row in schedule.actions)
    fewer = replace(schedule, num_microbatches=count, actions=rows)
    verify(fewer)
    return fewer


def _check_names(name: str, given: object, *others: type) -> None:
    expected = "a list of module names" + (" and classes" if others else "")
    require_type(name, given, (list, tuple), expected)
    for item in given if isinstance(given, list | tuple) else ():
        if others and isinstance(item, type) and issubclass(item, nn.Module):
            continue
        if not isinstance(item, str):
            msg = f"{name} has {item!r} in it; expected {expected}"
            raise TypeError(msg)


def _check_device(asked: torch.device | str | None) -> None:
    if asked is None:
        return
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        msg = f"device={asked!r} is no device: {error}"
        raise ValueError(msg) from error
    if device.type != "cuda":
        return
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= num_devices:
        msg = (
            f"device={str(asked)!r}, and torch sees {num_devices} CUDA devices here; leave device "
            "out to compute on what there is"
        )
        raise RunError(msg)


_REDUCING = {
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "FSDPModule",
}
"""Classes whose gradients are reduced as soon as a backward ends, by name: not all are loaded."""


def _refuse_wrapped(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if found := [c.__name__ for c in type(module).__mro__ if c.__name__ in _REDUCING]:
            msg = (
                f"{name or 'the model'} is wrapped in {found[0]}, whose gradient "
                "reductions would run per micro-batch; give the pipeline the bare module"
            )
            raise RunError(msg)
    is_wrapper = type(model).__name__ == "OptimizedModule"
    if is_wrapper or getattr(model, "_compiled_call_impl", None) is not None:
        msg = (
            "the model is compiled as a whole, so its blocks cannot be told apart; compile them "
            "instead: for block in model.blocks: block.compile()"
        )
        raise RunError(msg)


def resolve_num_ranks(asked: int | None, launched: int | None, model: nn.Module) -> int:
    """Return the ranks of the pipeline.

    Args:
        asked: by the user, or None.
        launched: processes that a launcher started, or None without one.
        model: a list of stages asks for a rank each, unless ``asked`` says otherwise.

    Raises:
        RunError: if the user asks for other than what was launched.
    """
    if launched is None:
        return asked or (model.num_stages if isinstance(model, StageChain) else 1)
    if asked is not None and asked != launched:
        msg = (
            f"ranks={asked}, but the launcher started {launched} processes (WORLD_SIZE); leave "
            f"ranks out, or start {asked}"
        )
        raise RunError(msg)
    return launched
