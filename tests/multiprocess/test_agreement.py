"""All ranks agree on what they run: the batch, and the state of the model."""

import os

import pytest
import torch
from processes import run_ranks

import intandem as it
from harness import TOLERANCE, relative_error
from intandem.equality import Splitting, one_process
from intandem.errors import PipelineError
from shapes import Masked, batch_of, loss

RANK_1_DOES = {
    "mode": lambda model: model.layers[2].eval(),
    "frozen": lambda model: model.layers[0].requires_grad_(False),
    "attribute": lambda model: setattr(model, "factor", 2.0),
    "object": lambda model: model.settings["depth"].append(3),
}
SAYS = {
    "mode": "training of layers.2 is False, not True",
    "frozen": "requires_grad of layers.0.weight is False, not True, requires_grad of layers.0.bias",
    "attribute": "attribute factor is 2.0, not 1.0",
    "object": "attribute settings is dict('depth': list(0: 1, 1: 2, 2: 3)), not dict(",
}


def disagree(what):
    """Errors of a step that rank 1 makes with its model in another state."""
    model, batch = Masked(), batch_of(4, 5)
    model.settings = {"depth": [1, 2]}
    model.process = os.getpid()  # differs from the beginning, and means nothing
    with it.Pipeline(model, example=batch, loss=loss, microbatches=2) as pipe:
        pipe.step(batch)
        if pipe._assembly.home.own_ranks[0] == 1:
            RANK_1_DOES[what](model)
        try:
            float(pipe.step(batch))
            pipe.timeline()
        except PipelineError as error:
            return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.parametrize("what", RANK_1_DOES)
def test_ranks_whose_models_differ(what, tmp_path):
    """Every rank is told which rank differs, and in what."""
    for outcome in run_ranks(disagree, 2, tmp_path, what):
        assert f"rank 1 has the model in another state than rank 0: {SAYS[what]}" in outcome.value


def train_shapes():
    """Worst error over steps whose shapes, masks, keys and modes differ; parameters are freed."""
    full, padded = batch_of(4, 5), batch_of(4, 5, padded=2)
    mixed = {key: torch.cat([full[key][:2], padded[key][:2]]) for key in full}
    scale = torch.full((4, 1, 1), 2.0, dtype=torch.float64)
    batches = [
        full, padded, mixed, batch_of(4, 9), batch_of(3, 7), batch_of(1, 5, padded=1),
        [batch_of(2, 3), batch_of(2, 6)], {**full, "scale": scale}, {**full, "scale": None},
        {**full, "mask": full["mask"].int()}, full,
    ]  # fmt: skip
    model, plain = Masked(), Masked()
    worst = 0.0
    with it.Pipeline(model, example=full, loss=loss, microbatches=2) as pipe:
        for step, batch in enumerate(batches):
            factor = 1.0 + step % 2
            model.factor = plain.factor = factor
            for each in (model, plain):
                each.layers[0].requires_grad_(step % 3 > 0)
                each.zero_grad()
            value = float(pipe.step(batch))
            expected = one_process(plain, batch, loss, Splitting(2), step=step)
            held = {name: p.grad for name, p in pipe.named_parameters()}
            worst = max(worst, relative_error(held, {n: expected.gradients[n] for n in held}))
            worst = max(worst, abs(value - expected.loss) / abs(expected.loss))
        made = len(pipe.recordings())
        pipe.step(batches[-1])
        again = len(pipe.recordings())
    return {"worst": worst, "made": made, "again": again}


def test_new_shapes_once_parameters_are_freed(tmp_path):
    """Numbers are one process's whatever changes between steps; what was recorded is found."""
    for outcome in run_ranks(train_shapes, 2, tmp_path):
        assert outcome.code == 0, outcome.output[-2000:]
        assert outcome.value["worst"] <= TOLERANCE
        assert outcome.value["made"] == outcome.value["again"]
