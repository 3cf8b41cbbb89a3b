"""Cuts a row of blocks into stages so that the slowest stage is as fast as it can be.

Exact: seconds are floats, so they are fractions, and all sums here are of whole numbers. The
least possible slowest stage is found by bisection; among the cuts that reach it, a second pass
takes the one with the fewest bytes across cuts, then the most even one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Partition:
    """Which blocks are in which stage: contiguous, in order, none left out.

    Attributes:
        starts: index of each stage's first block; the first is 0.
        num_blocks: blocks of the whole model.
    """

    starts: tuple[int, ...]
    num_blocks: int

    @property
    def num_stages(self) -> int:
        """Stages there are."""
        return len(self.starts)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return tuple(end - start for start, end in pairwise((*self.starts, self.num_blocks)))

    @property
    def ranges(self) -> tuple[range, ...]:
        """Indices of each stage's blocks."""
        return tuple(range(a, b) for a, b in pairwise((*self.starts, self.num_blocks)))

    def stage_s(self, block_s: Sequence[float]) -> tuple[float, ...]:
        """Seconds of each stage, if block i takes ``block_s[i]``."""
        return tuple(math.fsum(block_s[i] for i in blocks) for blocks in self.ranges)


def partition_blocks(
    block_s: Sequence[float],
    num_stages: int,
    *,
    min_blocks: int = 1,
    crossing_bytes: Sequence[int] | None = None,
) -> Partition:
    """Cut blocks into ``num_stages`` so that the slowest stage takes the least time.

    Among equals: the fewest bytes over all cuts, then the least sum of squared stage times,
    then the earliest cuts.

    Args:
        block_s: seconds of each block, in model order; finite, 0 or more.
        num_stages: at least 1.
        min_blocks: that every stage must have, at least 1.
        crossing_bytes: ``crossing_bytes[i]`` is what crosses a cut between blocks i and i + 1.

    Raises:
        ValueError: if there are too few blocks, or an argument is out of range.
    """
    num_blocks = len(block_s)
    _require(block_s, num_stages, min_blocks, crossing_bytes)
    times = _whole_numbers(block_s)
    at = list(accumulate(times, initial=0))
    bytes_at = (0, *crossing_bytes) if crossing_bytes else (0,) * num_blocks
    problem = _Problem(at, bytes_at, num_stages, min_blocks)
    return Partition(problem.best_starts(problem.least_slowest()), num_blocks)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Attributes: ``at[i]`` is the time of the blocks before i, ``bytes_at[i]`` crosses there."""

    at: Sequence[int]
    bytes_at: Sequence[int]
    num_stages: int
    min_blocks: int

    @property
    def num_blocks(self) -> int:
        return len(self.at) - 1

    def least_slowest(self) -> int:
        """The least time that the slowest stage can take."""
        low, high = -(-self.at[-1] // self.num_stages), self.at[-1]
        while low < high:
            middle = (low + high) // 2
            if self._is_enough(middle):
                high = middle
            else:
                low = middle + 1
        return low

    def _is_enough(self, limit: int) -> bool:
        """Whether every stage can take at most ``limit``; linear per stage."""
        reached = [True] + [False] * self.num_blocks
        furthest = self._furthest(limit)
        for _ in range(self.num_stages):
            reached = self._one_stage_on(reached, furthest)
        return reached[-1]

    def _furthest(self, limit: int) -> list[int]:
        """Per start, the last end of a stage within ``limit``."""
        ends, end = [], 0
        for start in range(self.num_blocks + 1):
            while end < self.num_blocks and self.at[end + 1] - self.at[start] <= limit:
                end += 1
            ends.append(end)
        return ends

    def _one_stage_on(self, reached: Sequence[bool], furthest: Sequence[int]) -> list[bool]:
        out = [False] * len(reached)
        filled = 0
        for start, is_reached in enumerate(reached):
            first = start + self.min_blocks
            if is_reached and furthest[start] >= first:
                for end in range(max(first, filled), furthest[start] + 1):
                    out[end] = True
                filled = max(filled, furthest[start] + 1)
        return out

    def best_starts(self, limit: int) -> tuple[int, ...]:
        """Starts with the least (bytes, sum of squares) whose stages take at most ``limit``.

        Works from the last stage to the first, so that taking the earliest of equal ends gives
        the earliest cuts.
        """
        furthest = self._furthest(limit)
        best: dict[int, tuple[int, int]] = {self.num_blocks: (0, 0)}
        choices: list[dict[int, int]] = []
        for _ in range(self.num_stages):
            best, choice = self._stage_before(best, furthest)
            choices.append(choice)
        starts, start = [], 0
        for choice in reversed(choices):
            starts.append(start)
            start = choice[start]
        return tuple(starts)

    def _stage_before(
        self, best: dict[int, tuple[int, int]], furthest: Sequence[int]
    ) -> tuple[dict[int, tuple[int, int]], dict[int, int]]:
        """Per start, the best of one stage followed by what ``best`` holds, and its end."""
        now: dict[int, tuple[int, int]] = {}
        choice: dict[int, int] = {}
        for start in range(self.num_blocks):
            for end in range(start + self.min_blocks, furthest[start] + 1):
                if end in best:
                    crossing, squares = best[end]
                    stage = self.at[end] - self.at[start]
                    cost = (crossing + self.bytes_at[start], squares + stage * stage)
                    if start not in now or cost < now[start]:
                        now[start], choice[start] = cost, end
        return now, choice


def _whole_numbers(block_s: Sequence[float]) -> list[int]:
    """The times as multiples of their common unit."""
    fractions = [Fraction(s) for s in block_s]
    unit = math.lcm(*(f.denominator for f in fractions))
    return [int(f * unit) for f in fractions]


def _require(
    block_s: Sequence[float],
    num_stages: int,
    min_blocks: int,
    crossing_bytes: Sequence[int] | None,
) -> None:
    num_blocks = len(block_s)
    if num_stages < 1 or min_blocks < 1:
        msg = f"need at least one stage of one block, got {num_stages=}, {min_blocks=}"
        raise ValueError(msg)
    if num_blocks < num_stages * min_blocks:
        most = num_blocks // min_blocks
        need = f"{num_stages} stages of at least {min_blocks} blocks need {num_stages * min_blocks}"
        msg = f"{need}, the model has {num_blocks}; use at most {most} stages"
        raise ValueError(msg)
    if bad := [s for s in block_s if not (math.isfinite(s) and s >= 0)]:
        msg = f"block_s has {bad[0]}; expected finite seconds, 0 or more"
        raise ValueError(msg)
    if crossing_bytes is not None and len(crossing_bytes) != num_blocks - 1:
        got = f"crossing_bytes has {len(crossing_bytes)} values for {num_blocks} blocks"
        msg = f"{got}; expected {num_blocks - 1}"
        raise ValueError(msg)
