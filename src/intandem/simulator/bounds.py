"""What no schedule can be faster than.

Every rank, and every link, is a machine that does one thing at a time. For any set of its jobs,

    least head in the set + all their seconds + least tail in the set

is a bound: the machine cannot start before the first of them can come, and after its last there is
still the rest of some micro-batch's way to go. Jobs are F, B or I, and W of each stage on the rank;
a W has no tail. Micro-batches come one after another, no faster than through the slowest stage on
the way, and go so, which is part of their heads and tails. For equal stages, one per rank, this is
(P-1)(F+c) + M (F+I+W) and (P-1)(F+I+2c) + M (F+I) + W: the work and chain bounds of the zero-bubble
papers. A cap on memory says more (``memory_bounds``).

Heads and tails are measured from the first F to the end of all for the makespan, and from the first
F of the rank to the end of its own for the longest rank's span.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from intandem.simulator.memory_bounds import Held, memory_bound_s
from intandem.simulator.paths import Chain, Part, StageSeconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.costs import CostModel
    from intandem.ir import Placement
    from intandem.simulator.paths import Way


_ROUNDING = 1e-9
"""Seconds that do not count when jobs are compared."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a bound is for.

    Attributes:
        objective: ``global`` for the makespan, ``rank`` for the longest rank's span.
        max_activations: stage activations that a rank may hold, one number or one per rank.
        max_bytes: bytes of activations and of pending weight gradients, likewise; needs
            ``activation_bytes`` in the costs.
        split_backward: True for I and W, False for B, None for both.
    """

    objective: Literal["global", "rank"] = "global"
    max_activations: int | tuple[int, ...] | None = None
    max_bytes: int | tuple[int, ...] | None = None
    split_backward: bool | None = None


def lower_bound_s(
    costs: CostModel,
    placement: Placement,
    num_microbatches: int,
    allowed: Allowed | None = None,
) -> float:
    """Return seconds that every schedule of a chain of stages takes at least.

    Args:
        costs: of as many stages as ``placement`` has.
        placement: stage to rank.
        num_microbatches: M, at least 1.
        allowed: what the bound is for; by default the makespan, whatever the order, the memory,
            and whether backwards are split.

    Raises:
        ValueError: if the numbers of stages differ, there is no micro-batch, or a cap is given in
            bytes for costs without them.
    """
    if costs.num_stages != placement.num_stages or num_microbatches < 1:
        got = f"{costs.num_stages} stages costed, {placement.num_stages} placed"
        msg = f"{got}, {num_microbatches=}; expected as many stages and a micro-batch"
        raise ValueError(msg)
    allowed = allowed or Allowed()
    seconds = StageSeconds.of(_overlapped(costs), allowed.split_backward)
    replicas = [placement.replica_of(mb, num_microbatches) for mb in range(num_microbatches)]
    lanes = [
        (Chain.of(costs, rank_of, seconds), replicas.count(replica))
        for replica, rank_of in enumerate(placement.rows)
    ]
    ranks = sorted({rank for row in placement.rows for rank in row})
    if allowed.objective == "rank":
        parts = [
            [
                Part(chain, chain.way_of(rank), rank, m)
                for chain, m in lanes
                if rank in chain.rank_of
            ]
            for rank in ranks
        ]
        bound_s = 0.0
    else:
        ways = [(chain, chain.way(), m) for chain, m in lanes]
        parts = [
            [Part(chain, way, rank, m) for chain, way, m in ways if rank in chain.rank_of]
            for rank in ranks
        ]
        bound_s = max(map(_machine_bound_s, _link_jobs(costs, ways)), default=0.0)
    for found in parts:
        jobs = [job for part in found for job in _rank_jobs(part)]
        bound_s = max(bound_s, _machine_bound_s(jobs))
        memory = _memory(costs, allowed, found[0].rank)
        if memory is not None and len(lanes) == 1:
            bound_s = max(bound_s, memory_bound_s(found[0], memory))
    return _rounded_up(bound_s, costs)


def _rounded_up(bound_s: float, costs: CostModel) -> float:
    """Raise a bound to what a sum of seconds can come to, where all are whole numbers.

    Every time in a schedule is such a sum; bytes on links are left alone.
    """
    per_stage = [costs.forward_s, costs.backward_input_s, costs.backward_weight_s]
    given = [s for row in (*per_stage, costs.backward_s, costs.overlapped_s) for s in row]
    given.append(costs.latency_s)
    in_bytes = any(costs.boundary_bytes) and not math.isinf(costs.bandwidth_bytes_per_s)
    if in_bytes or not all(float(s).is_integer() for s in given):
        return bound_s
    step = math.gcd(*map(int, given)) or 1
    return float(math.ceil(bound_s / step * (1 - 1e-12)) * step)


@dataclass(frozen=True, slots=True)
class _Jobs:
    """One job of every micro-batch on one machine; the j-th comes and goes a pace after the last.

    Attributes:
        count: micro-batches.
        seconds: of one job.
        head_s: before the first job can begin.
        tail_s: after the last job has ended.
        head_pace_s: least seconds between two jobs that come.
        tail_pace_s: least seconds between what is to come after two jobs.
    """

    count: int
    seconds: float
    head_s: float
    tail_s: float
    head_pace_s: float = 0.0
    tail_pace_s: float = 0.0

    def num_before(self, head_s: float) -> int:
        """Jobs that may come earlier than ``head_s``."""
        return _num_within(head_s - self.head_s, self.head_pace_s, self.count)

    def num_after(self, tail_s: float) -> int:
        """Jobs with less than ``tail_s`` to come after them."""
        return _num_within(tail_s - self.tail_s, self.tail_pace_s, self.count)


def _num_within(seconds: float, pace_s: float, count: int) -> int:
    if seconds <= _ROUNDING:
        return 0
    return count if pace_s <= 0 else min(count, math.ceil(seconds / pace_s + _ROUNDING))


def _machine_bound_s(jobs: Sequence[_Jobs]) -> float:
    """Largest bound over all sets of jobs with heads and tails of at least something."""
    tails = sorted({job.tail_s for job in jobs})
    after = [[job.num_after(tail_s) for job in jobs] for tail_s in tails]
    bound_s = 0.0
    for head_s in _head_thresholds(jobs):
        left = [job.count - job.num_before(head_s) for job in jobs]
        for tail_s, gone in zip(tails, after, strict=True):
            busy_s = sum(
                (n - m) * job.seconds for n, m, job in zip(left, gone, jobs, strict=True) if n > m
            )
            if busy_s > 0:
                bound_s = max(bound_s, head_s + busy_s + tail_s)
    return bound_s


def _head_thresholds(jobs: Sequence[_Jobs]) -> set[float]:
    """Heads of first jobs, and of the last jobs of one kind that come before others' first."""
    found = {job.head_s for job in jobs}
    for job in jobs:
        for other in jobs:
            ahead_s = other.head_s - job.head_s
            if job.head_pace_s > 0 and ahead_s > 0:
                number = min(job.count - 1, math.floor(ahead_s / job.head_pace_s))
                found.add(job.head_s + number * job.head_pace_s)
    return found


