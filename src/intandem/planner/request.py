"""What is asked of a search: checked, and spread out into the layouts to try."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.argument_types import require_int, require_type
from intandem.costs import CostModel
from intandem.errors import ScheduleError
from intandem.ir import Placement
from intandem.planner.construction import smallest_caps
from intandem.planner.problem import Layout, Memory, Objective
from intandem.schedules.counts import require_counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


Caps = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What ``search`` was asked, apart from how long it may take.

    Attributes:
        costs: of all stages.
        num_ranks: P.
        num_microbatches: M.
        cap: stage activations per rank, one number or one per rank; None for no limit.
        cap_bytes: bytes of activations and of pending weight gradients per rank, likewise;
            messages are not counted. Not both.
        placement: the one to use; None to try several.
        objective: what is made short.
        split_backward: I and W only, B only, or (None) both.
        recompute: whether stages may run their forwards again.
        weight_copies: how often a stage may be held.
    """

    costs: CostModel
    num_ranks: int
    num_microbatches: int
    cap: Caps | None = None
    cap_bytes: Caps | None = None
    placement: Placement | None = None
    objective: Objective = "global"
    split_backward: bool | None = None
    recompute: bool = False
    weight_copies: int = 1

    def __post_init__(self) -> None:
        require_type("costs", self.costs, CostModel, "a CostModel")
        require_int("num_ranks", self.num_ranks)
        require_int("num_microbatches", self.num_microbatches)
        if self.placement is not None:
            require_type("placement", self.placement, Placement, "a Placement")
        require_counts(self.num_ranks, self.num_microbatches)
        if self.objective not in {"global", "rank"}:
            msg = f"objective is {self.objective!r}; expected 'global' or 'rank'"
            raise ValueError(msg)
        if self.weight_copies < 1:
            msg = f"weight_copies is {self.weight_copies}; expected at least 1"
            raise ValueError(msg)
        if self.cap is not None and self.cap_bytes is not None:
            msg = "memory_cap and memory_cap_bytes are both given; expected one of them"
            raise ValueError(msg)
        if self.cap_bytes is not None and not self.costs.activation_bytes:
            msg = "memory_cap_bytes needs activation_bytes in the costs, which are unknown there"
            raise ValueError(msg)
        self._check_placement()

    def _check_placement(self) -> None:
        num_stages = self.costs.num_stages
        if self.placement is None:
            if num_stages % self.num_ranks:
                got = f"{num_stages} stages on {self.num_ranks} ranks"
                msg = f"{got}; expected a multiple, or give a placement"
                raise ValueError(msg)
            return
        if self.placement.replicas:
            msg = "the placement has replicas; search takes placements that hold each stage once"
            raise ValueError(msg)
        size = self.placement.num_stages, self.placement.num_ranks
        if size != (num_stages, self.num_ranks):
            expected = f"expected {num_stages} on {self.num_ranks}"
            msg = f"the placement has {size[0]} stages on {size[1]} ranks; {expected}"
            raise ValueError(msg)

    @property
    def caps(self) -> tuple[int, ...] | None:
        """Per rank, in bytes or activations; None for no limit."""
        given = self.cap if self.cap is not None else self.cap_bytes
        if given is None:
            return None
        caps = (given,) * self.num_ranks if isinstance(given, int) else tuple(given)
        if len(caps) != self.num_ranks:
            expected = f"expected one number, or one per rank ({self.num_ranks})"
            msg = f"the memory cap has {len(caps)} numbers; {expected}"
            raise ValueError(msg)
        return caps

    @property
    def max_activations(self) -> tuple[float, ...] | None:
        """Stage activations that fit on every rank; None if all do.

        In bytes, as many as fit on average, and as fit for certain: they differ if stages do.
        """
        caps = self.caps
        if caps is None or self.cap_bytes is None:
            return None if caps is None else (min(caps),)
        sizes = self.costs.activation_bytes
        if not any(sizes):
            return None
        found = {max(1.0, min(caps) / size) for size in (sum(sizes) / len(sizes), max(sizes))}
        return tuple(sorted(found))

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Those to try."""
        if self.placement is not None:
            return (self.placement,)
        stages_per_rank = self.costs.num_stages // self.num_ranks
        tried = [Placement.loop(self.num_ranks, stages_per_rank)]
        if stages_per_rank % 2 == 0:
            tried.append(Placement.wave(self.num_ranks, stages_per_rank))
        return tuple(dict.fromkeys(tried))

    def memory(self, recompute: frozenset[int] = frozenset()) -> Memory:
        """What actions take, in the unit of the cap."""
        num_stages = self.costs.num_stages
        if self.cap_bytes is None:
            ones = (1,) * num_stages
            return Memory(ones, (0,) * num_stages, ones)
        kept = [
            _input_bytes(self.costs, s) if s in recompute else held
            for s, held in enumerate(self.costs.activation_bytes)
        ]
        again = [held - k for held, k in zip(self.costs.activation_bytes, kept, strict=True)]
        return Memory(tuple(kept), tuple(again), self.costs.pending_bytes)

    def layouts(self) -> tuple[Layout, ...]:
        """Return what to try: all that fit the cap.

        Raises:
            ScheduleError: if nothing fits; names the smallest cap that would do.
        """
        every = list(self._every_layout())
        fitting = []
        needs: list[Sequence[int]] = []
        for layout in every:
            need = smallest_caps(layout)
            if layout.caps is None or all(map(int.__le__, need, layout.caps)):
                fitting.append(layout)
            needs.append(need)
        if not fitting:
            raise ScheduleError(self._refusal(needs))
        return tuple(fitting)

    def _every_layout(self) -> Iterator[Layout]:
        for placement in self.placements:
            for recompute in self._recomputed(placement):
                for split in self._splits():
                    yield Layout(
                        self.costs,
                        placement,
                        self.num_microbatches,
                        split,
                        self.objective,
                        self.memory(recompute),
                        self.caps,
                        recompute,
                    )

    def _splits(self) -> tuple[bool, ...]:
        """Split backwards are never worse than whole ones that take as long as their parts."""
        if self.split_backward is not None:
            return (self.split_backward,)
        costs = self.costs
        halves = zip(costs.backward_s, costs.backward_input_s, costs.backward_weight_s, strict=True)
        shorter = any(b < i + w - 1e-12 * b for b, i, w in halves)
        return (True, False) if shorter else (True,)

    def _recomputed(self, placement: Placement) -> tuple[frozenset[int], ...]:
        """Sets of stages: none, all of the first ranks, which hold most, up to all.

        Those that keep no more than their input are left out: running them again frees nothing.
        """
        if not self.recompute or self.cap_bytes is None:
            return (frozenset(),)
        num_ranks, kept = self.num_ranks, self.costs.activation_bytes
        worth = {s for s, held in enumerate(kept) if _input_bytes(self.costs, s) < held}
        first = sorted({0, 1, num_ranks // 4, num_ranks // 2, num_ranks})
        sets = (
            worth.intersection(s for rank in range(count) for s in placement.stages_of(rank))
            for count in first
        )
        return tuple(dict.fromkeys(map(frozenset, sets)))

    def _refusal(self, needs: Sequence[Sequence[int]]) -> str:
        caps = self.caps or ()
        unit = "stage activations" if self.cap_bytes is None else "bytes"
        need = min(needs, key=max)
        rank = next(r for r, (n, cap) in enumerate(zip(need, caps, strict=True)) if n > cap)
        smallest = max(need) if len(set(caps)) == 1 else " ".join(map(str, need))
        got = f"no schedule fits: rank {rank} may hold {caps[rank]} {unit} and needs {need[rank]}"
        return f"{got}; the smallest feasible cap is {smallest} {unit}"


def _input_bytes(costs: CostModel, stage: int) -> int:
    """What a stage that is run again keeps: its input. That of the first is the batch itself."""
    if stage == 0 or not costs.boundary_bytes:
        return 0
    return costs.boundary_bytes[stage - 1]
