"""1F1B (PipeDream-Flush): https://arxiv.org/abs/2104.04473, figure 4 top.

With P ranks, rank r holds at most P - r activations. For P=3, M=4::

    rank 0: 0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3
    rank 1: 1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3
    rank 2: 2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.ir import Action, ActionKind, Placement, Schedule
from intandem.ir.codes import ActionCodes
from intandem.schedules.alternation import alternate
from intandem.schedules.counts import require_counts

if TYPE_CHECKING:
    from collections.abc import Iterator


def one_f_one_b(num_ranks: int, num_microbatches: int) -> Schedule:
    """Build the 1F1B schedule, one stage per rank.

    Fewer micro-batches than ranks is legal; there is then no steady state.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.

    Raises:
        ValueError: if either count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    rows = tuple(
        alternating_row(rank, num_microbatches, num_warmup=num_ranks - rank)
        for rank in range(num_ranks)
    )
    return Schedule("1f1b", Placement.loop(num_ranks), num_microbatches, rows)


def one_f_one_b_codes(num_ranks: int, num_microbatches: int) -> tuple[Iterator[int], ...]:
    """Return per rank the same order as ``ActionCodes``, made as it is read.

    Raises:
        ValueError: if either count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    codes = ActionCodes(num_ranks, num_microbatches)
    starts = (
        (codes.of_stage(rank, ActionKind.F), codes.of_stage(rank, ActionKind.B))
        for rank in range(num_ranks)
    )
    lanes = ([range(start, start + num_microbatches) for start in pair] for pair in starts)
    return tuple(alternate(f, b, num_ranks - rank) for rank, (f, b) in enumerate(lanes))


def alternating_row(stage: int, num_microbatches: int, *, num_warmup: int) -> tuple[Action, ...]:
    """Return the order of the rank that holds ``stage`` alone, given its warm-up."""
    microbatches = range(num_microbatches)
    forwards = [Action(stage, ActionKind.F, mb) for mb in microbatches]
    backwards = [Action(stage, ActionKind.B, mb) for mb in microbatches]
    return tuple(alternate(forwards, backwards, num_warmup))
