"""The parts of the demo, one by one: text, model, progress, outcome."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from intandem.cli import progress
from intandem.cli.demo import run
from intandem.cli.demo.model import Sizes, build_gpt, loss_fn, plain_step
from intandem.cli.demo.outcome import Outcome
from intandem.cli.demo.progress import State
from intandem.cli.demo.text import Text, batch_of, load_text
from intandem.cli.demo.training import Budget, Data, Log
from intandem.cli.main import main
from intandem.cli.progress import reporting
from intandem.errors import RunError
from intandem.ir import Action, Span, Timeline
from intandem.train.examples import load_example
from intandem.views.html import _headlines
from intandem.views.report import Report

TINY = Sizes(width=16, num_blocks=2, num_heads=2, seq=8, rows=6)
STATE = State(step=7, done=0.25, loss=2.5, tokens_per_s=7500.4, bubble_ratio=0.121, left_s=61.0)
OUTCOME = Outcome("1f1b", 2, 8, 2_743_296, 3.232, 3.1e-15, "report.html")


@pytest.fixture
def sources(tmp_path):
    """A folder of 40 modules, each of one byte value, and some that are not for training."""
    for number in range(40):
        (tmp_path / f"module_{number:02}.py").write_bytes(bytes([number]) * 6000)
    for skipped in ("test", "pkg/tests", "site-packages"):
        (tmp_path / skipped).mkdir(parents=True)
        (tmp_path / skipped / "module.py").write_bytes(b"\xff" * 6000)
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_bytes(b"\xff" * 6000)
    return tmp_path


def test_files_are_held_out_whole(sources):
    """No byte of a held-out file is trained on; nothing is lost, and nothing else is read."""
    text = load_text(0, folder=sources)

    training, heldout = (set(data.tolist()) for data in (text.training, text.heldout))
    assert training | heldout == set(range(40))
    assert not training & heldout
    assert (len(heldout), text.num_files) == (2, 40)


def test_text_depends_on_the_seed_alone(sources):
    """The same seed holds out the same files."""
    first, again, other = (load_text(seed, folder=sources) for seed in (0, 0, 1))

    assert torch.equal(first.heldout, again.heldout)
    assert not torch.equal(first.heldout, other.heldout)


def test_too_little_text_is_refused(tmp_path):
    """The message says where it looked and what it found."""
    with pytest.raises(RunError, match=r"holds 0 bytes of Python sources in 0 files; .* 10000"):
        load_text(0, folder=tmp_path)


def test_this_machine_has_text():
    """The standard library is there, and its bytes say what English and code say."""
    text = load_text(0)

    assert len(text.training) > 1_000_000
    assert 2.5 < text.entropy < 4.0


def test_entropy_of_even_bytes(tmp_path):
    """Four byte values, equally often: log 4 nats."""
    data = torch.arange(4, dtype=torch.uint8).repeat(100)

    assert Text(tmp_path, 1, data, data).entropy == pytest.approx(math.log(4))


def test_batches():
    """Targets are the inputs one byte on; a step has its own batch, always the same one."""
    text = torch.arange(200, dtype=torch.uint8)
    inputs, targets = batch_of(text, rows=5, seq=7, seed=0, step=3)

    assert inputs.shape == targets.shape == (5, 7)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs, batch_of(text, rows=5, seq=7, seed=0, step=3)[0])
    assert not torch.equal(inputs, batch_of(text, rows=5, seq=7, seed=0, step=4)[0])
    assert not torch.equal(inputs, batch_of(text, rows=5, seq=7, seed=1, step=3)[0])


@pytest.mark.parametrize("tied", [True, False])
def test_gpt_sees_no_future(tied):
    """A later byte changes no earlier logits; the head is the embedding if tied."""
    model = build_gpt(TINY, tied=tied, seed=0)
    ids = torch.arange(8).repeat(2, 1)
    changed = ids.clone()
    changed[:, 5] += 1

    before, after = model(ids), model(changed)

    assert before.shape == (2, 8, 256)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])
    assert (model.head.weight is model.tokens.weight) == tied


@pytest.mark.parametrize("num_microbatches", [1, 3, 4])
def test_plain_step_is_the_whole_batch(num_microbatches):
    """Loss and gradients of the parts, uneven ones too, add up to those of the batch."""
    model = build_gpt(TINY, tied=True, seed=0).double()
    batch = batch_of(torch.arange(200, dtype=torch.uint8), rows=6, seq=8, seed=0, step=0)
    whole = loss_fn(model(batch[0]), batch)
    expected = torch.autograd.grad(whole, list(model.parameters()))

    loss = plain_step(model, batch, num_microbatches)

    assert loss == pytest.approx(whole.item(), rel=1e-12)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-14)


def test_missing_example_is_named():
    """The message says where it was looked for."""
    with pytest.raises(RunError, match=r"nothing\.py is not in .*examples or .*examples"):
        load_example("nothing")


def test_plain_lines_without_a_terminal(monkeypatch):
    """The first state at once, then one every few seconds; no control characters."""
    now = iter([0.0, 1.0, 4.9, 5.0, 9.9])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    out = io.StringIO()
    with reporting(Console(file=out, force_terminal=False)) as report:
        for _ in range(5):
            report(STATE)

    line = "step 7  loss 2.500  7,500 tokens/s  bubble 12.1 %  61 s left\n"
    assert out.getvalue() == 2 * line


def test_one_live_line_on_a_terminal():
    """States replace one another, and the line is gone at the end."""
    out = io.StringIO()
    with reporting(Console(file=out, force_terminal=True, width=100, color_system=None)) as report:
        report(STATE)

    assert "loss 2.500" in out.getvalue()
    assert out.getvalue().rstrip("\n").endswith("\x1b[2K")


@pytest.mark.parametrize(
    ("budget", "done"),
    [(Budget(None, 90.0), 0.5), (Budget(100, 90.0), 0.3), (Budget(20, 90.0), 1.0)],
)
def test_budget(budget, done):
    """Steps count where they are given, seconds otherwise."""
    assert budget.done(30, 45.0) == done


def test_the_typical_step_is_drawn():
    """One slow moment of the machine does not make the picture."""

    def report(seconds):
        span = Span(0, Action.parse("0F0"), 0.0, seconds)
        return Report("", "1f1b", 1, measured=Timeline((span,), 1))

    log = Log(snapshots=[report(seconds) for seconds in (9.0, 1.0, 1.1)])

    assert log.typical() is log.snapshots[2]
    assert Log().typical() is None


def test_outcome_for_reading():
    """What is not known says so."""
    text = OUTCOME.as_text()

    assert "byte entropy   3.232 nats per byte" in text
    assert "bubble         unknown measured, unknown planned" in text


def test_outcome_as_json():
    """One object with everything in it."""
    found = json.loads(OUTCOME.as_json())

    assert found["byte_entropy"] == 3.232
    assert {"heldout_loss", "speed_ratio", "bubble_ratio", "planned_bubble_ratio"} <= set(found)


@pytest.mark.parametrize(("error", "equal"), [(1e-13, True), (1e-11, False), (math.nan, False)])
def test_gradient_verdict(error, equal):
    """An error that is not a number is no equality."""
    outcome = Outcome("1f1b", 2, 8, 1, 3.2, error, "report.html")

    assert outcome.gradients_equal == equal
    assert ("DIFFER" in outcome.gradient_line) != equal


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "0"], "nothing to train in 0"),
        (["--seconds", "-1"], "nothing to train in -1"),
        (["--report", "/nowhere/at/all.html"], "there is no folder /nowhere/at"),
        (["--microbatches", "0"], "--microbatches must be 1 or more, got 0"),
        (["--ranks", "0"], "--ranks must be 1 or more, got 0"),
        (["--schedule", "1f2b"], "unknown schedule '1f2b'; known: naive, gpipe, 1f1b"),
        (["--schedule", "nowhere.csv"], "--schedule nowhere.csv: there is no such file"),
    ],
)
def test_refused_before_training(argv, message, capsys, monkeypatch):
    """What can be seen from the arguments is said at once, with status 2."""
    monkeypatch.setattr(run, "run", lambda arguments: pytest.fail("it began"))
    assert main(["demo", *argv]) == 2
    assert message in capsys.readouterr().err


def test_one_step_is_drawn_and_printed():
    """The terminal's makespan and bubble are those of the step that the report draws."""

    def report(seconds, idle_s):
        spans = (
            Span(0, Action.parse("0F0"), 0.0, seconds),
            Span(1, Action.parse("1F0"), 0.0, seconds - idle_s),
        )
        timeline = Timeline(spans, 2)
        return Report("", "1f1b", 1, planned=Timeline(spans[:1], 1), measured=timeline)

    log = Log(
        training=[(0, 2.5)],
        heldout=[(0, 2.5)],
        step_s=[1.0],
        bubble_ratios=[0.9],
        snapshots=[report(3.0, 0.1), report(1.0, 0.1), report(2.0, 0.8)],
    )
    drawn = log.typical()
    data = Data(Text(Path(), 1, torch.zeros(1), torch.zeros(1)), TINY, 0)

    outcome = run._completed(OUTCOME, log, data, drawn)

    assert drawn is log.snapshots[2]
    assert outcome.bubble_ratio == drawn.measured.bubble_ratio == pytest.approx(0.2)
    assert outcome.makespan_s == drawn.measured.makespan_s == 2.0
    said = "20.0 % measured, 0.0 % planned: the step drawn in the report, makespan 2.00 s"
    assert said in outcome.as_text()
    assert {"2.00 s", "20.0 %"} <= {value for _, value, _ in _headlines(drawn)}
