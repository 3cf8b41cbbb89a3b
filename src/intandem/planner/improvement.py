"""How the work of a search is spent: on which layouts, and on which of their starts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from intandem.ir import ActionKind
from intandem.planner import exact
from intandem.planner.annealing import Warmth, anneal
from intandem.planner.builtin import Wanted, builtin_schedules, peaks, rows_of
from intandem.planner.found import Progress
from intandem.planner.trial import Start, Trial, layout_bound_s, measured
from intandem.simulator import simulate

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from intandem.ir import Schedule
    from intandem.planner.request import Request

_WORK = 40_000_000
"""Operations run in a search of effort 1; some 5 seconds."""

_MOST_MOVES = 100_000
"""Of one annealing at effort 1: small problems need no more."""

_SOLVING = 5.0
"""Units of CP-SAT's deterministic time in a search of effort 1; some ten seconds."""

_SOLVABLE = 900
"""Operations up to which CP-SAT is used without being asked for."""

_CLOSE = 1.005
"""How much longer than the bound the best may be for the rest to be looked for with less work."""

_CLOSE_SHARE = 0.4
"""Share of the work that is then done."""

_FEWEST = 0.1
"""Moves per operation below which annealing finds nothing."""

_NEARLY = 1.005
"""How much longer than the best layout the second best may be to be worth as much work."""

_THOROUGH = 60
"""Moves per operation from which on several starts are better than one for longer."""

_MOST_RELISTED = 10
"""Starts that are listed again, from the end and from the beginning."""

_LISTING = 12
"""How much longer it takes to list an operation than to run it."""

_RELISTING = 40
"""The same where rows are listed again."""


@dataclass(slots=True)
class Effort:
    """What may be spent. ``spent`` counts operations.

    Raises:
        ValueError: if the factor or the limit is not finite and more than 0.
    """

    factor: float
    time_limit_s: float | None
    spent: float = 0.0
    began_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        for name, value in (("effort", self.factor), ("time_limit_s", self.time_limit_s)):
            if value is not None and not 0 < value < math.inf:
                msg = f"{name} is {value:g}; expected a finite number, more than 0"
                raise ValueError(msg)

    @property
    def total(self) -> float:
        """Operations that may be run."""
        return self.factor * _WORK

    @property
    def is_over(self) -> bool:
        """Whether the time limit has been reached."""
        if self.time_limit_s is None:
            return False
        return time.monotonic() - self.began_s > self.time_limit_s


@dataclass(frozen=True, slots=True)
class Best:
    """The best so far.

    Attributes:
        value_s: what the objective measures.
        method: what found it.
        recompute: stages that run their forward again.
        build: makes the schedule.
    """

    value_s: float
    method: str
    recompute: frozenset[int]
    build: Callable[[], Schedule]


