"""Ranks as processes have one process's numbers: in shared memory, and over Gloo.

Starting processes takes seconds, so each group of them runs many cases, one pipeline after the
other. Every rank holds what it has against a plain run of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fault_runs import command
from processes import run_ranks
from safetensors.torch import load_file, save_file
from torch import nn

import intandem as it
from deep_models import DEEP
from harness import TOLERANCE, gradients, pipeline, relative_error, repeatable_cuts
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
    ("dropped_layers", "all", 3),
    ("python_draws", "all", 3),
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

FEW = {
    "gpt_tied",
    "batch_norm",
    "unet",
    "fan_out",
    "dropout_in_blocks",
    "shared_block",
    "guarded_mask",
    "loss_sum_padded",
    "llama_tied",
}
"""What runs under every schedule and with more ranks; all of TRAINED runs with 2 ranks, 1F1B."""

UPDATING = {"batch_norm"}
"""Those of them that update buffers, which replicas cannot."""

KNOWN_SHAPES_ONLY = {"batch_norm_cumulative", "in_place_glue", "buffers_in_glue"}
"""They cannot be recorded anew once parameters are freed, and say so."""


def train(name, schedule, recompute, microbatches, replicas=1):
    """Three AdamW steps, evaluation before the last; returns errors by what was compared."""
    ours, theirs = SAMPLES[name](), SAMPLES[name]()
    rows = ROWS[:2] * 2 if name in KNOWN_SHAPES_ONLY else ROWS
    batches = [SAMPLES[name](count).batch for count in rows]
    whole = torch.optim.AdamW(theirs.model.parameters(), lr=0.01)
    errors = dict.fromkeys(("loss", "gradient", "norm", "evaluation", "state"), 0.0)

    def note(what, found, expected):
        errors[what] = max(errors[what], abs(found - expected) / max(abs(expected), 1e-300))

    with repeatable_cuts(seed=len(name)), pipeline(
        ours, schedule=schedule, recompute=recompute, microbatches=microbatches, replicas=replicas
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
    everything = schedule == "1f1b" and num_ranks == 2
    cases = [case for case in TRAINED if everything or case[0] in FEW]
    return {name: train(name, schedule, *rest) for name, *rest in cases}


def train_replicas(num_replicas):
    """The same for replicas of the pipeline, which share out the micro-batches."""
    cases = [case for case in TRAINED if case[0] in FEW - UPDATING]
    return {name: train(name, "1f1b", *rest, num_replicas) for name, *rest in cases}


def check_all(outcomes, cases=FEW):
    """Every rank ran all cases, and nothing was off by more than rounding."""
    for rank, outcome in enumerate(outcomes):
        assert outcome.code == 0, outcome.output[-3000:]
        assert len(outcome.value) >= len(cases)
        for name, errors in outcome.value.items():
            state = errors.pop("state")  # after three steps of an optimizer that divides
            assert state <= 1e-8, (rank, name, state)
            assert max(errors.values()) <= TOLERANCE, (rank, name, errors)


@pytest.mark.parametrize(
    ("schedule", "way"),
    [("naive", "shared"), ("gpipe", "gloo"), ("1f1b", "shared"), ("1f1b", "gloo")],
)
def test_two_processes(schedule, way, tmp_path, monkeypatch):
    """Two processes: every kind of model, three steps, the last of them with new shapes."""
    if way == "gloo":
        monkeypatch.setenv("OVER_GLOO", "1")
    check_all(run_ranks(train_all, 2, tmp_path, schedule, 2, timeout_s=110))


def step_by_schedules(names, families):
    """One step of each family under each schedule; errors, and whether the order was the stated."""
    found = {}
    for family in families:
        theirs = DEEP[family]()
        expected = one_process(theirs.model, theirs.batch, theirs.loss, Splitting(8))
        for name in names:
            ours = DEEP[family]()
            with repeatable_cuts(), pipeline(ours, schedule=name, microbatches=8) as pipe:
                loss = float(pipe.step(ours.batch))
                rank = int(os.environ["RANK"])
                ran = [span.action for span in pipe.timeline().of_rank(rank)]
                held = {n: p.grad for n, p in pipe.named_parameters()}
                error = relative_error(held, {n: expected.gradients[n] for n in held})
                in_order = ran == list(pipe.program().actions(rank))
            found[f"{family} {name}"] = [abs(loss - expected.loss), error, in_order]
    return found


def check_schedules(outcomes, num_cases):
    """Every rank ran all cases, exactly and in order."""
    for rank, outcome in enumerate(outcomes):
        assert outcome.code == 0, outcome.output[-3000:]
        assert len(outcome.value) == num_cases
        for case, (loss_error, error, in_order) in outcome.value.items():
            assert max(loss_error, error) <= TOLERANCE, (rank, case, loss_error, error)
            assert in_order, (rank, case)


TRAINING = [name for name in schedule_names() if name != "forward-only"]


def test_every_schedule(tmp_path):
    """Two processes run every schedule there is, with tied weights."""
    families = ["tied_language_model"]
    outcomes = run_ranks(step_by_schedules, 2, tmp_path, TRAINING, families, timeout_s=110)
    check_schedules(outcomes, len(TRAINING))


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    ["tied_language_model", "padded_language_model", "skips", "dropped_out_language_model"],
)
def test_every_schedule_on_four(family, tmp_path, monkeypatch):
    """Four processes over Gloo, so that there are ranks in the middle."""
    monkeypatch.setenv("OVER_GLOO", "1")
    outcomes = run_ranks(step_by_schedules, 4, tmp_path, TRAINING, [family], timeout_s=240)
    check_schedules(outcomes, len(TRAINING))


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_replicas(num_ranks, tmp_path):
    """Two replicas of one and of two stages: tokens weigh alike, whichever replica counts them."""
    outcomes = run_ranks(train_replicas, num_ranks, tmp_path, 2, timeout_s=110)
    check_all(outcomes, FEW - UPDATING)


def accumulate():
    """Two steps without zero_grad between them: errors of what this rank holds, by setting."""
    errors = {}
    for name, replicas in (("gpt_tied", 1), ("gpt_tied", 2), ("loss_sum_padded", 2), ("mlp", 2)):
        ours, theirs = SAMPLES[name](), SAMPLES[name]()
        with repeatable_cuts(), pipeline(ours, replicas=replicas, microbatches=4) as pipe:
            for step in range(2):
                pipe.step(ours.batch)
                expected = one_process(
                    theirs.model, theirs.batch, theirs.loss, Splitting(4), step=step
                )
            held = {n: p.grad for n, p in pipe.named_parameters()}
        errors[f"{name} {replicas}"] = relative_error(
            held, {n: expected.gradients[n] for n in held}
        )
    return errors


def test_processes_accumulate(tmp_path):
    """What processes add up between them is each step's own, on top of the steps before."""
    for outcome in run_ranks(accumulate, 2, tmp_path):
        assert outcome.code == 0, outcome.output[-3000:]
        assert max(outcome.value.values()) <= TOLERANCE, outcome.value


