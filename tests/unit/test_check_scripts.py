"""``check`` on what users bring: scripts, draws nobody keys, low precision, optimizers."""

import json

import pytest
import torch
from torch import nn

from intandem.cli.main import main
from intandem.equality import Numbers, compare
from intandem.equality.updates import described, rebuilt, slack_of, updated

HEAD = """
import random

import numpy
import torch
from torch import nn
from torch.nn import functional as F
import intandem as it

torch.manual_seed(0)
x, y = torch.randn(12, 6), torch.randint(3, (12,))


def class_loss(output, batch):
    return F.cross_entropy(output.float(), batch[1])


def train(model, optimizer=None):
    return it.Job(model, (x, y), class_loss, optimizer)


"""
SCRIPT = """
other = it.Pipeline(nn.Linear(2, 2), example=x[:, :2], loss=lambda o, b: o.mean())
model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
pipe = it.Pipeline(model, example=(x, y), loss=class_loss, ranks=2, microbatches=3)
named = dict(pipe.named_parameters())
groups = [
    {"params": [p for n, p in named.items() if n.endswith("weight")], "weight_decay": 0.1},
    {"params": [p for n, p in named.items() if n.endswith("bias")], "lr": 0.5},
]
optimizer = torch.optim.AdamW(groups, lr=0.01)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
print("loss", pipe.evaluate((x, y)), "outputs", tuple(pipe.predict((x, y)).shape))
print("state", len(pipe.state_dict()), "norm", pipe.clip_grad_norm_(1.0), pipe.num_recordings)
pipe.step((x, y))
raise SystemError("the first step is enough")
"""
BATCH_NORM = """
def job():
    return train(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))
"""
CONTRASTIVE = """
class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        logits = self.left(x) @ self.right(x).T
        return {"loss": F.cross_entropy(logits, torch.arange(len(x)))}


def job():
    return it.Job(Pairs(), x)
"""
DRAWS = """
class Drop(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.generator = torch.Generator().manual_seed(1)
        self.arrays, self.python = numpy.random.default_rng(1), random.Random(1)

    def forward(self, x):
        return self.linear(x) * torch.as_tensor(%s)


def job():
    return train(nn.Sequential(nn.Linear(6, 6), Drop(), nn.Linear(6, 3)))
"""
SPARSE = """
def job():
    model = nn.Embedding(9, 3, sparse=True)
    return it.Job(model, torch.arange(8), lambda output, batch: output.square().mean()%s)
"""
HALF = """
class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3).half()

    def forward(self, x):
        return self.linear(x.half())


def job():
    return train(Half())
"""
AUTOCAST = """
class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.linear(x)


def job():
    return train(Mixed())
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Run ``check`` on one of the texts; returns the exit status, what it says, and its object."""
    monkeypatch.chdir(tmp_path)

    def run(text, *arguments, target="script.py:job"):
        (tmp_path / "script.py").write_text(HEAD + text)
        status = main(["check", target, *arguments, "--ranks", "1", "--format", "json"])
        shown = capsys.readouterr()
        lines = shown.out.splitlines()
        found = json.loads(lines[-1]) if status != 2 else None
        return status, lines[:-1] + shown.err.splitlines(), found

    return run


def test_a_script_that_evaluates_first(check):
    """Up to the first step the plain model answers; the optimizer with its groups is taken."""
    status, said, found = check(SCRIPT, "--ranks", "2", target="script.py")
    assert status == 0
    assert said[0].startswith("loss 0.")
    assert said[0].endswith("outputs (12, 3)")
    assert said[1] == "state 4 norm 0.0 1"
    assert found["optimizer"] == "AdamW(lr=0.01)"
    assert found["num_microbatches"] == 3
    assert found["num_outputs"] == 1
    assert found["num_parameters"] == 4
    assert found["whole_batch"] is None


@pytest.mark.parametrize("asks", ["pipe.timeline()", "pipe.program()", "pipe.report_value()"])
def test_what_only_a_step_can_tell(check, asks):
    """What a pipeline refuses before its first step is refused by the stand-in, in its words."""
    status, said, _ = check(SCRIPT.replace("optimizer =", f"{asks} #"), target="script.py")
    assert status == 2
    assert said[-1] == "intandem: no step has run yet, so there is nothing to show"


