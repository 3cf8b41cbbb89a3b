"""Faults put into the pipeline are seen by ``check``, and ``--bisect`` says what they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import intandem as it
from faults import FAULTS, broken
from harness import repeatable_cuts
from intandem.equality import Cause, bisect
from models import SAMPLES

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")

CASES = {
    "gradient_scale_missing": ("mlp", {}, Cause.MICROBATCHING),
    "mean_of_means": ("loss_sum_padded", {}, Cause.MICROBATCHING),
    "tied_copy_dropped": ("gpt_tied", {}, Cause.CUTTING),
    "second_use_lost": ("shared_block", {}, Cause.CAPTURE),
    "skip_gradient_lost": ("unet", {"ranks": 3}, Cause.CUTTING),
    "buffers_updated_again_by_recomputation": (
        "batch_norm", {"recompute": "all"}, Cause.RECOMPUTATION,
    ),
    "buffer_update_lost": ("batch_norm", {}, Cause.MICROBATCHING),
    "microbatch_dropped": ("mlp", {}, Cause.MICROBATCHING),
    "microbatches_swapped": ("mlp", {}, Cause.MICROBATCHING),
    "draws_anew_under_recomputation": (
        "dropout_in_blocks", {"recompute": "all"}, Cause.RANDOMNESS,
    ),
    "draws_keyed_without_microbatch": ("dropout_in_glue", {}, Cause.RANDOMNESS),
    "write_in_place_lost": ("in_place_glue", {}, Cause.CAPTURE),
    "derived_value_wrong_on_a_stage": ("guarded_mask", {}, Cause.CUTTING),
    "autocast_dropped": ("mixed", {"tolerance": 1e-4, "ranks": 1}, Cause.CAPTURE),
    "blocks_in_evaluation_mode": ("batch_norm", {}, Cause.CAPTURE),
    "labels_counted_unshifted": ("padded_labels", {}, Cause.MICROBATCHING),
    "padding_counted": ("padded_labels", {}, Cause.MICROBATCHING),
    "rounded_on_the_wire": ("mlp", {}, Cause.CUTTING),
    "boundary_off_by_one": ("mlp", {}, Cause.CUTTING),
    "gradients_added_twice": ("mlp", {}, Cause.CUTTING),
    "gradient_of_another_microbatch": ("even_mlp", {"microbatches": 4}, Cause.SCHEDULE),
    "loss_value_of_the_first_microbatch": ("mlp", {}, Cause.MICROBATCHING),
    "rows_given_twice": ("mlp", {}, Cause.MICROBATCHING),
    "labels_counted_unshifted_everywhere": ("padded_labels", {}, Cause.MICROBATCHING),
}  # fmt: skip
"""By fault: a model that it shows in, how that is run, and what makes the difference."""

SHARED = {"rows_given_twice", "labels_counted_unshifted_everywhere"}
"""Faults in what both sides share, so that every run in tandem is what the plain one is."""


class Mixed(nn.Module):
    """Computes in bfloat16 between blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for block in self.blocks:
                x = torch.relu(block(x)) @ torch.ones(6, 6)
        return x.float()


def mixed():
    torch.manual_seed(0)
    return Mixed(), torch.randn(7, 6), lambda output, batch: output.pow(2).mean()


def padded_labels():
    model, batch, loss = SAMPLES["gpt2"]()
    batch["labels"][::2, 2:4] = -100
    return model, batch, loss


OWN = {"mixed": mixed, "padded_labels": padded_labels, "even_mlp": lambda: SAMPLES["mlp"](8)}


def case(name):
    """Arguments of ``check`` for a fault."""
    sample, options, cause = CASES[name]
    made = OWN[sample]() if sample in OWN else SAMPLES[sample]()
    return made, {"ranks": 2, "microbatches": 3, **options}, cause


def test_every_fault_has_a_case():
    """No fault goes untried."""
    assert CASES.keys() == FAULTS.keys()


@pytest.fixture(autouse=True)
def cuts():
    """Cut in the same places every time."""
    with repeatable_cuts():
        yield


@pytest.mark.parametrize("name", CASES)
def test_check_sees(name):
    """Numbers are one process's without the fault, and are not with it."""
    made, options, _ = case(name)
    sound = it.check(*made, **options)
    assert sound.equal, sound.ranked()
    with broken(name):
        assert not it.check(*made, **options).equal


@pytest.mark.parametrize("name", CASES)
def test_bisect_names_the_cause(name):
    """The first rung of the ladder that differs is the one that the fault belongs to."""
    made, options, cause = case(name)
    with broken(name):
        found = bisect(*made, **options)
    assert found.finding is not None
    assert not found.equal
    assert found.finding.cause is cause, found
    assert found.finding.place
    assert found.rungs[-1].same == (name in SHARED)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES.values()}))
def test_bisect_of_what_is_sound(name):
    """Every rung is the same, but for the whole batch where rows see each other."""
    made = OWN[name]() if name in OWN else SAMPLES[name]()
    tolerance = 1e-4 if name == "mixed" else 1e-12
    found = bisect(*made, ranks=2, microbatches=3, recompute="all", tolerance=tolerance)
    assert found.equal
    assert found.finding is None
    assert [rung.name for rung in found.rungs if not rung.same] in (
        [],
        ["plain, whole batch in one call"],
    )


JOB = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from faults import FAULTS
from models import SAMPLES
import intandem as it

FAULTS[{fault!r}](setattr)


def job():
    return it.Job(*SAMPLES[{sample!r}]())
"""


@pytest.mark.parametrize(
    "name", ["gradient_scale_missing", "rounded_on_the_wire", "draws_keyed_without_microbatch"]
)
def test_on_the_command_line(name, tmp_path):
    """``intandem check --bisect`` exits with 1 and says the cause."""
    sample, _, cause = CASES[name]
    tests = str(Path(__file__).parent.parent)
    (tmp_path / "jobs.py").write_text(JOB.format(tests=tests, fault=name, sample=sample))
    command = [
        sys.executable,
        "-c",
        "import sys; from intandem.cli.main import main; sys.exit(main())",
    ]
    options = ["--microbatches", "3", "--bisect", "--format", "json"]
    done = subprocess.run(
        [*command, "check", f"{tmp_path}/jobs.py:job", *options],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert not said["equal"]
    assert said["finding"]["cause"] == cause.value
