"""Ways out in processes: blocks, split points and stages by hand have one process's numbers."""

from processes import run_ranks

import intandem as it
from harness import TOLERANCE, relative_error
from intandem.equality import Splitting, one_process
from intandem.recorder.stage_chain import as_module
from ways import Settling, by_hand, error, model_and_batch, square


def errors_of(model, plain, batch, loss, **kwargs):
    """Error of two steps and an evaluation in tandem, over parameters that this rank holds."""
    worst = 0.0
    blocks = kwargs.get("blocks", ())
    with it.Pipeline(model, example=batch, loss=loss, microbatches=2, **kwargs) as pipe:
        for step in range(2):
            value = float(pipe.step(batch))
            expected = one_process(
                plain, batch, loss, Splitting(2, blocks=blocks), step=step
            )  # fmt: skip
            held = {name: p.grad for name, p in pipe.named_parameters()}
            worst = max(worst, relative_error(held, {n: expected.gradients[n] for n in held}))
            worst = max(worst, abs(value - expected.loss) / abs(expected.loss))
        pipe.evaluate(batch)
        assert held
        assert len(held) < len(expected.gradients)
    return worst


def train_ways():
    """Worst error of each way out on this rank."""
    (model, x), (plain, _) = model_and_batch(), model_and_batch()
    kept = errors_of(model, plain, x, square, blocks=[Settling])
    (model, x), (plain, _) = model_and_batch(), model_and_batch()
    points = {"blocks": ["one", "two"], "split_points": ["one", "two"]}
    named = errors_of(model, plain, x, square, **points)
    (stages, batch), (others, _) = by_hand(), by_hand()
    hand = errors_of(stages, as_module(others), batch, error)
    return {"blocks": kept, "names": named, "by hand": hand}


def test_ways_out_in_processes(tmp_path):
    """Three processes, parameters freed: each rank's gradients and the loss are one process's."""
    for outcome in run_ranks(train_ways, 3, tmp_path, timeout_s=100):
        assert outcome.code == 0, outcome.output[-3000:]
        assert set(outcome.value) == {"blocks", "names", "by hand"}
        assert max(outcome.value.values()) <= TOLERANCE, outcome.value
