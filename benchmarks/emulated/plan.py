"""What is rehearsed: settings, and the programs and costs of each."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from intandem.costs import CostModel
from intandem.lowering import lower
from intandem.rehearsal import Part
from intandem.schedules import build_schedule
from intandem.schedules.registry import leaves_open

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v")
THEIRS = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "interleaved-zb": "InterleavedZeroBubble",
    "zb-v": "ZBVZeroBubble",
}
"""torch's schedules by the names of ours that come nearest; V = 2 where there is a V."""

BOUNDARY_BYTES = 65536
SHARES = {"equal": (1.0,), "unequal": (1.0, 1.3, 0.8, 1.1)}
"""How long stages of a P-th of the model take, relative to the first, over and over."""

SIDES = ("local", "shared", "gloo", "torch")
MOST_RANKS = {"local": 16, "shared": 8, "gloo": 8, "torch": 8}


class Setting(NamedTuple):
    """What runs one after another on the same ranks.

    Attributes:
        side: ``local``, ``shared``, ``gloo`` or ``torch``.
        num_ranks: P; there are 4P micro-batches.
        action_ms: what F, I and W of a P-th of the model take each.
        stages: ``equal`` or ``unequal``.
        schedules: by our names.
    """

    side: str
    num_ranks: int
    action_ms: int
    stages: str
    schedules: tuple[str, ...]

    @property
    def num_microbatches(self) -> int:
        """M."""
        return 4 * self.num_ranks


def default_plan() -> list[Setting]:
    """A quarter of an hour: unequal stages at 10 ms only, 16 ranks as a look."""
    plan = []
    for side, ranks in product(SIDES, (4, 8)):
        names = ("1f1b", "interleaved", "zb-v") if side == "torch" else SCHEDULES[1:]
        plan += [Setting(side, ranks, ms, "equal", names) for ms in (2, 10, 20)]
        plan.append(Setting(side, ranks, 10, "unequal", names))
    return [*plan, Setting("local", 16, 10, "equal", ("1f1b", "zb-v"))]


def quick_plan() -> list[Setting]:
    """A look: P = 4, 10 ms."""
    return [Setting(side, 4, 10, "equal", ("1f1b", "zb-v")) for side in SIDES]


def full_plan(
    sides: Sequence[str], ranks: Sequence[int], ms: Sequence[int], stages: Sequence[str],
    schedules: Sequence[str],
) -> list[Setting]:  # fmt: skip
    """Return everything there is of what is asked for."""
    found = []
    for side, num_ranks, action_ms, kind in product(sides, ranks, ms, stages):
        names = tuple(n for n in schedules if (n in THEIRS if side == "torch" else n != ""))
        if num_ranks <= MOST_RANKS[side] and names:
            found.append(Setting(side, num_ranks, action_ms, kind, names))
    return found


def costs_of(setting: Setting, num_stages: int) -> CostModel:
    """Return the seconds of every stage; those of a rank share what a P-th of the model takes."""
    per_rank, shares = num_stages // setting.num_ranks, SHARES[setting.stages]
    stage_s = tuple(
        setting.action_ms / 1e3 * shares[stage // per_rank % len(shares)] / per_rank
        for stage in range(num_stages)
    )
    return CostModel(stage_s, stage_s, stage_s, boundary_bytes=(BOUNDARY_BYTES,) * (num_stages - 1))


def parts_of(setting: Setting) -> Iterator[Part]:
    """Yield a program and its costs for each schedule; one that is made for its costs gets them."""
    for name in setting.schedules:
        counts = {"num_ranks": setting.num_ranks, "num_microbatches": setting.num_microbatches}
        schedule = build_schedule(name, **counts)
        costs = costs_of(setting, schedule.num_stages)
        if leaves_open(name, "costs"):
            schedule = build_schedule(name, **counts, costs=costs)
        yield Part(lower(schedule), costs)