class Bound(nn.Module):
    """Calls itself by a method that it holds."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.call = self.apply_linear

    def apply_linear(self, x):
        return self.linear(x)

    def forward(self, x):
        return torch.tanh(self.call(x))


def wrapped():
    """A block whose forward is another function, as some libraries leave it."""
    block = Bound()
    forward = block.forward
    block.forward = lambda x: forward(x)
    return block


def compiled():
    return torch.compile(Bound(), backend="eager")


def compiled_in_place():
    block = Bound()
    block.compile(backend="eager")
    return block


def held_code(replicas):
    """Errors of blocks that hold code which leads back to them, by kind."""
    errors = {}
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for make in (Bound, wrapped, compiled, compiled_in_place):
        torch.manual_seed(0)
        blocks = [make() for _ in range(2)]
        layers = [*blocks, blocks[0]] if replicas == 1 else blocks
        model = nn.Sequential(*layers).double()
        model(x).square().mean().backward()
        expected = {n: p.grad.clone() for n, p in model.named_parameters()}
        model.zero_grad()
        with it.Pipeline(
            model, example=x, loss=lambda output, _: output.square().mean(),
            replicas=replicas, microbatches=4,
        ) as pipe:  # fmt: skip
            pipe.step(x)
            held = {n: p.grad for n, p in pipe.named_parameters()}
        errors[make.__name__] = relative_error(held, {n: expected[n] for n in held})
    return errors


@pytest.mark.parametrize("replicas", [1, 2])
def test_blocks_that_hold_code(replicas, tmp_path):
    """Bound methods, wrapped forwards and compiled code: shared by two ranks, or in replicas."""
    for outcome in run_ranks(held_code, 2, tmp_path, replicas, timeout_s=110):
        assert outcome.code == 0, outcome.output[-3000:]
        assert max(outcome.value.values()) <= TOLERANCE, outcome.value


def predict():
    """Outputs where the last stage of the first replica is, and elsewhere nothing."""
    ours, theirs = SAMPLES["gpt_tied"](), SAMPLES["gpt_tied"]()
    with pipeline(ours, replicas=2, microbatches=4) as pipe:
        found = pipe.predict(ours.batch)
    if found is None:
        return None
    with torch.no_grad():
        expected = theirs.model.eval()(*theirs.batch[:-1])
    return [len(found), float((found - expected).norm() / expected.norm())]


def test_replicas_predict(tmp_path):
    """One rank has the outputs of every row, in order, whichever replica trains on it."""
    outcomes = run_ranks(predict, 2, tmp_path)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].output[-3000:]
    (rows, error), other = (outcome.value for outcome in outcomes)
    assert rows == 7
    assert error <= TOLERANCE
    assert other is None


def test_three_processes(tmp_path):
    """Three processes, with a rank that neither begins nor ends the pipeline."""
    check_all(run_ranks(train_all, 3, tmp_path, "1f1b", 3, timeout_s=110))


SAME_BITS = [
    "mlp",
    "gpt_tied",
    "unet",
    "fan_out",
    "shared_block",
    "dropout_in_blocks",
    "llama_tied",
]


def write_gradients(names, folder):
    """One step of each sample; this rank's gradients and the norm into files of ``folder``."""
    for name in names:
        sample = SAMPLES[name]()
        with repeatable_cuts(), pipeline(sample, microbatches=4) as pipe:
            loss = float(pipe.step(sample.batch))
            norm = pipe.clip_grad_norm_(1.0)
            held = {n: p.grad for n, p in pipe.named_parameters() if p.grad is not None}
            held["loss and norm"] = torch.tensor([loss, norm], dtype=torch.float64)
        save_file(held, Path(folder) / f"{name}.{os.environ.get('RANK', 'all')}")


