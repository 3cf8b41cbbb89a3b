"""``intandem check``: scripts that do not get as far as a step say so in a line, with status 2."""

import json

import pytest

from intandem.cli.main import main

TRAIN = """
import argparse
import torch
from torch import nn
import intandem as it

parser = argparse.ArgumentParser()
parser.add_argument("--scale", type=float, required=True)
scale = parser.parse_args().scale
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
batch = torch.ones(8, 4)
with it.Pipeline(model, example=batch, loss=lambda o, b: scale * o.pow(2).mean(), ranks=2) as pipe:
    print("ranks", pipe.num_ranks)
    pipe.step(batch)
"""
MODULE = """
import json
import os.path as renamed

value = {}


def job():
    return json.loads("{")


def nothing():
    return 3


if __name__ == "__main__":
    value["key"]
"""
STARTS = """
raise SystemError("training began")


def job():
    pass
"""
FAILS = """
import torch
from torch import nn
import intandem as it


class Divides(nn.Linear):
    def forward(self, x):
        raise ZeroDivisionError("forward")


def job():
    return it.Job(nn.Sequential(Divides(2, 2)), torch.ones(2, 2), lambda o, b: o.mean())
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Run ``check`` on a script; returns the exit status, output and the last line of errors."""
    monkeypatch.chdir(tmp_path)

    def run(text, *arguments, target="script.py"):
        (tmp_path / "script.py").write_text(text)
        status = main(["check", target, *arguments])
        shown = capsys.readouterr()
        return status, shown.out, shown.err.splitlines()[-1]

    return run


def test_a_script_with_arguments(check):
    """Options of the script are passed to it in one string."""
    status, out, _ = check(TRAIN, "--script-args=--scale 3", "--format=json")
    assert status == 0
    assert out.splitlines()[0] == "ranks 2"
    assert json.loads(out.partition("\n")[2])["equal"]


def test_a_script_that_wants_arguments(check):
    """What argparse says is followed by the way to pass them."""
    status, _, said = check(TRAIN)
    assert status == 2
    assert said == (
        "intandem: script.py exited with 2 before it had shown what it trains; if it wants "
        'arguments, give them with --script-args="..."'
    )


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        (MODULE, "script.py", "script.py raised KeyError: 'key' at script.py:17"),
        (MODULE, "script.py:nothing", "nothing() returned a int; expected intandem.Job(model, "),
        (MODULE, "script.py:jub", "script.py has no function 'jub'; it has job, nothing"),
        (MODULE, "script.py:renamed", "script has no function 'renamed'; it has job, nothing"),
        (STARTS, "script.py:nope", "script.py has no function 'nope'; it has job"),
        (STARTS, "script.py:job", "script.py raised SystemError: training began at "),
        (FAILS, "script.py:job", "script.py:job raised ZeroDivisionError: forward at "),
        ("1 +", "script.py:job", "script.py is not Python: invalid syntax (script.py, line 1)"),
        ("1 +", "script.py", "script.py raised SyntaxError: invalid syntax"),
        ("x = 1", "script.py", "script.py ended without a step of a Pipeline; there is nothing"),
        ("import sys; sys.exit(0)", "script.py", "script.py ended without a step of a Pipeline"),
        ("x = 1", "absent.py:job", "there is no file 'absent.py'"),
    ],
)
def test_scripts_that_cannot_be_checked(check, text, target, said):
    """Status 2 and a line with what was raised and where, instead of a traceback."""
    status, _, shown = check(text, target=target)
    assert status == 2
    assert shown.startswith(f"intandem: {said}")


def test_the_innermost_line_of_the_user(check):
    """The place is the user's own last line, not the library's that raised."""
    _, _, shown = check(MODULE, target="script.py:job")
    assert "raised JSONDecodeError: " in shown
    assert shown.endswith("script.py:9")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ranks", "0"], "--ranks must be 1 or more, got 0"),
        (["--microbatches", "0"], "--microbatches must be 1 or more, got 0"),
        (["--schedule", "1f2b"], "unknown schedule '1f2b'"),
        (["--", "--lr", "0.1"], 'arguments of the script are given with --script-args="--lr 0.1"'),
    ],
)
def test_refused_before_the_script_runs(check, arguments, said):
    """Numbers and names are looked at first."""
    status, _, shown = check(STARTS, *arguments)
    assert status == 2
    assert shown.startswith(f"intandem: {said}")


WAYS_OUT = """
import torch
from torch import nn
import intandem as it


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x) if float(self.inner(x).detach().sum()) > -1e9 else x


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = Decides(), Decides()

    def forward(self, x):
        return self.two(self.one(x))


def loss(output, batch):
    return output.square().mean()


x = torch.ones(4, 2)
"""


NEEDS = f"""{WAYS_OUT}
class Masked(nn.Linear):
    def forward(self, input, mask):
        return super().forward(input) * mask


def one(given):
    return it.Job(Model(), x)


def masked():
    return it.Job(Masked(2, 2), {{"input": x}}, loss)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one", "intandem: one is called without arguments, and needs given; give them defaults"),
        ("masked", "'mask'; the batch has input; add 'mask' to it, or give inputs="),
    ],
)
def test_what_is_needed_is_not_given(check, name, said):
    """What is missing is named, and what to do."""
    status, _, shown = check(NEEDS, target=f"script.py:{name}")
    assert status == 2
    assert said in shown


def test_more_microbatches_than_rows(check):
    """As many as ran are shown, beside what was asked for."""
    status, out, _ = check(f"{WAYS_OUT}\nit.Pipeline([Model()], example=x, loss=loss).step(x)\n",
                           "--ranks=1", "--microbatches=9")  # fmt: skip
    assert status == 0
    assert out.splitlines()[0].endswith("4 micro-batches (9 asked for)")


@pytest.mark.parametrize(
    "made",
    [
        "it.Pipeline(Model(), example=x, loss=loss, blocks=[Decides])",
        "it.Pipeline([Decides(), Decides()], example=x, loss=loss)",
    ],
)
def test_a_script_with_a_way_out(check, made):
    """Blocks and stages by hand are the script's."""
    status, out, _ = check(f"{WAYS_OUT}\n{made}.step(x)\n")
    assert status == 0, out
    assert out.splitlines()[-1].startswith("EQUAL")
