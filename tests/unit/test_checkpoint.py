"""Saving and going on, at any number of ranks, with the numbers of a run that never stopped."""

import copy
import logging
import os
import sys
import threading
import time

import pytest
import torch
from torch import nn

import intandem as it
from checkpoint_runs import adamw, batches, differing, model, pipeline, train
from intandem.checkpoint import CheckpointFolder, load_into, read_state
from intandem.checkpoint.disk import RealDisk
from intandem.errors import CheckpointError
from models import SAMPLES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of six steps, saved after three: its folder, losses after that, last state."""
    folder = tmp_path_factory.mktemp("run") / "three"
    trained, some = model(), batches(6)
    with pipeline(trained, ranks=2) as pipe:
        optimizer = adamw(pipe.parameters())
        train(pipe, optimizer, some[:3])
        optimizer.param_groups[0]["lr"] = 0.02
        saved = pipe.save(folder, optimizer=optimizer, extra={"epoch": 1})
        assert saved.done
        assert saved.wait() == folder
        losses = train(pipe, optimizer, some[3:])
    return folder, losses, trained.state_dict()


@pytest.mark.parametrize(
    "kwargs",
    [{"ranks": 1}, {"ranks": 3, "schedule": "gpipe"}, {"ranks": 2, "schedule": "interleaved"}],
    ids=str,
)
@pytest.mark.parametrize("own", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(run, kwargs, own):
    """Losses and state are equal to the last bit: draws, rates and moments go on."""
    folder, losses, state = run
    trained = model()
    options = it.Options(threads_per_rank=1, seed=7)  # the checkpoint's counts
    with pipeline(trained, options=options, **kwargs) as pipe:
        optimizer = pipe.optimizer(adamw) if own else adamw(pipe.parameters())
        assert pipe.load(folder, optimizer=optimizer) == {"epoch": 1}
        assert optimizer.param_groups[-1]["lr"] == 0.02
        assert train(pipe, optimizer, batches(6)[3:]) == losses
        found = pipe.state_dict()
    assert differing(found, state) == []


def test_an_optimizer_of_the_pipelines_is_saved_like_any(run, tmp_path):
    """Its groups' options are the user's, though ranks have optimizers of their own."""
    folder, _, _ = run
    with pipeline(model(), ranks=3) as pipe:
        optimizer = pipe.optimizer(adamw)
        train(pipe, optimizer, batches(3))
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        pipe.save(tmp_path / "own", optimizer=optimizer)
    ours, theirs = read_state(tmp_path / "own"), read_state(folder)
    assert differing(ours.model, theirs.model) == []
    assert ours.optimizer["groups"] == theirs.optimizer["groups"]
    for name, state in theirs.optimizer["state"].items():
        assert differing(ours.optimizer["state"][name], state) == []


def test_into_the_plain_model(run):
    folder, _, _ = run
    plain = model()
    optimizer = torch.optim.AdamW(
        [{"params": [p for n, p in plain.named_parameters() if n.endswith(kind)]}
         for kind in ("bias", "weight")]
    )  # fmt: skip
    assert load_into(plain, folder, optimizer) == {"epoch": 1}
    saved = read_state(folder)
    assert (saved.num_steps, saved.seed) == (3, 0)
    assert differing(plain.state_dict(), saved.model) == []
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.02]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    for name, parameter in plain.named_parameters():
        assert differing(optimizer.state[parameter], saved.optimizer["state"][name]) == []


def test_a_save_in_the_background_is_of_its_own_moment(tmp_path):
    """The copy is made before ``save`` returns; what trains on meanwhile is not in it."""
    trained, begun = model(), threading.Event()

    class Slow(RealDisk):
        def write_tensors(self, file, tensors):
            assert begun.wait(30)
            super().write_tensors(file, tensors)

    with pipeline(trained, ranks=2) as pipe:
        pipe._checkpoints.disk = Slow()
        optimizer = adamw(pipe.parameters())
        train(pipe, optimizer, batches(2))
        before = {name: t.clone() for name, t in trained.state_dict().items()}
        moments = {n: optimizer.state[p]["exp_avg"].clone() for n, p in pipe.named_parameters()}
        saved = pipe.save(tmp_path / "c", optimizer=optimizer, wait=False)
        assert not saved.done
        train(pipe, optimizer, batches(2))
        assert not (tmp_path / "c").exists()
        begun.set()
        assert saved.wait() == tmp_path / "c"
    found = read_state(tmp_path / "c")
    assert differing(found.model, before) == []
    theirs = {name: state["exp_avg"] for name, state in found.optimizer["state"].items()}
    assert differing(theirs, moments) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority")
def test_a_save_in_the_background_leaves_the_cores_to_training(tmp_path):
    """Its thread is nicer than the one that asks for it, which stays as it was."""

    def niceness():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    found = []

    class Noting(RealDisk):
        def write_tensors(self, file, tensors):
            found.append(niceness())
            super().write_tensors(file, tensors)

    before = niceness()
    with pipeline(model(), ranks=1) as pipe:
        pipe._checkpoints.disk = Noting()
        pipe.save(tmp_path / "waited", wait=True)
        pipe.save(tmp_path / "behind", wait=False).wait()

    assert niceness() == before
    assert found == [before, min(before + 10, 19)]


class Full(RealDisk):
    def write_tensors(self, file, tensors):
        msg = "no space left on device"
        raise OSError(msg)


@pytest.mark.parametrize("wait", [True, False])
def test_what_fails_is_raised_and_leaves_nothing(tmp_path, wait):
    """At once, or by the next call that has to do with checkpoints; the pipeline goes on."""
    with pipeline(model(), ranks=2) as pipe:
        real, pipe._checkpoints.disk = pipe._checkpoints.disk, Full()
        saved = "rank 0: OSError: no space left on device"
        if wait:
            with pytest.raises(CheckpointError, match=saved):
                pipe.save(tmp_path / "c")
        else:
            failing = pipe.save(tmp_path / "c", wait=False)
            while not failing.done:
                time.sleep(0.01)
            pipe._checkpoints.disk = real
            with pytest.raises(CheckpointError, match=saved):
                pipe.save(tmp_path / "c")
        assert list(tmp_path.iterdir()) == []
        pipe._checkpoints.disk = real
        pipe.save(tmp_path / "c", wait=False)
    assert read_state(tmp_path / "c").num_steps == 0


def test_closing_waits_and_says_what_failed(tmp_path):
    pipe = pipeline(model(), ranks=1)
    pipe._checkpoints.disk = Full()
    pipe.save(tmp_path / "c", wait=False)
    with pytest.raises(CheckpointError, match="no space left"):
        pipe.close()


def test_nothing_is_written_over(tmp_path):
    """An empty folder will do."""
    (tmp_path / "empty").mkdir()
    with pipeline(model(), ranks=1) as pipe:
        pipe.save(tmp_path / "empty")
        with pytest.raises(CheckpointError, match="is there already"):
            pipe.save(tmp_path / "empty")


SGD = {"lr": 0.1, "momentum": 0.9}
OTHERS = {
    "sgd": lambda p: torch.optim.SGD(p, **SGD),
    "adagrad": torch.optim.Adagrad,
    "tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "adafactor": torch.optim.Adafactor,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_optimizers(tmp_path, kind):
    """Any whose state is tensors and numbers: moments, sums, rows and columns."""
    some = batches(4)
    with pipeline(model(), ranks=2) as pipe:
        optimizer = OTHERS[kind](pipe.parameters())
        train(pipe, optimizer, some[:2])
        pipe.save(tmp_path / "c", optimizer=optimizer)
        expected = train(pipe, optimizer, some[2:])
    with pipeline(model(), ranks=3) as pipe:
        optimizer = OTHERS[kind](list(pipe.parameters()))
        pipe.load(tmp_path / "c", optimizer=optimizer)
        assert train(pipe, optimizer, some[2:]) == expected


def test_moments_keep_their_precision(tmp_path):
    """Float32 moments of bfloat16 parameters are not rounded, as torch's own loading does."""
    plain = nn.Linear(4, 4).bfloat16()
    batch = torch.randn(4, 4).bfloat16()
    kwargs = {"example": batch, "loss": lambda o, b: o.sum(), "ranks": 1, "microbatches": 1}
    with it.Pipeline(nn.Sequential(plain), **kwargs) as pipe:
        optimizer = adamw(pipe.parameters())
        pipe.step(batch)
        optimizer.step()
        state = optimizer.state[plain.weight]
        state["exp_avg"] = torch.full((4, 4), 1 / 3)
        pipe.save(tmp_path / "c", optimizer=optimizer)
    optimizer = adamw(plain.parameters())
    load_into(nn.Sequential(plain), tmp_path / "c", optimizer)
    assert optimizer.state[plain.weight]["exp_avg"].dtype == torch.float32
    assert torch.equal(optimizer.state[plain.weight]["exp_avg"], state["exp_avg"])


