"""What is compared: sides by name, and which of them a run compares when none are asked for.

A side's name is ``kind[:schedule[:cuts]]``; ``cuts`` are the blocks that torch's and DeepSpeed's
stages after the first begin with.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from intandem.schedules import schedule_names

SIZES = {"vocab": 4096, "seq": 128, "width": 256, "num_blocks": 8, "num_heads": 8, "rows": 2}
"""Of the GPT; ``rows`` are those of a micro-batch. What a run uses unless told otherwise."""

TRAINING = tuple(name for name in schedule_names() if name != "forward-only")

KINDS = {
    "one": "one process on one core, one micro-batch after the other",
    "threads": "the same with two intra-op threads",
    "ceiling": "two such processes on one core each, each with whole steps of its own",
    "local": "intandem, ranks as threads with an optimizer each: steps overlap",
    "local-barrier": "intandem, ranks as threads, one optimizer for all: a barrier after each step",
    "shared": "intandem, ranks as processes that share memory: steps overlap",
    "shared-barrier": "the same with torch.distributed.barrier() after each step",
    "gloo": "intandem, ranks as processes, messages over Gloo: steps overlap",
    "gloo-barrier": "the same with torch.distributed.barrier() after each step",
    "torch": "torch.distributed.pipelining, no barrier of ours between steps",
    "torch-barrier": "the same with torch.distributed.barrier() after each step",
    "deepspeed": "DeepSpeed's pipeline engine (1F1B), no barrier of ours between steps",
}
ALONE = ("one", "threads", "ceiling")
"""Kinds without a pipeline: a step of theirs is like the next."""


class Side(NamedTuple):
    """A side's name in its parts."""

    kind: str
    schedule: str = ""
    cuts: tuple[int, ...] = ()

    @property
    def num_processes(self) -> int:
        """How many processes it is."""
        return 1 if self.kind in {"one", "threads", "local", "local-barrier"} else 2

    @property
    def is_launched(self) -> bool:
        """Whether its processes are ranks of one group."""
        return self.num_processes == 2 and self.kind != "ceiling"

    def steps_in_turn(self, num_steps: int) -> int:
        """Steps of one process in a turn, where pipelines do ``num_steps``.

        Without a pipeline a step is like the next, so that fewer say as much in less time.
        """
        return max(1, num_steps // 2) if self.kind in ALONE else num_steps

    def steps_done(self, num_steps: int) -> int:
        """Steps that all its processes have done together after such a turn."""
        return self.steps_in_turn(num_steps) * (2 if self.kind == "ceiling" else 1)


def parse_side(name: str) -> Side:
    """Return what a name stands for.

    Raises:
        ValueError: if it is no side, and says what is.
    """
    kind, _, rest = name.partition(":")
    schedule, _, cuts = rest.partition(":")
    if kind not in KINDS:
        msg = f"{name!r} is no side; expected one of {', '.join(KINDS)}"
        raise ValueError(msg)
    if kind == "deepspeed":  # its only schedule is 1F1B
        schedule, cuts = "1F1B", schedule
    return Side(kind, schedule, tuple(int(cut) for cut in cuts.split(",") if cut))


TORCH = (
    "torch:GPipe:4", "torch:GPipe:5", "torch:1F1B:4", "torch:1F1B:5",
    "torch:Interleaved1F1B:2,4,6", "torch:Interleaved1F1B:3,5,7",
    "torch:LoopedBFS:2,4,6", "torch:LoopedBFS:3,5,7",
    "torch:InterleavedZeroBubble:2,4,6", "torch:InterleavedZeroBubble:3,5,7",
    "torch:ZBVZeroBubble:2,4,6", "torch:ZBVZeroBubble:2,5,7",
    "torch:DualPipeV:2,4,6", "torch:DualPipeV:2,5,7",
)  # fmt: skip
"""Even in number, or balanced by hand: the head costs as much as 1.3 blocks, so that 5 | 3 blocks,
3 2 | 2 1 in a loop and 2 1 | 3 2 in a V are the least uneven there are."""


class Comparison(NamedTuple):
    """Sides that take turns.

    Attributes:
        microbatches: M.
        sides: the first is what gradients are compared with.
        num_rounds: how often each has a turn.
        num_steps: of a turn, with a pipeline.
        num_starts: how often all processes are started; the rounds are shared out among the starts.
    """

    microbatches: int
    sides: tuple[str, ...]
    num_rounds: int
    num_steps: int
    num_starts: int = 1

    def of_start(self, index: int, num_rounds: int) -> Comparison:
        """Return what runs with one of the starts: all sides but the first in another order.

        Which is started first, and next to which it has its turns, makes a side some percent
        slower or faster.
        """
        first, *others = self.sides
        Random(index).shuffle(others)
        return self._replace(sides=(first, *others), num_rounds=num_rounds, num_starts=1)


_PEERS = ("torch:1F1B:5", "torch:Interleaved1F1B:2,4,6", "torch:Interleaved1F1B:3,5,7")
HEADLINE = (
    "one", "ceiling", "shared-barrier:1f1b", "shared:1f1b", "shared:zb-h1", "shared:zb-2p",
    "shared-barrier:zb-2p", *_PEERS, "deepspeed:5", "gloo:1f1b", "gloo:zb-2p", "local:1f1b",
    "local:zb-2p", "local-barrier:zb-2p",
)  # fmt: skip
_OVERLAP = (
    "one", "ceiling", "shared:zb-2p", "shared-barrier:zb-2p", "local:zb-2p", "local-barrier:zb-2p",
)  # fmt: skip
"""zb-2p: with a barrier its ranks wait for each other's ends; 1f1b and zb-h1 end as they begin."""
_FEW = ("one", "ceiling", "shared:1f1b", "shared:zb-2p", _PEERS[-1], "deepspeed:5")
_OURS = ("shared", "local")
_EVERY = tuple(f"{kind}:{name}" for name in TRAINING for kind in _OURS)
_BATCH = 10
"""Sides of one comparison: all are alive at once, and each takes memory."""


def _every(microbatches: int) -> list[Comparison]:
    """All schedules and all peers, a few at a time, each time with the same references."""
    both = ("one", "ceiling", *(f"{kind}:1f1b" for kind in _OURS))
    rest = [name for name in (*_EVERY, *TORCH) if name not in both]
    rest += ["threads", "gloo:1f1b", "shared-barrier:1f1b", "deepspeed:4", "deepspeed:5"]
    return [
        Comparison(microbatches, (*both, *rest[begin : begin + _BATCH]), 5, 2)
        for begin in range(0, len(rest), _BATCH)
    ]


PARTS = {
    "quick": [Comparison(8, (*_FEW, "local:zb-h1"), 3, 2)],
    "headline": [Comparison(16, HEADLINE, 15, 3, 3)],
    "overlap": [Comparison(m, _OVERLAP, 25, 4) for m in (8, 16)],
    "sizes": [Comparison(8, _FEW, 3, 3), Comparison(32, _FEW, 2, 2)],
    "every": [comparison for m in (8, 16, 32) for comparison in _every(m)],
}
"""What a run compares, by what it is called."""
