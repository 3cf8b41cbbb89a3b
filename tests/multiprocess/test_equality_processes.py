"""Ranks as processes that talk over Gloo have one process's numbers.

Starting processes takes seconds, so each group of them runs many cases, one pipeline after the
other. Every rank holds what it has against a plain run of its own.
"""

import pytest
import torch
from processes import run_ranks

from harness import TOLERANCE, gradients, max_stages, pipeline, relative_error, repeatable_cuts
from intandem.equality import Splitting, one_process
from intandem.schedules import schedule_names
from models import SAMPLES

TRAINED = [
    ("gpt_tied", "none", 4),
    ("gpt_untied", "all", 3),
    ("batch_norm", "all", 3),
    ("batch_norm_cumulative", "none", 2),
    ("unet", "none", 5),
    ("fan_out", "none", 3),
    ("two_towers", "none", 3),
    ("dropout_in_blocks", "all", 4),
    ("dropout_in_glue", "none", 3),
    ("multi_head_attention", "none", 2),
    ("shared_block", "all", 3),
    ("parameter_in_glue", "none", 3),
    ("frozen_first", "none", 3),
    ("guarded_mask", "none", 4),
    ("loss_in_output", "none", 3),
    ("dataclass_output", "none", 3),
    ("in_place_glue", "none", 3),
    ("buffers_in_glue", "all", 3),
    ("counting_blocks", "all", 3),
    ("checkpointed_inside", "none", 3),
    ("loss_sum_padded", "none", 4),
    ("llama_tied", "none", 3),
    ("llama_untied", "all", 3),
    ("gpt2_dropout", "none", 4),
]
ROWS = (7, 7, 3)
"""Rows of the batches of three steps; the last is short, so its shapes are new."""

KNOWN_SHAPES_ONLY = {"batch_norm_cumulative", "in_place_glue", "buffers_in_glue"}
"""They cannot be recorded anew once parameters are freed, and say so."""


def train(name, schedule, recompute, microbatches):
    """Three AdamW steps, evaluation before the last; returns errors by what was compared."""
    ours, theirs = SAMPLES[name](), SAMPLES[name]()
    rows = ROWS[:2] * 2 if name in KNOWN_SHAPES_ONLY else ROWS
    batches = [SAMPLES[name](count).batch for count in rows]
    whole = torch.optim.AdamW(theirs.model.parameters(), lr=0.01)
    errors = dict.fromkeys(("loss", "gradient", "norm", "evaluation", "state"), 0.0)

    def note(what, found, expected):
        errors[what] = max(errors[what], abs(found - expected) / max(abs(expected), 1e-300))

    with repeatable_cuts(seed=len(name)), pipeline(
        ours, schedule=schedule, recompute=recompute, microbatches=microbatches
    ) as pipe:  # fmt: skip
        own = torch.optim.AdamW(pipe.parameters(), lr=0.01)
        for step, batch in enumerate(batches):
            if step == len(batches) - 1:
                found = pipe.evaluate(batch)
                note("evaluation", found, plain_evaluation(theirs, batch, microbatches))
            loss = pipe.step(batch)
            expected = one_process(
                theirs.model, batch, theirs.loss, Splitting(microbatches), step=step
            )
            note("loss", float(loss), expected.loss)
            held = dict(pipe.named_parameters())
            error = relative_error(
                {n: p.grad for n, p in held.items()}, {n: expected.gradients[n] for n in held}
            )
            errors["gradient"] = max(errors["gradient"], error)
            norm = torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), 0.5)
            note("norm", pipe.clip_grad_norm_(0.5), float(norm))
            for optimizer in (own, whole):
                optimizer.step()
                optimizer.zero_grad()
        state, expected = pipe.state_dict(), theirs.model.state_dict()
    assert list(state) == list(expected)
    errors["state"] = relative_error(
        {n: t.double() for n, t in state.items()}, {n: t.double() for n, t in expected.items()}
    )
    return errors


def plain_evaluation(sample, batch, microbatches):
    """The plain model's loss in evaluation mode; micro-batches as in the pipeline."""
    sample.model.eval()
    kept = gradients(sample.model)
    loss = one_process(sample.model, batch, sample.loss, Splitting(microbatches)).loss
    sample.model.train()
    for name, parameter in sample.model.named_parameters():
        parameter.grad = kept[name]
    return loss


def train_all(schedule, num_ranks):
    """Errors of every case, by name."""
    cases = [case for case in TRAINED if max_stages(case[0]) >= num_ranks]
    return {name: train(name, schedule, *rest) for name, *rest in cases}


def check_all(outcomes, num_cases):
    """Every rank ran all cases, and nothing was off by more than rounding."""
    for rank, outcome in enumerate(outcomes):
        assert outcome.code == 0, outcome.output[-3000:]
        assert len(outcome.value) >= num_cases
        for name, errors in outcome.value.items():
            state = errors.pop("state")  # after three steps of an optimizer that divides
            assert state <= 1e-8, (rank, name, state)
            assert max(errors.values()) <= TOLERANCE, (rank, name, errors)


@pytest.mark.parametrize("schedule", schedule_names())
def test_two_processes(schedule, tmp_path):
    """Two processes: every kind of model, three steps, the last of them with new shapes."""
    check_all(run_ranks(train_all, 2, tmp_path, schedule, 2, timeout_s=110), len(TRAINED))


def test_three_processes(tmp_path):
    """Three processes, with a rank that neither begins nor ends the pipeline."""
    check_all(run_ranks(train_all, 3, tmp_path, "1f1b", 3, timeout_s=110), len(TRAINED) - 3)
