"""What can be said of one entry of the zoo: capture, cuts, numbers."""

import random
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

import intandem as it
from intandem.equality import Splitting, compare, numbers_of, one_process
from intandem.errors import PipelineError
from intandem.pipeline import agreed_plan
from intandem.profiler.segments import SegmentCost
from intandem.recorder import bind_by_signature
from intandem.recorder.capture import record
from intandem.recorder.cut import cut, segments
from intandem.runtime.microbatch import split_batch
from intandem.runtime.stage import Draw
from zoo.catalogue import MICROBATCHES

SPLITTING = ("split", "count", "inputs")


@dataclass
class Finding:
    """One row of the table.

    Attributes:
        name: of the entry.
        refusal: message with which it was refused, or None.
        num_stages: parts with parameters that it can be cut into.
        num_crossing: values that cross the cut between two stages.
        num_guards: Python values that its recording depends on.
        errors: largest relative error of loss, gradients and buffers, by number of stages.
        same_bits: whether all numbers of stages gave the same bits.
    """

    name: str
    refusal: str | None = None
    num_stages: int = 0
    num_crossing: int = 0
    num_guards: int = 0
    errors: dict = field(default_factory=dict)
    same_bits: bool = True

    @property
    def captured(self):
        """Whether it can be cut into two or more stages that each hold parameters."""
        return self.refusal is None and self.num_stages >= 2


@contextmanager
def one_thread():
    """Compute with one thread, as each rank does: sums are then taken in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def even_cuts(seed=0):
    """Cut by costs drawn from ``seed``, not measured ones, so that cuts are the same every time."""

    def costs(graph, found, *rest):
        del graph, rest
        rng = random.Random(seed)
        drawn = [(rng.uniform(1, 1.2), rng.uniform(0.5, 0.6)) for _ in found]
        return tuple(SegmentCost(forward_s, half_s, half_s) for forward_s, half_s in drawn)

    before = agreed_plan.measure_segments
    agreed_plan.measure_segments = costs
    try:
        yield
    finally:
        agreed_plan.measure_segments = before


def first_microbatch(entry, sample):
    """What the model is recorded on, and how it is bound to arguments."""
    part = split_batch(sample.batch, MICROBATCHES, entry.options.get("split")).parts[0]
    bind = entry.options.get("inputs") or bind_by_signature(
        sample.model, loss_is_separate=sample.loss is not None
    )
    return part, bind


@one_thread()
def in_tandem(entry, num_stages, **kwargs):
    """Loss, gradients and buffers of one step of a pipeline."""
    sample = entry.build()
    with (
        even_cuts(),
        it.Pipeline(
            sample.model,
            example=sample.batch,
            loss=sample.loss,
            ranks=num_stages,
            microbatches=MICROBATCHES,
            options=it.Options(threads_per_rank=1),
            **entry.options,
            **kwargs,
        ) as pipe,
    ):
        loss = float(pipe.step(sample.batch))
    return numbers_of(sample.model, loss)


@one_thread()
def plainly(entry):
    """The same of the plain module in one process."""
    sample = entry.build()
    given = {name: entry.options.get(name) for name in SPLITTING}
    splitting = Splitting(MICROBATCHES, **given)
    return one_process(sample.model, sample.batch, sample.loss, splitting)


@one_thread()
def examine(entry, stages=(1, 2, 4)):
    """Capture, cut and run an entry, and hold it against one process."""
    finding = Finding(entry.name)
    try:
        sample = entry.build()
        graph = record(sample.model, *first_microbatch(entry, sample), draws=Draw(0, 0, 0)).graph
        found = segments(graph)
        finding.num_stages, finding.num_guards = len(found), len(graph.guards)
        if len(found) >= 2:
            halves = cut(graph, [0, found[len(found) // 2].start])
            finding.num_crossing = sum(map(len, halves[0].sent.values()))
        first = None
        expected = plainly(entry)
        for num in stages:
            if num > finding.num_stages:
                continue
            numbers = in_tandem(entry, num)
            equality = compare(numbers, expected)
            finding.errors[num] = max(
                equality.loss_error, equality.max_gradient_error, equality.max_buffer_error
            )
            first = first or numbers
            finding.same_bits &= not different_bits(numbers, first)
    except PipelineError as error:
        finding.refusal = str(error)
    return finding


def different_bits(found, expected):
    """Names of numbers that differ in any bit."""
    pairs = [("loss", found.loss, expected.loss)]
    pairs += [(n, g, expected.gradients[n]) for n, g in found.gradients.items()]
    pairs += [(n, b, expected.buffers[n]) for n, b in found.buffers.items()]
    return [name for name, a, b in pairs if not _same(a, b)]


def _same(a, b):
    if a is None or b is None or isinstance(a, float):
        return a is b or a == b
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


if __name__ == "__main__":
    import sys
    import time

    from zoo.catalogue import entries

    for each in entries():
        if not sys.argv[1:] or any(word in (each.name, each.family) for word in sys.argv[1:]):
            start = time.perf_counter()
            row = examine(each)
            took = time.perf_counter() - start
            state = row.refusal or f"{row.num_stages} stages, {row.errors}, bits {row.same_bits}"
            sys.stdout.write(f"{each.family:16} {each.name:24} {took:5.1f} s  {state}"[:400] + "\n")
            sys.stdout.flush()
