"""What is often said of schedules, and what a simulation shows."""

import random
from fractions import Fraction
from itertools import product

import pytest

from intandem.costs import CostModel
from intandem.ir import Action, ActionKind
from intandem.schedules import build_schedule
from intandem.simulator import peak_activations, simulate

F, B = ActionKind.F, ActionKind.B
SIZES = [*product((2, 3, 4, 8), (1, 2, 4, 7, 16, 32))]


def timeline(name, p, m, *, v=None, costs=None, **uniform):
    schedule = build_schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)
    return simulate(schedule, costs or CostModel.uniform(p * (v or 1), **uniform))


class TestBubbleOfKLessOneOverM:
    """Claim: pipeline parallelism idles for (K - 1)/M of the time (K ranks, M micro-batches)."""

    @pytest.mark.parametrize("name", ["gpipe", "1f1b"])
    def test_it_is_idle_over_busy(self, name):
        """The claim divides by the work; of the time, it is (K - 1)/(M + K - 1)."""
        for k, m in SIZES:
            found = timeline(name, k, m)
            grid_s = k * found.makespan_s

            idle_s = grid_s - found.busy_s
            assert idle_s / found.busy_s == pytest.approx((k - 1) / m)
            assert idle_s / grid_s == pytest.approx((k - 1) / (m + k - 1))
            assert found.bubble_ratio == pytest.approx((k - 1) / (m + k - 1))

    def test_as_a_share_it_can_be_more_than_everything(self):
        """8 ranks and 4 micro-batches: 175% by the claim, 64% on the clock."""
        assert (8 - 1) / 4 == 1.75
        assert timeline("1f1b", 8, 4).bubble_ratio == pytest.approx(7 / 11)

    def test_v_stages_divide_the_one_by_v_and_not_the_other(self):
        """Interleaving V stages makes idle/busy V times smaller, and the share less than that."""
        for k, v, m in product((2, 4, 8), (2, 3, 4), (8, 16)):
            one, several = timeline("1f1b", k, m), timeline("interleaved", k, m, v=v)

            ratio = one.bubble_ratio / several.bubble_ratio
            overheads = (t.bubble_ratio / (1 - t.bubble_ratio) for t in (one, several))
            assert next(overheads) / next(overheads) == pytest.approx(v)
            assert ratio == pytest.approx((v * m + k - 1) / (m + k - 1))
            assert ratio < v


class TestSmallerBubbleOf1F1B:
    """Claim: 1F1B idles less than GPipe. It is so for stages of unequal times alone."""

    def test_with_equal_stages_they_take_as_long(self):
        """Whatever the sizes: (M + P - 1)(F + B)."""
        for p, m in SIZES:
            gpipe, alternating = timeline("gpipe", p, m), timeline("1f1b", p, m)

            assert gpipe.makespan_s == alternating.makespan_s == 3 * (m + p - 1)
            assert gpipe.bubble_ratio == alternating.bubble_ratio

    def test_with_transfers_gpipe_is_the_faster(self):
        """It pays 2c(P - 1) once per step; 1F1B pays as it goes, more for every micro-batch."""
        for p, m in ((2, 8), (4, 8), (4, 32), (8, 32)):
            gpipe = timeline("gpipe", p, m, transfer_s=0.25)
            alternating = timeline("1f1b", p, m, transfer_s=0.25)

            assert gpipe.makespan_s == 3 * (m + p - 1) + 2 * 0.25 * (p - 1)
            assert alternating.makespan_s > gpipe.makespan_s

    def test_with_unequal_stages_it_is_never_longer(self):
        """On 300 random ones without transfers; GPipe adds up its slowest F and its slowest B."""
        rng = random.Random(0)
        shorter = 0
        for _ in range(300):
            p, m = rng.randint(2, 5), rng.randint(1, 10)
            seconds = [tuple(float(rng.randint(1, 6)) for _ in range(p)) for _ in "FIW"]
            gpipe, alternating = (
                timeline(name, p, m, costs=CostModel(*seconds)) for name in ("gpipe", "1f1b")
            )

            assert alternating.makespan_s <= gpipe.makespan_s
            shorter += alternating.makespan_s < gpipe.makespan_s
        assert shorter > 150

    def test_what_it_saves_is_memory(self):
        """min(M, P - r) activations on rank r, where GPipe holds all M."""
        for p, m in SIZES:
            assert peak_activations(timeline("gpipe", p, m)) == (m,) * p
            held = peak_activations(timeline("1f1b", p, m))
            assert held == tuple(min(m, p - rank) for rank in range(p))


