"""One layout under search: where it starts, what it is worth, and the way to full length."""

from __future__ import annotations

import itertools
import math
from bisect import insort
from dataclasses import dataclass, replace
from operator import add
from typing import TYPE_CHECKING

from intandem.ir import Schedule
from intandem.planner.builtin import Wanted, builtin_schedules, rows_of
from intandem.planner.clock import fits, run_rows
from intandem.planner.construction import list_rows, refilled_rows
from intandem.planner.pattern import unroll
from intandem.planner.problem import Problem
from intandem.planner.relisting import relisted
from intandem.planner.starting import busiest_s, rule_sets
from intandem.simulator import Allowed, lower_bound_s

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from intandem.planner.construction import Rules
    from intandem.planner.problem import Layout, Rows

_LARGE = 9_000
"""Operations from which on a pattern is searched for on fewer micro-batches."""

_LENGTHS = (1, 2, 3, 4, 6, 12)
"""Micro-batches per repeated window; all divide 12."""

_PATIENCES = (1.0, 0.5)
"""Shares of an operation by which it may not delay others, when starts are listed again."""


@dataclass(frozen=True, slots=True)
class Start:
    """Rows that run and fit, and what the objective makes of them."""

    value_s: float
    rows: Rows


class Trial:
    """A layout, the problem that is worked on, and the best rows of it so far.

    Attributes:
        layout: what is asked.
        full: the problem of all micro-batches.
        small: the problem that is worked on: ``full``, or one of fewer micro-batches.
        starts: rows of ``small``, best first.
        known: rows of ``full`` that are known from the beginning.
        bound_s: what the objective is at least; ``small_bound_s`` that of ``small``.
        step_s: seconds that one micro-batch takes on the busiest rank.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.full = Problem(layout)
        count = _small_count(layout)
        whole = count == layout.num_microbatches
        self.small = self.full if whole else Problem(replace(layout, num_microbatches=count))
        self.starts: list[Start] = []
        self.known: list[Start] = []
        self.bound_s = layout_bound_s(layout, layout.split)
        self.small_bound_s = (
            self.bound_s if whole else layout_bound_s(self.small.layout, layout.split)
        )
        self.step_s = busiest_s(layout)
        self._listed: list[tuple[float, int, Rules]] = []
        self._rules: Iterator[Rules] | None = None

    @property
    def is_done(self) -> bool:
        """Whether what is worked on cannot be shorter."""
        return bool(self.starts) and self.starts[0].value_s <= self.small_bound_s * (1 + 1e-9)

    def schedule(self, rows: Rows) -> Schedule:
        """Return ``rows`` of ``full`` as a schedule."""
        layout = self.layout
        actions = self.full.actions(rows)
        return Schedule("searched", layout.placement, layout.num_microbatches, actions)

    @property
    def is_whole(self) -> bool:
        """Whether what is worked on has all micro-batches."""
        return self.small is self.full

    def add_builtins(self, wanted: Wanted) -> None:
        """Start from every built-in schedule that fits, of as many micro-batches as worked on."""
        wanted = replace(wanted, num_microbatches=self.small.num_microbatches)
        for schedule in builtin_schedules(wanted):
            rows = rows_of(self.small, schedule)
            if rows is not None:
                self.add(rows)

    def add_listed(self, num_rules: int, random: Random) -> None:
        """Start from rows by rules, the likely ones first."""
        if self._rules is None:
            self._rules = rule_sets(self.small, random)
        for rules in itertools.islice(self._rules, num_rules):
            start = self.add(list_rows(self.small, rules))
            if start is not None and not self.is_whole:
                self._listed.append((start.value_s, len(self._listed), rules))

    def add_refilled(self, random: Random, num_starts: int) -> None:
        """Start from the best so far with W's put anew."""
        if not self.layout.split:
            return
        plain = list(itertools.islice(rule_sets(self.small, random), 2))
        for start, rules in itertools.product(self.starts[:num_starts], plain):
            for eager in (True, False):
                self.add(refilled_rows(self.small, start.rows, replace(rules, eager=eager)))

    def add_relisted(self, num_starts: int) -> int:
        """List the best so far again, from the end and from the beginning; return how often."""
        num_passes = 0
        for start, patience in itertools.product(self.starts[:num_starts], _PATIENCES):
            latest, best_s = start, math.inf
            while latest.value_s < best_s and not self.is_done:
                best_s, rows = latest.value_s, latest.rows
                for from_end in (True, False):
                    rows = relisted(self.small, rows, patience, from_end=from_end)
                    num_passes += 1
                    latest = self.add(rows) or latest
        return num_passes

    def listed_in_full(self) -> Iterator[Start]:
        """Yield rows of all micro-batches by the rules that were best for few."""
        for _, _, rules in sorted(self._listed)[:3]:
            yield from filter(None, [measured(self.full, list_rows(self.full, rules))])

    def refilled_in_full(self, rows: Rows, random: Random) -> Iterator[Start]:
        """Yield rows of all micro-batches with W's put anew."""
        if self.layout.split:
            for rules in itertools.islice(rule_sets(self.full, random), 2):
                again = refilled_rows(self.full, rows, rules)
                yield from filter(None, [measured(self.full, again)])

    def add(self, rows: Rows) -> Start | None:
        """Start from ``rows`` too, if they run, fit, and are new."""
        start = measured(self.small, rows)
        if start is not None and all(start.rows != other.rows for other in self.starts):
            insort(self.starts, start, key=lambda s: s.value_s)
        return start

    def lengthened(self, start: Start) -> Iterator[Start]:
        """Yield ``start`` at full length, in the best ways found."""
        if self.is_whole:
            yield start
            return
        probe = Problem(
            replace(self.layout, num_microbatches=self.small.num_microbatches + _LENGTHS[-1])
        )
        tried: list[tuple[float, int, Rows]] = []
        for length in _LENGTHS:
            for rows in unroll(self.small, start.rows, probe, (length,)):
                found = measured(probe, rows)
                if found is not None:
                    tried.append((found.value_s, len(tried), found.rows))
        for _, _, rows in sorted(tried)[:2]:
            longer = unroll(probe, rows, self.full, _LENGTHS)
            for full in itertools.islice(longer, 3):
                if (found := measured(self.full, full)) is not None:
                    yield found


