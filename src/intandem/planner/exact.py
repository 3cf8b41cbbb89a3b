"""The same problem for OR-Tools' CP-SAT, which improves what was found and may prove it the best.

Seconds become whole numbers: exactly where a common unit is found, else rounded down, so that what
is proven is a lower bound in any case. The horizon is that of a schedule that is known, so that
nothing shorter is cut off. Per stage and kind, micro-batches come in ascending order: they are all
alike, and any two in the other order could be exchanged.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from intandem.planner.clock import run_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.planner.problem import Problem, Rows

_FINEST = 10**6
"""Units in the longest operation: at most where there is a common one, and where there is none."""


@dataclass(frozen=True, slots=True)
class Solved:
    """What CP-SAT says.

    Attributes:
        rows: the best it found, or None.
        bound_s: what the objective is at least.
    """

    rows: Rows | None
    bound_s: float


def is_installed() -> bool:
    """Whether OR-Tools is there."""
    return importlib.util.find_spec("ortools") is not None


def solve(problem: Problem, known: Rows, work: float, seed: int) -> Solved:
    """Improve ``known``, which runs and fits, with ``work`` units of CP-SAT's deterministic time.

    Raises:
        ModuleNotFoundError: if OR-Tools is not installed.
    """
    cp_model: Any = importlib.import_module("ortools.sat.python.cp_model")
    model = _Model(problem, known, cp_model)
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = work
    solver.parameters.random_seed = seed
    solver.parameters.num_workers = 8
    solver.parameters.interleave_search = True
    status = solver.Solve(model.model)
    if status not in {cp_model.OPTIMAL, cp_model.FEASIBLE}:
        return Solved(None, 0.0)
    bound_s = float(solver.BestObjectiveBound() / model.per_second)
    starts = [solver.Value(start) for start in model.starts]
    rows = [sorted(row, key=lambda o: (starts[o], model.order[o])) for row in known]
    return Solved(rows, bound_s)


class _Model:
    """Variables and constraints. ``starts`` is per operation."""

    def __init__(self, problem: Problem, known: Rows, cp_model: Any) -> None:
        self.model: Any = cp_model.CpModel()
        self._problem = problem
        self._known = known
        run = run_rows(problem, known)
        if run is None:
            msg = "rows wait for each other forever; expected rows that run"
            raise ValueError(msg)
        self.order = {o: index for row in known for index, o in enumerate(row)}
        times = [*problem.seconds, *problem.delay_s, *problem.link_s]
        self.per_second = _units_per_second(times)
        self._size = [self._units(s) for s in problem.seconds]
        most = math.ceil(run.value_s * float(self.per_second)) + 1
        is_global = problem.layout.objective == "global"
        spans = 1 if is_global else problem.num_ranks + 1
        self._horizon = spans * (most + self._units(max(problem.delay_s)))
        new = self.model.NewIntVar
        self.starts = [new(0, self._horizon, "") for _ in problem.seconds]
        for operation, start in enumerate(self.starts):
            began_s = run.end_s[operation] - problem.seconds[operation]
            self.model.AddHint(start, self._units(began_s))
        self._ranks()
        self._transfers()
        self._memory()
        self._objective(new(0, most, ""))

    def _units(self, seconds: float) -> int:
        return math.floor(Fraction(seconds) * self.per_second + Fraction(1, 10**6))

    def _end(self, operation: int) -> Any:
        return self.starts[operation] + self._size[operation]

    def _ranks(self) -> None:
        count, model = self._problem.num_microbatches, self.model
        fixed = model.NewFixedSizeIntervalVar
        self._spans = [fixed(s, self._size[o], "") for o, s in enumerate(self.starts)]
        for row in self._known:
            model.AddNoOverlap([self._spans[o] for o in row])
        for operation in range(self._problem.num_operations - 1):
            if (operation + 1) % count:
                model.Add(self.starts[operation + 1] >= self._end(operation))

    def _transfers(self) -> None:
        problem, model = self._problem, self.model
        on_link: dict[int, list[Any]] = {}
        for operation, to in enumerate(problem.following):
            if to == problem.num_operations:
                continue
            sent, busy = self._end(operation), self._units(problem.link_s[operation])
            if busy:
                begin = model.NewIntVar(0, self._horizon, "")
                model.Add(begin >= sent)
                on_link.setdefault(problem.link[operation], []).append(
                    model.NewFixedSizeIntervalVar(begin, busy, "")
                )
                sent = begin + busy
            model.Add(self.starts[to] >= sent + self._units(problem.delay_s[operation]))
        for messages in on_link.values():
            model.AddNoOverlap(messages)
        if problem.layout.split:
            half = problem.num_stages * problem.num_microbatches
            for operation in range(half, 2 * half):
                model.Add(self.starts[operation + half] >= self._end(operation))

    def _memory(self) -> None:
        problem = self._problem
        layout = problem.layout
        if layout.caps is None:
            return
        for rank, stages in enumerate(problem.stages):
            if self._in_turn(rank):
                continue
            held: list[tuple[Any, int]] = []
            for stage in stages:
                self._hold(stage, held)
            intervals, sizes = [h for h, _ in held], [size for _, size in held]
            self.model.AddCumulative(intervals, sizes, layout.caps[rank])

    def _in_turn(self, rank: int) -> bool:
        """One stage that keeps the same until its end: places are taken and freed in turn."""
        problem, memory = self._problem, self._problem.layout.memory
        if len(problem.stages[rank]) != 1:
            return False
        stage = problem.stages[rank][0]
        size, count = memory.forward[stage], problem.num_microbatches
        same = memory.pending[stage] == size or not problem.layout.split
        if not same or memory.backward[stage] or not size:
            return False
        num_places = problem.caps[rank] // size
        last = (2 if problem.layout.split else 1) * problem.num_stages + stage
        for mb in range(count - num_places):
            first = stage * count + mb + num_places
            self.model.Add(self.starts[first] >= self._end(last * count + mb))
        return True

    def _hold(self, stage: int, held: list[tuple[Any, int]]) -> None:
        """Add to ``held`` what micro-batches of ``stage`` keep, as (interval, size)."""
        problem, memory = self._problem, self._problem.layout.memory
        count, stages = problem.num_microbatches, problem.num_stages
        for mb in range(count):
            f, i, w = ((kind * stages + stage) * count + mb for kind in range(3))
            turned = self._end(i)
            if memory.forward[stage]:
                kept = self._interval(self.starts[f], turned)
                held.append((kept, memory.forward[stage]))
            if memory.backward[stage]:
                held.append((self._spans[i], memory.backward[stage]))
            if problem.layout.split and memory.pending[stage]:
                held.append((self._interval(turned, self._end(w)), memory.pending[stage]))

    def _interval(self, start: Any, end: Any) -> Any:
        size = self.model.NewIntVar(0, self._horizon, "")
        return self.model.NewIntervalVar(start, size, end, "")

    def _objective(self, longest: Any) -> None:
        problem, count = self._problem, self._problem.num_microbatches
        for stages, row in zip(problem.stages, self._known, strict=True):
            begin = self.starts[stages[0] * count] if stages else 0
            since = 0 if problem.layout.objective == "global" else begin
            for operation in row:
                if operation % count == count - 1:
                    self.model.Add(longest >= self._end(operation) - since)
        self.model.Minimize(longest)


def _units_per_second(times: Sequence[float]) -> Fraction:
    """Units in which all ``times`` are whole, or fine enough that rounding down hardly shows."""
    known = [Fraction(t).limit_denominator(10_000) for t in times]
    exact = all(abs(float(k) - t) <= 1e-12 * t for k, t in zip(known, times, strict=True))
    common = math.lcm(*(k.denominator for k in known))
    step = Fraction(math.gcd(*(int(k * common) for k in known)) or 1, common)
    longest = max(times) or 1.0
    if exact and Fraction(longest) / step <= _FINEST:
        return 1 / step
    return Fraction(_FINEST) / Fraction(longest)
