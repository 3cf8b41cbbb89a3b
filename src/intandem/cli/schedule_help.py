"""Help texts that name schedules, made from the registry, and options of a schedule's size."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import tyro

from intandem.schedules import schedule_names
from intandem.schedules.registry import FAMILIES

if TYPE_CHECKING:
    from intandem.schedules.registry import Family

NAMES = ", ".join(schedule_names())
"""Every schedule, simplest first, for a help text."""


def takers(key: str) -> str:
    """Names of the schedules that take ``key`` of ``build_schedule``."""
    return ", ".join(family.name for family in FAMILIES if key in family.takes) or "none"


def title_of(family: Family) -> str:
    """What its module says of it first, without the source's address."""
    module = sys.modules[family.build.__module__]
    first = (module.__doc__ or family.name).strip().splitlines()[0]
    return first.partition(": http")[0].partition(" (https")[0].rstrip(".:")


def schedule_list() -> str:
    """A line for each schedule, its name and what it is."""
    width = max(map(len, schedule_names()))
    return "\n".join(f"  {family.name:<{width}}  {title_of(family)}" for family in FAMILIES)


RanksOption = Annotated[
    int | None, tyro.conf.arg(metavar="P", help="Pipeline ranks; needed with a name.")
]
MicrobatchesOption = Annotated[
    int | None, tyro.conf.arg(metavar="M", help="Micro-batches per step; needed with a name.")
]
StagesPerRankOption = Annotated[
    int | None,
    tyro.conf.arg(
        metavar="V", help=f"Stages that each rank holds, for {takers('stages_per_rank')}."
    ),
]
