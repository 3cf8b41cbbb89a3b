"""The best V schedule under a cap that following building blocks finds.

Blocks are spaced for equal times. For other costs, each is followed in several manners, at the
true times and as a draft for equal times that is then put on the true clock, and the schedule
whose longest rank is shortest is taken. First every block is tried in two manners, then the best
blocks in all; with many micro-batches, on a shorter run of them. How much is tried depends on the
size alone, so that large schedules take seconds, too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import chain, islice, product, zip_longest
from typing import TYPE_CHECKING, NamedTuple

from intandem.costs import CostModel
from intandem.errors import ScheduleError
from intandem.ir import Placement
from intandem.schedules.clock import Clock
from intandem.schedules.replay import refilled, replayed
from intandem.schedules.setting import setting_within
from intandem.schedules.v_blocks import fitting_blocks
from intandem.schedules.v_follow import Manner, followed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from intandem.ir import Schedule
    from intandem.schedules.setting import Setting
    from intandem.schedules.v_blocks import Block

_EFFORT = 200_000
"""Actions to put on clocks, over all trials."""

_LEAST_TRIALS = 8

_NUM_FAVOURITES = 2
"""Blocks, of each manner that is tried first, that are tried in all manners before the others."""

_REFILL_PATIENCE = 0.5

_HINT_S = 1e-3
"""Latency in drafts: it decides between what would otherwise start at the same time."""


class _Bench:
    """What builds work on: the setting, and drafts that several of them put on the true clock."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._drafts: dict[tuple[Manner, float, Block], Clock] = {}

    def draft(self, manner: Manner, hint_s: float, block: Block) -> Clock:
        """Return ``block`` followed as if all took as long, with a latency of ``hint_s``."""
        key = manner, hint_s, block
        if key not in self._drafts:
            setting = self.setting
            costs = CostModel.uniform(setting.placement.num_stages, transfer_s=hint_s)
            self._drafts[key] = followed(replace(setting, costs=costs), block, manner)
        return self._drafts[key]


class _Trial(NamedTuple):
    length_s: tuple[float, float]
    place: int
    block: Block
    build: Callable[[_Bench, Block], Clock]


def schedule_of_block(
    name: str, block: Block, num_microbatches: int, costs: CostModel | None
) -> Schedule:
    """Follow ``block``; with ``costs``, return the best schedule found in the same memory.

    Args:
        name: what to call it.
        block: of as many ranks as there are.
        num_microbatches: M, at least 1.
        costs: of all stages, two per rank.

    Raises:
        ValueError: if ``costs`` are of another number of stages.
    """
    placement = Placement.vee(len(block.passes))
    setting = setting_within(placement, num_microbatches, costs, block.peak)
    clock = best_v_clock(setting, (block,)) if costs else followed(setting, block, Manner())
    return clock.schedule(name)


def best_v_clock(setting: Setting, named: tuple[Block, ...] = ()) -> Clock:
    """Return the best schedule found.

    Args:
        setting: on a V placement.
        named: blocks to begin with. What they take where stages are of unequal size is allowed.

    Raises:
        ScheduleError: if a rank cannot hold an activation of each of its stages.
    """
    num_ranks = setting.placement.num_ranks
    for block in named:
        cap = tuple(map(max, setting.room.cap, block.needs(setting.room)))
        setting = replace(setting, room=replace(setting.room, cap=cap))
    blocks = list(dict.fromkeys([*named, *fitting_blocks(num_ranks, setting.room)]))
    if not blocks:
        msg = f"caps {setting.room.cap}: a rank must hold an activation of each of its two stages"
        raise ScheduleError(msg)
    num_microbatches = min(setting.num_microbatches, 3 * num_ranks + 8)
    short = _Bench(replace(setting, num_microbatches=num_microbatches))
    num_trials = _EFFORT // (6 * num_ranks * num_microbatches)
    num_trials = max(num_trials, _LEAST_TRIALS)
    stride = math.ceil(len(blocks) / max(num_trials // (2 * len(_QUICK)), 1))
    rounds = [_try(short, product(blocks[::stride], [build])) for build in _QUICK]
    favourites = [trial.block for tried in rounds for trial in tried[:_NUM_FAVOURITES]]
    ranked = list(dict.fromkeys([*named, *favourites, *blocks]))
    good, rest = ranked[: len(favourites)], ranked[len(favourites) :]
    pairs = chain(product(_BUILDS, good), product(_BUILDS, rest))
    more = ((block, build) for build, block in pairs)
    tried = sorted(
        [*chain(*rounds), *_try(short, islice(more, num_trials - sum(map(len, rounds))))],
        key=lambda trial: trial[:2],
    )
    whole = _Bench(setting)
    best = [trial.build(whole, trial.block) for trial in tried[:2]]
    return min(best, key=Clock.length_s)


def _try(
    bench: _Bench, pairs: Iterable[tuple[Block, Callable[[_Bench, Block], Clock]]]
) -> list[_Trial]:
    """Return all, best first."""
    tried = [
        _Trial(build(bench, block).length_s(), place, block, build)
        for place, (block, build) in enumerate(pairs)
    ]
    return sorted(tried, key=lambda trial: trial[:2])


def _follow(manner: Manner, bench: _Bench, block: Block) -> Clock:
    return followed(bench.setting, block, manner)


def _replay(manner: Manner, hint_s: float, bench: _Bench, block: Block) -> Clock:
    return replayed(bench.setting, bench.draft(manner, hint_s, block))


def _refill(manner: Manner, hint_s: float, bench: _Bench, block: Block) -> Clock:
    return refilled(bench.setting, bench.draft(manner, hint_s, block), _REFILL_PATIENCE)


def _builds() -> tuple[Callable[[_Bench, Block], Clock], ...]:
    """Every manner, those that win most often first."""
    shares = ((0.0, 0.5), (0.0, 1.0), (1.0, 1.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.0), (1.0, 0.5))
    own = [
        partial(_follow, Manner(reach, *share)) for share, reach in product(shares, (4.0, math.inf))
    ]
    corners = ((0.0, 0.0), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0))
    drafts = [
        partial(put, Manner(reach, *share), _HINT_S)
        for share, reach, put in product(corners, (6.0, math.inf, 4.0), (_refill, _replay))
    ]
    level = [partial(_refill, Manner(reach), 0.0) for reach in (4.0, 6.0, math.inf)]
    pairs = zip_longest(own, level + drafts)
    return tuple(build for pair in pairs for build in pair if build is not None)


_QUICK = (
    partial(_follow, Manner(4.0, 0.0, 0.5)),
    partial(_follow, Manner(math.inf, 1.0, 1.0)),
    partial(_refill, Manner(6.0, 0.0, 0.0), _HINT_S),
    partial(_replay, Manner(math.inf, 0.5, 0.5), _HINT_S),
)

_BUILDS = _builds()