class TestStaleActivations:
    """Claim: 1F1B computes gradients on stale activations, or with stale weights."""

    P, M = 4, 8

    def step(self, update):
        """Train a chain of numbers, y = w x, half of the last one's square the loss, exactly.

        Actions run in the order in which they end on the clock. ``update(weights, stage,
        gradient)`` may change the weights after each backward. Returns the gradients' sums.
        """
        weights = [Fraction(stage + 2) for stage in range(self.P)]
        inputs = {(0, mb): Fraction(mb + 1) for mb in range(self.M)}
        outputs, gradients = {}, {}
        sums = [Fraction(0)] * self.P
        spans = timeline("1f1b", self.P, self.M).spans
        for span in sorted(spans, key=lambda span: span.end_s):
            stage, mb = span.action.stage, span.action.microbatch
            if span.action.kind is F:
                outputs[stage, mb] = inputs[stage + 1, mb] = weights[stage] * inputs[stage, mb]
                if stage == self.P - 1:
                    gradients[stage, mb] = outputs[stage, mb]
                continue
            gradient = gradients[stage, mb] * inputs[stage, mb]
            gradients[stage - 1, mb] = gradients[stage, mb] * weights[stage]
            sums[stage] += gradient
            update(weights, stage, gradient)
        return sums

    def whole_batch(self):
        """The same gradients written down: of w0² w1² ... x²/2, summed over the batch."""
        weights = [Fraction(stage + 2) for stage in range(self.P)]
        product_of = Fraction(1)
        for weight in weights:
            product_of *= weight
        squares = sum(Fraction(mb + 1) ** 2 for mb in range(self.M))
        return [product_of**2 * squares / weight for weight in weights]

    def test_with_a_flush_they_are_one_process_s(self):
        """No weight changes during a step, so every gradient is the whole batch's, to the digit."""
        assert self.step(lambda weights, stage, gradient: None) == self.whole_batch()

    def test_what_is_stale_is_pipedream_without_a_flush(self):
        """There each backward changes the weights, and later gradients are others."""

        def descend(weights, stage, gradient):
            weights[stage] -= gradient / 10**9

        assert self.step(descend) != self.whole_batch()

    def test_how_stale_that_is(self):
        """P - s - 1 updates come between a forward and its backward in the steady state."""
        schedule = build_schedule("1f1b", num_ranks=self.P, num_microbatches=self.M)
        for stage, row in enumerate(schedule.actions):
            slot = {action: place for place, action in enumerate(row)}
            mb = self.P
            between = row[slot[Action(stage, F, mb)] : slot[Action(stage, B, mb)]]

            assert sum(action.kind is B for action in between) == self.P - stage - 1


class TestHalfTheBubbleOfTwoDirections:
    """Claim: Chimera has half the bubble of 1F1B, (P - 2)/(2M + P - 2) of the time."""

    def test_where_backwards_take_as_long_as_forwards(self):
        """The formula holds for any number of units with B = F."""
        for p, units in product((4, 8), (1, 2, 4)):
            found = timeline("chimera", p, units * p, backward_input_s=0.5, backward_weight_s=0.5)

            assert found.bubble_ratio == pytest.approx((p - 2) / (2 * units * p + p - 2))

    def test_where_they_take_twice_as_long(self):
        """With B = 2F it idles less than 1F1B for a few units, and more for many."""
        for p in (4, 8):
            chimera, alternating = (
                [timeline(name, p, units * p).makespan_s for units in (1, 2, 4)]
                for name in ("chimera", "1f1b")
            )

            assert chimera[0] < alternating[0]
            assert chimera[1] < alternating[1]
            assert chimera[2] > alternating[2]
