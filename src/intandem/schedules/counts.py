"""What every builder of schedules asks of its arguments."""

from __future__ import annotations

from intandem.errors import ScheduleError


def require_counts(num_ranks: int, num_microbatches: int) -> None:
    """Return if both counts are at least 1.

    Raises:
        ValueError: otherwise; names both.
    """
    if num_ranks < 1 or num_microbatches < 1:
        got = f"{num_ranks=}, {num_microbatches=}"
        msg = f"need at least one rank and one micro-batch, got {got}"
        raise ValueError(msg)


def require_stages(stages_per_rank: int) -> None:
    """Return if a rank has at least one stage.

    Raises:
        ValueError: otherwise; names the count.
    """
    if stages_per_rank < 1:
        msg = f"need at least one stage per rank, got {stages_per_rank=}"
        raise ValueError(msg)


def require_even_ranks(num_ranks: int, name: str, others: str) -> None:
    """Return if the number of ranks is even.

    Raises:
        ScheduleError: otherwise; says that schedule ``name`` needs it, and names ``others``.
    """
    if num_ranks % 2:
        remedy = f"use {num_ranks + 1} ranks, or {others}"
        msg = f"{name} needs an even number of ranks, got {num_ranks}; {remedy}"
        raise ScheduleError(msg)
