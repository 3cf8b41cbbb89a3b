"""What a step is made of: values that the pipeline hands to every rank's executor."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from intandem.ir import Arrival, Program, Span
    from intandem.recorder.graph import Autocast
    from intandem.runtime.observer import Observer
    from intandem.runtime.recordings import Recorded
    from intandem.runtime.tally import LossTally
    from intandem.runtime.whole_batch import Joining


class Mode(Enum):
    """What a pass through the pipeline is for: the call of ``Pipeline``."""

    TRAIN = "step"
    EVALUATE = "evaluate"
    PREDICT = "predict"


@dataclass(frozen=True, slots=True)
class MicrobatchWork:
    """One micro-batch and the recording it follows.

    Attributes:
        batch: as the loss function is given it.
        tensors: the recording's batch values, by number.
        recorded: the recording and its stages.
    """

    batch: Any
    tensors: Mapping[int, Tensor]
    recorded: Recorded


@dataclass(frozen=True, slots=True)
class StepWork:
    """One pass of all micro-batches through the pipeline.

    Attributes:
        sequence: number of the pass, over training and evaluation; labels messages.
        step: number of the training step; keys random draws.
        seed: of the run.
        mode: what it is for.
        program: what every rank executes.
        microbatches: in order.
        tally: weighs losses; told by the ranks of the last stage.
        loss: the user's loss function.
        autocast: mixed-precision states of the caller, under which the loss is computed too.
        observer: shown what is computed.
        joining: how outputs are joined where the loss is the whole batch's; else None.
        scale: what the loss is multiplied by before it is differentiated.
        is_told: whether other processes wait to be told the losses.
        has_new_calls: whether a recording, or its mode, is run for the first time.
        is_linear: whether gradients may be multiplied by a factor once backward is over.
    """

    sequence: int
    step: int
    seed: int
    mode: Mode
    program: Program
    microbatches: tuple[MicrobatchWork, ...]
    tally: LossTally
    loss: Callable[[Any, Any], Any] | None
    autocast: tuple[Autocast, ...] = ()
    observer: Observer | None = None
    joining: Joining | None = None
    scale: float = 1.0
    is_linear: bool = True
    is_told: bool = False
    has_new_calls: bool = False

    def end_of_forwards(self, replica: int) -> str:
        """Return the name of the fact that says a replica's forwards are over, and their losses."""
        return f"pass/{self.sequence}/{replica}"

    def end(self, rank: int) -> str:
        """Return the name of the fact that says the pass is over on a rank with a last stage."""
        return f"end/{self.sequence}/{rank}"

    def last_ranks(self) -> dict[int, int]:
        """Return the rank of the last stage of each replica that has micro-batches."""
        placement, count = self.program.placement, len(self.microbatches)
        last = placement.holders_of(placement.num_stages - 1)
        return {r: last[r] for r in sorted({placement.replica_of(m, count) for m in range(count)})}

    def ends(self) -> list[str]:
        """Return the names of all that say the pass is over."""
        return [self.end(rank) for rank in sorted(set(self.last_ranks().values()))]


@dataclass(slots=True)
class RankResult:
    """What one rank brings back from a pass.

    Attributes:
        rank: which.
        spans: when each compute action ran, on the clock of ``time.perf_counter``. A forward that
            is run again is part of the backward that it stands directly before.
        arrivals: when each message from another rank was there, on the same clock.
        outputs: the model's output for each micro-batch, on the last stage's rank.
    """

    rank: int
    spans: list[Span] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    outputs: dict[int, Any] = field(default_factory=dict)
