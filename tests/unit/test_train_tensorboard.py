"""Numbers of a run as TensorBoard's own reader finds them."""

import sys
from dataclasses import replace

import pytest

from intandem.errors import RunError
from intandem.train import train
from intandem.train.config import LoggingConfig
from intandem.train.loggers import find_loggers, read_metrics
from train_runs import CrashAt, HaltError, config


def test_every_number_arrives(tmp_path):
    """At its step, once, though the run crashed and some steps were run again."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    asked = replace(config(tmp_path), logging=LoggingConfig(tensorboard=True))
    with pytest.raises(HaltError):
        train(asked, progress=CrashAt(5))
    train(asked, resume=True)

    found = accumulators.EventAccumulator(str(tmp_path), purge_orphaned_data=True).Reload()
    lines = read_metrics(tmp_path)
    names = {name for line in lines for name in line if name != "step"}
    assert set(found.Tags()["scalars"]) == names >= {"loss", "lr", "validation_loss"}
    for name in names:
        expected = [(line["step"], line[name]) for line in lines if name in line]
        events = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in events] == [step for step, _ in expected]
        values = [value for _, value in expected]
        assert [value for _, value in events] == pytest.approx(values, rel=1e-6)


def test_without_tensorboard_it_is_named(tmp_path, monkeypatch):
    """The message says what to install."""
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(RunError, match=r"pip install .intandem\[tensorboard\]"):
        find_loggers(LoggingConfig(tensorboard=True), tmp_path, step=0)
