"""Decide where the model is cut."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from intandem.costs import CostModel
from intandem.errors import CaptureError
from intandem.partition import partition_blocks
from intandem.profiler.segments import SegmentCost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.recorder.cut import Segment


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Where a model is cut, and what that is expected to cost.

    Attributes:
        starts: index of each stage's first segment.
        costs: seconds of every segment.
    """

    starts: tuple[int, ...]
    costs: tuple[SegmentCost, ...]

    def encode(self) -> bytes:
        """Return the form that ``decode`` reads."""
        costs = [[cost.forward_s, cost.backward_s] for cost in self.costs]
        return json.dumps([self.starts, costs]).encode()

    @classmethod
    def decode(cls, data: bytes) -> StagePlan:
        """Read what ``encode`` wrote."""
        starts, costs = json.loads(data)
        return cls(tuple(starts), tuple(SegmentCost(*cost) for cost in costs))

    def cost_model(self) -> CostModel:
        """Return seconds per stage. B is what was measured; I and W are taken for halves of it."""
        ends = (*self.starts[1:], len(self.costs))
        parts = [self.costs[a:b] for a, b in zip(self.starts, ends, strict=True)]
        forward_s = tuple(sum(cost.forward_s for cost in part) for part in parts)
        backward_s = tuple(sum(cost.backward_s for cost in part) for part in parts)
        half = tuple(seconds / 2 for seconds in backward_s)
        return CostModel(forward_s, half, half, backward_s)


def check_num_stages(segments: Sequence[Segment], num_stages: int) -> None:
    """Refuse more stages than the model can be cut into.

    Raises:
        CaptureError: naming both numbers.
    """
    if len(segments) < num_stages:
        names = ", ".join(segment.name for segment in segments[:8])
        msg = (
            f"the model can be cut into {len(segments)} stages at most ({names}), and the schedule "
            f"has {num_stages}; use ranks={max(len(segments), 1)} or fewer"
        )
        raise CaptureError(msg)


def balanced_starts(
    segments: Sequence[Segment], costs: Sequence[SegmentCost], num_stages: int
) -> tuple[int, ...]:
    """Return the cut whose slowest stage is as fast as it can be."""
    seconds = [cost.forward_s + cost.backward_s for cost in costs]
    crossing = [segment.crossing_bytes for segment in segments[1:]]
    return partition_blocks(seconds, num_stages, crossing_bytes=crossing).starts


def named_starts(
    segments: Sequence[Segment], names: Sequence[str], num_stages: int
) -> tuple[int, ...]:
    """Return the cut whose stages after the first begin with the named modules.

    Raises:
        CaptureError: if a name is not one a stage can begin with, or their number is wrong.
    """
    if len(names) != num_stages - 1:
        msg = (
            f"stages names {len(names)} modules, for {len(names) + 1} stages, and the schedule has "
            f"{num_stages}; name the first module of every stage but the first"
        )
        raise CaptureError(msg)
    starts = [0]
    for name in names:
        found = [i for i, s in enumerate(segments) if (f"{s.name}.").startswith(f"{name}.")]
        if not found or found[0] <= starts[-1]:
            known = [segment.name for segment in segments]
            near = get_close_matches(name, known, n=3) or known[:8]
            msg = f"no stage can begin with {name!r} there; near it: {', '.join(near)}"
            raise CaptureError(msg)
        starts.append(found[0])
    return tuple(starts)
