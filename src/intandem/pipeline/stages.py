"""Decide where the model is cut."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from intandem.costs import CostModel
from intandem.errors import CaptureError
from intandem.partition import partition_blocks
from intandem.profiler.segments import SegmentCost
from intandem.recorder.stage_chain import StageChain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from intandem.ir import Placement
    from intandem.recorder.cut import Segment


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Where a model is cut, and what that is expected to cost.

    Attributes:
        starts: index of each stage's first segment.
        costs: seconds of every segment.
        kept_bytes: of every stage, what it keeps of a micro-batch for its backward; empty where it
            was not looked at.
        opened: names of the blocks that have been looked into, to cut inside of them.
    """

    starts: tuple[int, ...]
    costs: tuple[SegmentCost, ...]
    kept_bytes: tuple[int, ...] = ()
    opened: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the form that ``decode`` reads."""
        costs = [astuple(cost) for cost in self.costs]
        return json.dumps([self.starts, costs, self.kept_bytes, self.opened]).encode()

    @classmethod
    def decode(cls, data: bytes) -> StagePlan:
        """Read what ``encode`` wrote."""
        starts, costs, kept_bytes, opened = json.loads(data)
        parts = tuple(SegmentCost(*cost) for cost in costs)
        return cls(tuple(starts), parts, tuple(kept_bytes), tuple(opened))

    def of_stages(self) -> list[tuple[SegmentCost, ...]]:
        """Return the costs of each stage's segments."""
        ends = (*self.starts[1:], len(self.costs))
        return [self.costs[a:b] for a, b in zip(self.starts, ends, strict=True)]

    def stage_s(self) -> tuple[float, ...]:
        """Return the seconds of each stage's forward and backward."""
        parts = self.of_stages()
        return tuple(sum(cost.forward_s + cost.backward_s for cost in part) for part in parts)

    def num_waiting(self, stage: int) -> int | None:
        """Return how many elements of a stage's parameters have gradients that wait for W."""
        return _total(cost.num_waiting for cost in self.of_stages()[stage])

    def forward_flops(self, stage: int) -> int | None:
        """Return the floating-point operations of F; None where they were not counted."""
        return _total(cost.forward_flops for cost in self.of_stages()[stage])

    def backward_flops(self, stage: int) -> int | None:
        """Return those of I and W together."""
        return _total(cost.backward_flops for cost in self.of_stages()[stage])

    def cost_model(self) -> CostModel:
        """Return seconds of F, I and W per stage; B is I and W."""
        parts = self.of_stages()
        return CostModel(
            forward_s=tuple(sum(cost.forward_s for cost in part) for part in parts),
            backward_input_s=tuple(sum(cost.backward_input_s for cost in part) for part in parts),
            backward_weight_s=tuple(sum(cost.backward_weight_s for cost in part) for part in parts),
        )


def _total(counts: Iterable[int | None]) -> int | None:
    """Return the sum; None if one of them is not known."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def check_num_stages(segments: Sequence[Segment], placement: Placement) -> None:
    """Refuse more stages than the model can be cut into.

    Raises:
        CaptureError: naming both numbers.
    """
    num_stages = placement.num_stages
    if len(segments) < num_stages:
        depth = len(set(placement.rank_of))
        num_ranks = max(1, len(segments) * depth // num_stages) * (placement.num_ranks // depth)
        names = ", ".join(segment.name for segment in segments[:8])
        msg = (
            f"the model can be cut into {len(segments)} stages at most ({names}), and the schedule "
            f"has {num_stages}; use ranks={num_ranks} or fewer"
        )
        raise CaptureError(msg)


def balanced_starts(
    segments: Sequence[Segment], costs: Sequence[SegmentCost], num_stages: int
) -> tuple[int, ...]:
    """Return the cut whose slowest stage is as fast as it can be."""
    seconds = [cost.forward_s + cost.backward_s for cost in costs]
    crossing = [segment.crossing_bytes for segment in segments[1:]]
    return partition_blocks(seconds, num_stages, crossing_bytes=crossing).starts


def check_hand_count(model: nn.Module, num_stages: int) -> None:
    """Refuse stages written by hand that are not as many as the schedule's.

    Raises:
        CaptureError: naming the numbers.
    """
    if isinstance(model, StageChain) and model.num_stages != num_stages:
        msg = (
            f"model is a list of {model.num_stages} stages, and the schedule has {num_stages}; use "
            f"ranks={model.num_stages}, or give as many stages"
        )
        raise CaptureError(msg)


def check_stages_by_hand(model: nn.Module, segments: Sequence[Segment], num_stages: int) -> None:
    """Refuse stages written by hand that the schedule's stages cannot be.

    Raises:
        CaptureError: naming the stage at fault.
    """
    if not isinstance(model, StageChain):
        return
    starts = {segment.name for segment in segments}
    if missing := [str(n) for n in range(num_stages) if str(n) not in starts]:
        msg = (
            f"stage {missing[0]} of the list cannot be a stage of its own: it has no parameters, "
            "or shares buffers that change with the one before; join it to that one"
        )
        raise CaptureError(msg)


def check_names_count(names: Sequence[str], num_stages: int) -> None:
    """Refuse split points that are not one fewer than the schedule's stages.

    Raises:
        CaptureError: naming the numbers.
    """
    if len(names) != num_stages - 1:
        msg = (
            f"split_points names {len(names)} modules, for {len(names) + 1} stages, and the "
            f"schedule has {num_stages}; name the first module of every stage but the first"
        )
        raise CaptureError(msg)


def named_starts(segments: Sequence[Segment], names: Sequence[str]) -> tuple[int, ...]:
    """Return the cut whose stages after the first begin with the named modules.

    A name stands for the first call with parameters of that module or of one inside it.

    Raises:
        CaptureError: if a name is not one a stage can begin with.
    """
    starts = [0]
    for name in names:
        found = [i for i, segment in enumerate(segments) if _begins_in(segment, name)]
        if not found or found[0] <= starts[-1]:
            raise CaptureError(_no_start(segments, name, found, starts[-1]))
        starts.append(found[0])
    return tuple(starts)


def _begins_in(segment: Segment, name: str) -> bool:
    """Tell whether a segment's first call with parameters is in a module.

    Glue is named for its parameters: ``add(embeddings.cls_token)`` is in ``embeddings``.
    """
    _, is_glue, parameters = segment.name.partition("(")
    places = parameters.rstrip(")").split(", ") if is_glue else [segment.name]
    return any(f"{place}.".startswith(f"{name}.") for place in places)


def _no_start(segments: Sequence[Segment], name: str, found: Sequence[int], last: int) -> str:
    known = [segment.name for segment in segments[1:]]
    near = get_close_matches(name, known, n=3) or known[:8]
    whole = next((s.name for s in segments if name.startswith(f"{s.name}.")), None)
    if found and not last and not found[0]:
        why = "the first stage begins with it"
    elif found:
        why = f"it is not called after {segments[last].name}; name them in the order of the calls"
    elif whole is not None:
        why = f"it lies inside {whole}, which is kept whole"
    else:
        why = "it is not called, has no parameters, or cannot be cut off from what is before it"
    return f"no stage can begin with {name!r} there: {why}; near it: {', '.join(near)}"