def test_what_the_stand_in_does_not_know(check):
    """Other questions say what to do."""
    text = SCRIPT.replace("optimizer =", "pipe.save('x') #")
    status, said, _ = check(text, target="script.py")
    assert status == 2
    assert "(save()); do that after the first step, or give check a function" in said[-1]


def test_a_script_with_a_gradient_scaler(check):
    """As the manual writes it; before the first step its methods leave the plain model alone."""
    head, tail = SCRIPT.split("pipe.step((x, y))")
    text = f"""{head}
scaler = pipe.grad_scaler(init_scale=1024.0)
scaler.unscale_(optimizer), scaler.step(optimizer), scaler.update()
print("scale", scaler.get_scale(), pipe.recordings())
pipe.step((x, y)){tail}"""
    status, said, found = check(text, target="script.py")
    assert status == 0
    assert said[2] == "scale 1.0 ()"
    assert found["optimizer"] == "AdamW(lr=0.01)"


def test_a_script_whose_ranks_step_their_own_parameters(check):
    """Its optimizer is made by the pipeline; the pipeline is left by the exception that ends it."""
    head, tail = SCRIPT.split("pipe.step((x, y))")
    head = head.replace("torch.optim.AdamW(groups,", "pipe.optimizer(lambda p: torch.optim.SGD(p,")
    text = head.replace("lr=0.01)", "lr=0.01))") + "with pipe:\n    pipe.step((x, y))" + tail
    status, _, found = check(text, target="script.py")
    assert status == 0
    assert found["optimizer"] == "SGD(lr=0.01)"


@pytest.mark.parametrize("optimizer", ["", ", optimizer=lambda p: torch.optim.SparseAdam(list(p))"])
def test_sparse_gradients(check, optimizer):
    """Are compared, and the optimizer takes them."""
    status, _, found = check(SPARSE % optimizer)
    assert status == 0
    assert found["num_gradients"] == 1


@pytest.mark.parametrize("options", [[], ["--bisect"]])
def test_batch_norm_is_no_mistake(check, options):
    """Statistics of micro-batches are one process's; that the batch's differ is said."""
    status, _, found = check(BATCH_NORM, *options)
    assert status == 0
    assert found["whole_batch"]["cause"] == "micro-batching"
    assert found["whole_batch"]["place"] == "block 1 (BatchNorm1d)"
    assert found["whole_batch"]["why"] == "the statistics are the micro-batch's"
    assert found["whole_batch"]["error"] > 1e-3


def test_a_loss_of_the_whole_batch(check):
    """A loss in the model that compares rows is named with its line, and the way out."""
    status, _, found = check(CONTRASTIVE)
    assert status == 0
    line = (
        (HEAD + CONTRASTIVE).splitlines().index("        logits = self.left(x) @ self.right(x).T")
    )
    assert found["whole_batch"]["place"].endswith(f"script.py:{line + 1}")
    assert "matmul at" in found["whole_batch"]["place"]
    assert "WholeBatchLoss" in found["whole_batch"]["remedy"]


@pytest.mark.parametrize(
    "draw",
    [
        "self.arrays.random(6)",
        "[self.python.random() for _ in range(6)]",
        "torch.rand(6, generator=self.generator)",
    ],
)
def test_draws_that_nobody_keys(check, draw):
    """Generators of the model's own: randomness, in the block that draws."""
    status, _, found = check(DRAWS % draw, "--bisect")
    assert status == 1
    assert found["finding"]["cause"] == "randomness"
    assert found["finding"]["place"].startswith("block 1 (Drop)")
    assert [rung["same"] for rung in found["rungs"]] == [False]


@pytest.mark.parametrize("draw", ["numpy.random.rand(6)", "[random.random() for _ in range(6)]"])
def test_draws_that_are_keyed(check, draw):
    """The process's generators are keyed; draws are not taken for rows that see each other."""
    status, _, found = check(DRAWS % draw, "--bisect")
    assert status == 0
    assert found["whole_batch"] is None
    assert "draws random numbers even in evaluation mode" in found["rungs"][1]["worst"]


