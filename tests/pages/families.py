"""What docs/schedules.md says of each schedule besides its module's docstring."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """When to use a schedule, and its bubble.

    Attributes:
        when: to use it, in a sentence or two.
        formula: of the bubble ratio with F = I = W and no transfers; empty where there is none.
        ratio: the same as a function of P, M and V; held against the simulation.
        per_rank: whether it is of the longest rank, not of the makespan.
    """

    when: str
    formula: str = ""
    ratio: Callable[[int, int, int], float] | None = None
    per_rank: bool = False


def flushed(p, m, _v):
    """Fill and drain once, a stage at a time."""
    return (p - 1) / (m + p - 1)


def looped(p, m, v):
    """The same with V shorter stages per rank."""
    return (p - 1) / (v * m + p - 1)


def idle_over(idle, busy):
    """Share of the time, from what is idle and what is busy."""
    return idle / (idle + busy)


ABOUT = {
    "naive": About(
        "Never for speed. It is the baseline, and what holds least: one activation.",
        "1 - 1/P",
        lambda p, _m, _v: 1 - 1 / p,
    ),
    "gpipe": About(
        "When memory is no question: it pays for transfers once per step, not once per "
        "micro-batch. A loss over the whole batch needs an order like it, all forwards first.",
        "(P - 1)/(M + P - 1)",
        flushed,
    ),
    "1f1b": About(
        "The default: GPipe's time, P activations instead of M.",
        "(P - 1)/(M + P - 1)",
        flushed,
    ),
    "1f1b-eager": About(
        "Slow links and memory to spare: 2P - 1 activations hide transfers that 1F1B waits for "
        "in every micro-batch.",
        "(P - 1)/(M + P - 1)",
        flushed,
    ),
    "interleaved": About(
        "Few micro-batches for the ranks there are, fast links: V times more messages, a V-th of "
        "the fill and drain.",
        "(P - 1)/(V M + P - 1)",
        looped,
    ),
    "interleaved-bfs": About(
        "Fewer micro-batches than ranks, or parameters sharded over data-parallel ranks: each "
        "stage is gathered once for all its forwards. It holds as much as GPipe.",
        "(P - 1)/(V M + P - 1)",
        looped,
    ),
    "gis": About(
        "What interleaving is used for, with less idle time and less memory, where backwards "
        "can be split.",
        "(P - 1)(F + I)/(V M T + (P - 1)(F + I)), of a stage's times, T = F + I + W",
        lambda p, m, v: idle_over(2 * (p - 1), 3 * v * m),
    ),
    "gis-h": About(
        "Between half and all of 1F1B's memory, with backwards that can be split.",
        "like gis, with (V - 1) max((P - g)F, P(F + I) - g T) more idle, g = P/2",
        lambda p, m, v: idle_over(2 * (p - 1) + (v - 1) * (p - p // 2), 3 * v * m),
    ),
    "chimera": About(
        "Few micro-batches (M = P), weights that are small beside activations, and forwards as "
        "long as backwards. It holds the weights twice.",
        "(P - 2)(u + 1)/(3 M + (P - 2)(u + 1)), u = M/P; with B = F (P - 2)/(2 M + P - 2)",
        lambda p, m, _v: idle_over((p - 2) * (m // p + 1), 3 * m),
    ),
    "hanayo": About(
        "Like Chimera, with the weights held once: few micro-batches, neighbours that are close.",
        "2 (P - 1)(u + 1)/(3 V M + 2 (P - 1)(u + 1)), u = M/P; with B = F (P - 1)/(V M + P - 1)",
        lambda p, m, v: idle_over(2 * (p - 1) * (m // p + 1), 3 * v * m),
    ),
    "dualpipe": About(
        "Long transfers (expert all-to-all) that the overlapped pairs hide, and weights small "
        "enough to hold twice. Its gain is the hiding; the partition should be balanced for "
        "pairs.",
        "(P - 2)/(3 M + P - 2), from (P/2 - 1)(F&B + B - 3 W)",
        lambda p, m, _v: idle_over(p - 2, 3 * m),
    ),
    "dualpipe-v": About(
        "The same with the weights held once.",
        "(P - 1)/(3 M + P - 1), from DualPipe's with 2 P ranks and half the time",
        lambda p, m, _v: idle_over(p - 1, 3 * m),
    ),
    "zb-h1": About(
        "In place of 1F1B wherever backwards can be split and a step ends with a flush: the same "
        "memory, a third of the bubble.",
        "(P - 1)(F + I - W)/(M T + (P - 1)(F + I - W))",
        lambda p, m, _v: idle_over(p - 1, 3 * m),
    ),
    "zb-h2": About(
        "Memory for 2P - 1 activations, and no barrier between steps: then no rank idles. Under a "
        "flush it is no faster than zb-h1.",
        "(P - 1)(F + I - 2 W) idle: 0",
        lambda _p, _m, _v: 0.0,
        per_rank=True,
    ),
    "zb-1p": About(
        "Unequal times or transfers, at 1F1B's memory: it is made for the costs it is given.",
        "with equal times that of zb-h1",
        lambda p, m, _v: idle_over(p - 1, 3 * m),
    ),
    "zb-2p": About(
        "The same with twice the memory, and no barrier between steps.",
        "with equal times and M >= 2P that of zb-h2, 0",
        lambda _p, _m, _v: 0.0,
        per_rank=True,
    ),
    "interleaved-zb": About(
        "Several stages per rank on a loop, with backwards that can be split, and no barrier.",
        "(P - 1) max(F + I - 2 W, 0) idle, of a stage's times: 0",
        lambda _p, _m, _v: 0.0,
        per_rank=True,
    ),
    "zb-v": About(
        "1F1B's memory, two stages per rank, and no barrier between steps: no rank idles where "
        "F = I = W.",
        "with equal times and M >= 2P, 0",
        lambda _p, _m, _v: 0.0,
        per_rank=True,
    ),
    "v-half": About(
        "Half of 1F1B's memory.",
        "1 - 6 M/(6 M + 6 P - 1 - 3 k), k = 2 floor((P + 2)/2) stage activations held",
        lambda p, m, _v: 1 - 6 * m / (6 * m + 6 * p - 1 - 6 * ((p + 2) // 2)),
    ),
    "v-min": About(
        "A third of 1F1B's memory, before sequence slices, offloading or recomputation."
    ),
    "forward-only": About("Evaluation and prediction, which take it by themselves."),
}


WHICH_WHEN = [
    ("memory for 2P activations, no barrier between steps", ["zb-2p", "zb-h2"], ""),
    (
        "memory for P, two stages per rank affordable",
        ["zb-v", "dualpipe-v"],
        "",
    ),
    ("memory for P/2 to P", ["v-half", "gis-h"], ""),
    (
        "memory for about P/3",
        ["v-min"],
        "then sequence slices, offloading, recomputation last",
    ),
    ("M >= 8P with a flush", ["zb-h1"], "all are within a few percent: choose by memory"),
    ("M < P", ["interleaved", "interleaved-bfs"], ""),
    ("slow links", ["1f1b-eager"], "few stages per rank"),
    ("expert all-to-all", ["dualpipe", "dualpipe-v"], "balance the partition for overlapped pairs"),
    ("unequal stages, or a cap between these", [], "`intandem search`"),
]
"""What you have, which schedules suit that, and what more is to say."""
