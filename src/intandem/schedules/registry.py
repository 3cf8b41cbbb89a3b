"""Schedules by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from intandem.argument_types import require_int, require_number, require_type
from intandem.costs import CostModel
from intandem.errors import ScheduleError
from intandem.schedules.chimera import chimera
from intandem.schedules.counts import require_counts
from intandem.schedules.dualpipe import dualpipe
from intandem.schedules.dualpipe_v import dualpipe_v
from intandem.schedules.forward_only import forward_only
from intandem.schedules.gis import gis
from intandem.schedules.gis_h import gis_h
from intandem.schedules.gpipe import gpipe
from intandem.schedules.hanayo import hanayo
from intandem.schedules.interleaved import interleaved
from intandem.schedules.interleaved_bfs import interleaved_bfs
from intandem.schedules.interleaved_zb import interleaved_zb
from intandem.schedules.naive import naive
from intandem.schedules.one_f_one_b import one_f_one_b
from intandem.schedules.one_f_one_b_eager import one_f_one_b_eager
from intandem.schedules.v_half import v_half
from intandem.schedules.v_min import v_min
from intandem.schedules.zb_1p import zb_1p
from intandem.schedules.zb_2p import zb_2p
from intandem.schedules.zb_h1 import zb_h1
from intandem.schedules.zb_h2 import zb_h2
from intandem.schedules.zb_v import zb_v

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.ir import Schedule


@dataclass(frozen=True, slots=True)
class Family:
    """A schedule that people know by name.

    Attributes:
        name: what they call it.
        build: takes the numbers of ranks and micro-batches, and what ``takes`` lists by keyword.
        takes: keywords of ``build_schedule`` that matter to it; others are refused.
    """

    name: str
    build: Callable[..., Schedule]
    takes: tuple[str, ...] = ()


_STAGES = ("stages_per_rank",)
_MADE_TO_FIT = ("costs", "max_activations")

FAMILIES = (
    Family("naive", naive),
    Family("gpipe", gpipe),
    Family("1f1b", one_f_one_b),
    Family("1f1b-eager", one_f_one_b_eager),
    Family("interleaved", interleaved, _STAGES),
    Family("interleaved-bfs", interleaved_bfs, _STAGES),
    Family("gis", gis, _STAGES),
    Family("gis-h", gis_h, _STAGES),
    Family("chimera", chimera),
    Family("hanayo", hanayo, _STAGES),
    Family("dualpipe", dualpipe),
    Family("dualpipe-v", dualpipe_v),
    Family("zb-h1", zb_h1),
    Family("zb-h2", zb_h2),
    Family("zb-1p", zb_1p, _MADE_TO_FIT),
    Family("zb-2p", zb_2p, _MADE_TO_FIT),
    Family("interleaved-zb", interleaved_zb, _STAGES),
    Family("zb-v", zb_v, _MADE_TO_FIT),
    Family("v-half", v_half, ("costs",)),
    Family("v-min", v_min, ("costs",)),
    Family("forward-only", forward_only, _STAGES),
)

_BY_NAME = {family.name: family for family in FAMILIES}


def schedule_names() -> tuple[str, ...]:
    """Names that ``build_schedule`` knows, simplest schedule first."""
    return tuple(_BY_NAME)


def build_schedule(
    name: str,
    *,
    num_ranks: int,
    num_microbatches: int,
    stages_per_rank: int | None = None,
    costs: CostModel | None = None,
    max_activations: int | None = None,
) -> Schedule:
    """Build the schedule called ``name``.

    Args:
        name: one of ``schedule_names()``.
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.
        stages_per_rank: V, where the schedule leaves it open.
        costs: of all stages, for schedules that are made for given costs; by default every action
            takes one second. Schedules that are not made for costs ignore them.
        max_activations: stage activations that a rank may hold, where the schedule leaves it open,
            counted from F to the end of W, whatever bytes the costs give them. Without it, such
            schedules keep within the bytes of P or 2P activations, of which I may free a part.

    Raises:
        ScheduleError: if there is no such schedule, and lists the names there are; or if it has
            no order for these counts, and says which to use.
        ValueError: if a count is less than 1, or is one that the schedule does not take.
        TypeError: if an argument is of another type.
    """
    require_type("name", name, str, "a schedule's name")
    if name not in _BY_NAME:
        raise ScheduleError(unknown_schedule(name))
    require_int("num_ranks", num_ranks)
    require_int("num_microbatches", num_microbatches)
    require_int("stages_per_rank", stages_per_rank)
    require_number("max_activations", max_activations)
    if costs is not None:
        require_type("costs", costs, CostModel, "a CostModel")
    require_counts(num_ranks, num_microbatches)
    family = _BY_NAME[name]
    given = {"stages_per_rank": stages_per_rank, "max_activations": max_activations}
    asked: dict[str, object] = {k: v for k, v in given.items() if v is not None}
    for key in asked:
        if key not in family.takes:
            takers = ", ".join(f.name for f in FAMILIES if key in f.takes) or "none"
            msg = f"schedule {name!r} takes no {key} ({key}={asked[key]}); those that do: {takers}"
            raise ValueError(msg)
    if costs is not None and "costs" in family.takes:
        counts = max_activations is not None
        asked["costs"] = replace(costs, activation_bytes=(), pending_bytes=()) if counts else costs
    return family.build(num_ranks, num_microbatches, **asked)


def leaves_open(name: str, keyword: str) -> bool:
    """Tell whether ``keyword`` of ``build_schedule`` matters to the schedule called ``name``."""
    return name in _BY_NAME and keyword in _BY_NAME[name].takes


def unknown_schedule(name: str) -> str:
    """Say that no schedule is called ``name``, which there are, and which is nearest."""
    nearest = get_close_matches(name.lower(), _BY_NAME, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown schedule {name!r}; known: {', '.join(_BY_NAME)}{hint}"