def layout_bound_s(layout: Layout, split_backward: bool | None) -> float:
    """Return what the objective of ``layout`` is at least."""
    costs, memory = layout.costs, layout.memory
    again_s = [f if s in layout.recompute else 0.0 for s, f in enumerate(costs.forward_s)]
    held = replace(
        costs,
        backward_input_s=tuple(map(add, costs.backward_input_s, again_s)),
        backward_s=tuple(map(add, costs.backward_s, again_s)),
        activation_bytes=memory.forward,
        pending_bytes=memory.pending,
    )
    allowed = Allowed(layout.objective, None, layout.caps, split_backward)
    return lower_bound_s(held, layout.placement, layout.num_microbatches, allowed)


def measured(problem: Problem, rows: Rows) -> Start | None:
    """Return what ``rows`` are worth; None if they do not fit or do not run."""
    if not all(map(fits, itertools.repeat(problem), rows, problem.caps)):
        return None
    run = run_rows(problem, rows)
    return None if run is None else Start(run.value_s, rows)


def _small_count(layout: Layout) -> int:
    """Micro-batches with which there is a steady state, and a multiple of 12 fewer than asked."""
    count = layout.num_microbatches
    if count * layout.num_lanes <= _LARGE:
        return count
    least = max(5 * layout.placement.num_ranks // 2 + 8, 2 * _LENGTHS[-1])
    return count - max(0, (count - least) // _LENGTHS[-1] * _LENGTHS[-1])