def _rank_jobs(part: Part) -> Iterator[_Jobs]:
    way, seconds, count = part.way, part.chain.seconds, part.num_microbatches
    first = way.first
    for s in part.stages:
        forward_s, urgent_s, whole_s = seconds.forward[s], seconds.urgent[s], seconds.whole[s]
        coming_s = max(seconds.forward[first:])
        turned_s = max(coming_s, *seconds.urgent[s:])
        going_s = max(seconds.urgent[first : s + 1])
        yield _Jobs(
            count,
            forward_s,
            way.head[s],
            part.full_s(s) - forward_s,
            max(seconds.forward[first : s + 1]),
            max(*seconds.forward[s:], *seconds.urgent[first:]),
        )
        yield _Jobs(count, urgent_s, way.turn[s], way.back[s] - urgent_s, turned_s, going_s)
        if whole_s > urgent_s:
            late_s = whole_s - urgent_s
            yield _Jobs(count, late_s, way.turn[s] + urgent_s, 0.0, turned_s)


def _link_jobs(
    costs: CostModel, ways: Sequence[tuple[Chain, Way, int]]
) -> Iterator[Sequence[_Jobs]]:
    """Per directed pair of ranks, the messages on its link. Latency keeps no link."""
    jobs: dict[tuple[int, int], list[_Jobs]] = defaultdict(list)
    for chain, way, count in ways:
        ranks, seconds = chain.rank_of, chain.seconds
        for s, (here, there) in enumerate(pairwise(ranks)):
            if here == there:
                continue
            down_s, up_s = chain.down[s] - costs.latency_s, chain.up[s] - costs.latency_s
            sent_s = way.head[s] + seconds.forward[s]
            after_s = chain.full_s(way, s + 1) + costs.latency_s
            jobs[here, there].append(_Jobs(count, down_s, sent_s, after_s))
            sent_s = way.turn[s + 1] + seconds.urgent[s + 1]
            after_s = way.back[s] + costs.latency_s
            jobs[there, here].append(_Jobs(count, up_s, sent_s, after_s))
    return iter(jobs.values())


def _memory(costs: CostModel, allowed: Allowed, rank: int) -> Held | None:
    """Return what stages hold against the cap of ``rank``."""
    if allowed.max_bytes is not None:
        if not costs.activation_bytes:
            msg = "max_bytes needs activation_bytes in the costs, which are unknown there"
            raise ValueError(msg)
        pending = costs.pending_bytes if allowed.split_backward is not False else ()
        cap = _of_rank(allowed.max_bytes, rank)
        return Held(costs.activation_bytes, pending or costs.activation_bytes, cap)
    if allowed.max_activations is not None:
        ones = (1,) * costs.num_stages
        return Held(ones, ones, _of_rank(allowed.max_activations, rank))
    return None


def _of_rank(cap: int | tuple[int, ...], rank: int) -> int:
    return cap if isinstance(cap, int) else cap[rank]


def _overlapped(costs: CostModel) -> CostModel:
    """Share what a pair takes out to its two parts, so that no pair is shorter than its parts.

    A backward counts at most the shortest pair, as it may be part of any; a forward what its pair
    takes beyond the longest backward.
    """
    if not costs.overlapped_s:
        return costs
    least_s = min(costs.overlapped_s)
    whole = tuple(min(b, least_s) for b in costs.backward_s)
    inputs = tuple(min(i, least_s) for i in costs.backward_input_s)
    longest_s = max(*whole, *inputs)
    pairs = zip(costs.forward_s, costs.overlapped_s, strict=True)
    forward = tuple(min(f, max(0.0, both - longest_s)) for f, both in pairs)
    return replace(costs, forward_s=forward, backward_s=whole, backward_input_s=inputs)