class Improvement:
    """A search under way. ``best`` is there once it has begun."""

    def __init__(
        self,
        request: Request,
        effort: Effort,
        random: Random,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._request = request
        self._effort = effort
        self._random = random
        self._on_progress = on_progress or (lambda _: None)
        self.trials = [Trial(layout) for layout in request.layouts()]
        self.bound_s = min(
            layout_bound_s(trial.layout, request.split_backward) for trial in self.trials
        )
        self.best: Best | None = None

    def begin_with_builtins(self) -> None:
        """Start from every built-in schedule that fits."""
        request = self._request
        costs = request.costs
        if request.cap_bytes is None:  # made to fit counts, not bytes
            costs = replace(costs, activation_bytes=(), pending_bytes=())
        count, most = request.num_microbatches, request.max_activations
        wanted = Wanted(costs, request.num_ranks, count, most)
        for schedule in builtin_schedules(wanted):
            self._offer_builtin(schedule)
        for trial in self.trials:
            if not trial.is_whole:
                trial.add_builtins(wanted)

    def begin_with_rules(self) -> None:
        """Start from rows that are listed by rules."""
        for trial in self.trials:
            share = 0.1 * self._effort.total / len(self.trials)
            each = _LISTING * trial.small.num_operations
            num_rules = min(300, max(10, int(share / each)))
            for number in range(num_rules):
                if number > 1 and (self._is_done or trial.is_done):
                    break
                trial.add_listed(1, self._random)
            if not trial.is_done:
                trial.add_refilled(self._random, 5)
            self._effort.spent += num_rules * each
            again = _RELISTING * trial.small.num_operations
            num_starts = min(_MOST_RELISTED, int(share / (8 * again)))
            self._effort.spent += again * trial.add_relisted(num_starts)
            self._offer_start(trial, trial.starts[0], "listed")
            if not trial.is_whole:
                self._begin_in_full(trial)

    def _begin_in_full(self, trial: Trial) -> None:
        """Of many micro-batches: what the best rules for few make of all of them."""
        for start in trial.listed_in_full():
            self._offer_rows(trial, start, "listed")
        for known in sorted(trial.known, key=lambda s: s.value_s)[:2]:
            for start in trial.refilled_in_full(known.rows, self._random):
                self._offer_rows(trial, start, "refilled")

    def improve(self) -> None:
        """Anneal: each layout a little, then the best one, and a second that comes close."""
        left = max(0.0, self._effort.total - self._effort.spent)
        if not all(trial.is_whole for trial in self.trials):
            left *= 0.3  # most of what is gained is lost again when it is unrolled
        if self.best is not None and self.best.value_s <= _CLOSE * self.bound_s:
            left *= _CLOSE_SHARE
        if len(self.trials) > 1:
            for trial in self.trials:
                self._anneal(trial, 0, 0.3 * left / len(self.trials))
            left *= 0.7
        chosen = sorted(self.trials, key=lambda t: t.starts[0].value_s)[:2]
        nearly_s = _NEARLY * chosen[0].starts[0].value_s
        chosen = [trial for trial in chosen if trial.starts[0].value_s <= nearly_s]
        largest = max(trial.small.num_operations for trial in chosen)
        num_starts = 2 if left > _THOROUGH * len(chosen) * largest**2 else 1
        for index in range(num_starts):
            for trial in chosen:
                self._anneal(trial, index, left / num_starts / len(chosen))

    def solve(self, seed: int) -> None:
        """Let CP-SAT improve and prove the best of every layout."""
        for trial in self.trials:
            if self._is_done:
                return
            if not trial.is_whole or trial.is_done:
                continue
            known = min(trial.starts, key=lambda s: s.value_s)
            work = _SOLVING * self._effort.factor / len(self.trials)
            solved = exact.solve(trial.small, known.rows, work, seed)
            trial.bound_s = max(trial.bound_s, solved.bound_s)
            start = measured(trial.small, solved.rows) if solved.rows is not None else None
            if start is not None and start.value_s < known.value_s:
                trial.starts.insert(0, start)
                self._offer_start(trial, start, "solved")
            self._raise_bound()

    def _raise_bound(self) -> None:
        """What holds for all layouts holds for all that is allowed, if they cover all of it."""
        request = self._request
        covered = request.split_backward is not None or all(t.layout.split for t in self.trials)
        if covered and request.weight_copies == 1:
            self.bound_s = max(self.bound_s, min(trial.bound_s for trial in self.trials))

    @property
    def is_solvable(self) -> bool:
        """Whether the problem is small enough for CP-SAT to be worth its while."""
        return sum(trial.small.num_operations for trial in self.trials) <= _SOLVABLE

    @property
    def _is_done(self) -> bool:
        if self._effort.is_over:
            return True
        return self.best is not None and self.best.value_s <= self.bound_s * (1 + 1e-9)

    def _anneal(self, trial: Trial, index: int, work: float) -> None:
        """Anneal the start at ``index`` of ``trial``, best first."""
        if self._is_done or trial.is_done or index >= len(trial.starts):
            return
        start = trial.starts[index]
        num_moves = int(min(work / trial.small.num_operations, _MOST_MOVES * self._effort.factor))
        if num_moves <= _FEWEST * trial.small.num_operations:
            return
        warm = min(0.5, num_moves / (1000 * trial.small.num_operations))
        warmth = Warmth(num_moves, warm * trial.step_s, 0.06 * warm * trial.step_s)
        target_s = trial.small_bound_s * (1 + 1e-9)
        found = anneal(trial.small, start.rows, warmth, self._random, target_s)
        self._effort.spent += num_moves * trial.small.num_operations
        trial.starts[index] = better = Start(found.value_s, found.rows)
        self._offer_start(trial, better, "annealed")

    def _offer_start(self, trial: Trial, start: Start, method: str) -> None:
        for longer in trial.lengthened(start):
            name = method if trial.is_whole else f"{method}, unrolled"
            self._offer_rows(trial, longer, name)

    def _offer_rows(self, trial: Trial, start: Start, method: str) -> None:
        def build() -> Schedule:
            return trial.schedule(start.rows)

        self._offer(Best(start.value_s, method, trial.layout.recompute, build))

    def _offer_builtin(self, schedule: Schedule) -> None:
        name = f"built-in {schedule.name}"
        taken = False
        for trial in self.trials:
            rows = rows_of(trial.full, schedule)
            start = measured(trial.full, rows) if rows is not None else None
            if start is not None:
                taken = True
                self._offer_rows(trial, start, name)
                if trial.is_whole:
                    trial.add(start.rows)
                else:
                    trial.known.append(start)
        if not taken and self._may_be(schedule):
            timeline = simulate(schedule, self._request.costs)
            value_s = timeline.makespan_s
            if self._request.objective == "rank":
                value_s = timeline.rank_span_s
            self._offer(Best(value_s, name, frozenset(), lambda: schedule))

    def _may_be(self, schedule: Schedule) -> bool:
        """Whether ``schedule`` is one of those asked for, though it is no rows of any layout."""
        request = self._request
        if request.placement not in {None, schedule.placement}:
            return False
        if schedule.placement.num_replicas > request.weight_copies:
            return False
        kinds = {action.kind for row in schedule.actions for action in row}
        banned = {True: {ActionKind.B}, False: {ActionKind.I, ActionKind.W}}
        if request.split_backward is not None and kinds & banned[request.split_backward]:
            return False
        caps = request.caps
        return caps is None or all(map(int.__le__, peaks(schedule, request.memory()), caps))

    def _offer(self, best: Best) -> None:
        if self.best is not None and best.value_s >= self.best.value_s * (1 - 1e-12):
            return
        self.best = best
        share = min(1.0, self._effort.spent / self._effort.total)
        self._on_progress(Progress(best.value_s, self.bound_s, best.method, share))