def test_tied_weights_are_written_once(tmp_path):
    """Under their first name; a model where they are tied, or are not, finds both."""
    sample = SAMPLES["gpt_tied"]()
    with it.Pipeline(
        sample.model, example=sample.batch, loss=sample.loss, ranks=3, microbatches=2
    ) as pipe:
        optimizer = adamw(pipe.parameters())
        pipe.step(sample.batch)
        optimizer.step()
        pipe.save(tmp_path / "c", optimizer=optimizer)
        state = pipe.state_dict()
    found = read_state(tmp_path / "c")
    assert differing(found.model, state) == []
    size = sum(f.stat().st_size for f in (tmp_path / "c").glob("model-*"))
    once = sum(t.numel() * t.element_size() for _, t in sample.model.named_parameters())
    assert size < 1.5 * once
    untied = SAMPLES["gpt_untied"]().model
    load_into(untied, tmp_path / "c")
    assert differing(untied.state_dict(), state) == []


def test_scaler(tmp_path):
    with pipeline(model(), ranks=1) as pipe:
        scaler = pipe.grad_scaler(init_scale=8.0, growth_interval=3)
        scaler._growth_tracker.fill_(2)
        optimizer = adamw(pipe.parameters())
        pipe.save(tmp_path / "c", optimizer=optimizer)
    with pipeline(model(), ranks=1) as pipe:
        optimizer = adamw(pipe.parameters())
        with pytest.raises(CheckpointError, match=r"call pipe\.grad_scaler\(\) before load"):
            pipe.load(tmp_path / "c", optimizer=optimizer)
        scaler = pipe.grad_scaler()
        pipe.load(tmp_path / "c", optimizer=optimizer)
        assert (scaler.get_scale(), scaler._get_growth_tracker()) == (8.0, 2)
        assert scaler.get_growth_interval() == 3