def test_bits_of_processes_and_threads(tmp_path):
    """Gradients, loss and norm of 2 processes are those of 3 threads to the last bit."""
    ran = tmp_path / "ran"
    ran.mkdir()
    outcomes = run_ranks(write_gradients, 2, ran, SAME_BITS, str(tmp_path), timeout_s=110)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].output[-3000:]
    for name in SAME_BITS:
        sample = SAMPLES[name]()
        with repeatable_cuts(5), pipeline(sample, microbatches=4, ranks=3) as pipe:
            loss = float(pipe.step(sample.batch))
            norm = pipe.clip_grad_norm_(1.0)
        expected = {n: g for n, g in gradients(sample.model).items() if g is not None}
        expected["loss and norm"] = torch.tensor([loss, norm], dtype=torch.float64)
        found = [load_file(tmp_path / f"{name}.{rank}") for rank in (0, 1)]
        assert set(found[0]) | set(found[1]) == set(expected), name
        for tensors in found:
            wrong = [n for n, tensor in tensors.items() if not torch.equal(tensor, expected[n])]
            assert wrong == [], name


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from test_equality_processes import train
errors = train("gpt_tied", "1f1b", "none", 4)
assert errors.pop("state") < 1e-8, errors
assert max(errors.values()) <= 1e-12, errors
print("equal", flush=True)
"""


@pytest.mark.parametrize("launcher", ["intandem", "torchrun"])
def test_under_a_launcher(launcher, tmp_path):
    """The same under ``intandem run`` and ``torchrun``, which set up the processes themselves."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(paths=[str(Path(__file__).parent), *sys.path]))
    done = subprocess.run(
        command(launcher, 2, str(script)), capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.count("equal") == 2


def build_differently():
    """Each rank builds another model than rank 0; returns the error's text."""
    rank = int(os.environ["RANK"])
    sample = SAMPLES["gpt_tied" if rank == 0 else "gpt_untied"]()
    try:
        with pipeline(sample, microbatches=2):
            return "built"
    except it.PipelineError as error:
        return f"{type(error).__name__}: {error}"


def test_ranks_that_built_other_models(tmp_path):
    """A rank whose model differs from rank 0's is named before the first step."""
    first, second = run_ranks(build_differently, 2, tmp_path, timeout_s=60)
    assert second.value == (
        "RunError: rank 1 built another model than rank 0, or gave it another example; build both "
        "alike on every rank, after torch.manual_seed(...)"
    )
    assert re.match(r"(PeerFailureError|RunError): .*rank 1", str(first.value), re.DOTALL)


def step_on_other_batches():
    """Rank 1 has another batch in the second step; returns what each step said."""
    rank = int(os.environ["RANK"])
    sample = SAMPLES["mlp"]()
    said = []
    x, y = sample.batch
    with pipeline(sample, microbatches=2) as pipe:
        for batch in (sample.batch, (x + rank, y)):
            try:
                said.append(f"loss {float(pipe.step(batch)):.3f}")
            except it.PipelineError as error:
                said.append(f"{type(error).__name__}: {error}")
    return said


def test_ranks_that_disagree_on_the_batch(tmp_path):
    """The rank with the other batch names itself, and the other ranks name it."""
    first, second = run_ranks(step_on_other_batches, 2, tmp_path, timeout_s=60)
    assert first.value[0] == second.value[0]
    assert re.match(
        r"BatchError: rank 1 has another batch than rank 0: .*; give every rank the same batch",
        second.value[1],
    )
    assert re.match(r"PeerFailureError: rank 1\b.*BatchError", first.value[1], re.DOTALL)


def ask_for_three_ranks():
    """``ranks=3`` in a job of two processes."""
    try:
        with pipeline(SAMPLES["mlp"](), ranks=3):
            return "built"
    except it.PipelineError as error:
        return str(error)


def test_ranks_against_the_launcher(tmp_path):
    """``ranks`` other than the number of processes that were launched is refused."""
    for outcome in run_ranks(ask_for_three_ranks, 2, tmp_path):
        assert outcome.value == (
            "ranks=3, but the launcher started 2 processes (WORLD_SIZE); leave ranks out, or "
            "start 3"
        )