def test_a_model_that_float64_breaks(check):
    """It is checked in its own dtype, with that dtype's tolerance, and why is said."""
    status, _, found = check(HALF)
    assert status == 0
    assert found["dtype"] == "float16"
    assert found["tolerance"] == 1e-2
    assert found["why_own_dtype"].startswith("in float64 it raised RuntimeError: ")


def test_autocast_is_checked_where_it_acts(check):
    """Mixed precision does nothing to float64, so the model's own dtype is checked as well."""
    status, _, found = check(AUTOCAST)
    assert status == 0
    assert found["dtype"] == "float64"
    assert found["in_own_dtype"]["dtype"] == "float32"
    assert found["in_own_dtype"]["tolerance"] == 1e-4


def test_rounding_of_the_whole_batch_is_said(check):
    """Where a model computes in less than float64, the whole batch is the same but for that."""
    text = "def job():\n    return train(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)))\n"
    _, _, found = check(text, "--bisect")
    assert found["rungs"][1]["same"]
    assert found["rungs"][1]["worst"] == "same, to the rounding of float32"


@pytest.mark.parametrize(
    ("text", "options", "starts"),
    [
        (BATCH_NORM, [], "run loss outputs gradients buffers parameters all EQUAL: note"),
        (BATCH_NORM, ["--bisect"],
         "run loss outputs gradients buffers parameters all bisect, EQUAL: note"),
        (DRAWS % "self.arrays.random(6)", ["--bisect"],
         "run bisect, cause place why remedy DIFFERENT:"),
    ],
)  # fmt: skip
def test_text_for_people(text, options, starts, check, capsys, tmp_path):
    """A line per kind, the verdict, and with --bisect a story: cause, place, why and remedy."""
    (tmp_path / "script.py").write_text(HEAD + text)
    status = main(["check", "script.py:job", *options, "--ranks", "1"])
    assert status == (0 if text == BATCH_NORM else 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line and line[0] != " "] == starts.split()


# Parameters after the optimizer.


def model_with_gradients(gradients):
    model = nn.Linear(2, 1).double()
    model.weight.grad, model.bias.grad = gradients["weight"].clone(), gradients["bias"].clone()
    return model


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.0)


def test_rounding_that_an_optimizer_blows_up():
    """Adam makes of a gradient of rounding a step of any size: no mistake; a real one is."""
    torch.manual_seed(0)
    weight = torch.randn(1, 2, dtype=torch.float64)
    runs = []
    for bias in (1e-17, -1e-17, 1e-6):
        gradients = {"weight": weight, "bias": torch.full((1,), bias, dtype=torch.float64)}
        torch.manual_seed(1)
        after = updated(model_with_gradients(gradients), adam)
        torch.manual_seed(1)
        slack = slack_of(model_with_gradients(gradients), gradients, after, adam, 1e-12)
        runs.append(Numbers(1.0, {}, {}, {}, after, slack))
    assert compare(runs[1], runs[0]).equal
    assert not compare(runs[2], runs[0]).equal


def test_an_optimizer_is_made_again():
    """Groups, state and class go over to a copy; the original is left alone."""
    model, copy = nn.Linear(2, 1), nn.Linear(2, 1)
    copy.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(
        [{"params": [model.bias], "lr": 0.5}, {"params": [model.weight]}], lr=0.1, momentum=0.9
    )
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    stranger = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    factory = rebuilt([stranger, optimizer], list(model.parameters()))
    for one in (model, copy):
        one.weight.grad, one.bias.grad = torch.ones(1, 2), torch.ones(1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = updated(copy, factory)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    optimizer.step()
    assert all(torch.equal(p, after[name]) for name, p in model.named_parameters())
    assert rebuilt([], list(model.parameters())) is None
    instead = rebuilt([stranger], list(model.parameters()))
    assert described(instead, model).endswith("it made holds none of the model's parameters")