def test_a_model_on_meta(run):
    """Its parameters get data when the pipeline is built, and then the checkpoint's."""
    folder, losses, _ = run
    with torch.device("meta"):
        trained = model()
    with pipeline(trained, ranks=2, weights="init") as pipe:
        optimizer = adamw(pipe.parameters())
        pipe.load(folder, optimizer=optimizer)
        assert train(pipe, optimizer, batches(6)[3:]) == losses


def test_extra_comes_back_equal(tmp_path):
    scheduler = torch.optim.lr_scheduler.MultiStepLR(adamw(model().parameters()), [2, 4])
    extra = {"scheduler": dict(scheduler.state_dict()), "best": float("inf"), "pair": (1, [None])}
    with pipeline(model(), ranks=1) as pipe:
        pipe.save(tmp_path / "c", extra=extra)
        assert pipe.load(tmp_path / "c") == extra


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"a": [torch.ones(3)]}, r"extra\['a'\]\[0\] is a tensor of shape \(3,\)"),
        ({"a": {"b": object()}}, r"extra\['a'\]\['b'\] is a object"),
        ({"a": {(1, 2): 3}}, r"extra\['a'\] has a key \(1, 2\), a tuple"),
    ],
)
def test_extra_that_is_no_json_is_refused(tmp_path, extra, said):
    with pipeline(model(), ranks=1) as pipe, pytest.raises(CheckpointError, match=said):
        pipe.save(tmp_path / "c", extra=extra)
    assert list(tmp_path.iterdir()) == []


def test_another_model_or_optimizer_is_refused_before_anything_changes(run):
    folder, _, _ = run
    other, plain = nn.Sequential(nn.Linear(6, 6)), model()
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(CheckpointError, match=r"is not this model's: missing 0\.weight"):
        load_into(other, folder)
    with pytest.raises(CheckpointError, match="class SGD; the checkpoint's state is of AdamW"):
        load_into(plain, folder, torch.optim.SGD(plain.parameters()))
    with pytest.raises(CheckpointError, match=r"the optimizer does not have 3\.bias, one of 1 "):
        load_into(plain, folder, adamw(list(plain.parameters())[:-1]))
    with pytest.raises(CheckpointError, match="a parameter of shape"):
        load_into(plain, folder, adamw(other.parameters()))
    wide = model()
    wide[3] = nn.Linear(6, 4)
    with pytest.raises(CheckpointError, match=r"3\.weight is \(3, 6\), expected \(4, 6\)"):
        load_into(wide, folder)
    assert differing(plain.state_dict(), before) == []


def test_a_folder_of_checkpoints(tmp_path, caplog):
    """The newest whole one, the last K, and what is wrong with others."""
    checkpoints = CheckpointFolder(tmp_path / "run", keep=2)
    with pytest.raises(CheckpointError, match=r"has no whole checkpoint$"):
        checkpoints.latest()
    with pipeline(model(), ranks=1) as pipe:
        for step in (1, 2, 3, 4):
            pipe.save(checkpoints.path(step), extra={"step": step})
    assert checkpoints.steps() == [1, 2, 3, 4]
    left = checkpoints.path(4).with_name("step-00000004.partial-1234")
    newer = checkpoints.path(5).with_name("step-00000005.partial-1234")
    left.mkdir()
    newer.mkdir()
    checkpoints.prune()
    assert checkpoints.steps() == [3, 4]
    assert not left.exists()
    assert newer.exists()  # may be at it still
    (checkpoints.path(4) / "manifest.json.sha256").unlink()
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest() == checkpoints.path(3)
    assert "step-00000004/manifest.json.sha256 is missing" in caplog.text
    (checkpoints.path(3) / "model-rank0-1.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest()
    assert "step-00000003/model-rank0-1.safetensors is missing" in str(caught.value)
    assert "step-00000005.partial-1234: it was not finished" in str(caught.value)
