"""Recordings: found again, made anew when a guard, shape or mode differs, and accounted for."""

import copy
import itertools
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import intandem as it
from intandem.equality import Splitting, compare, numbers_of, one_process
from shapes import Masked, batch_of, loss


def train(model, batches, example=None, **kwargs):
    """Steps against one process; returns the notes of the recordings."""
    plain = copy.deepcopy(model)
    example = batches[0] if example is None else example
    microbatches = kwargs.pop("microbatches", 2)
    with it.Pipeline(
        model, example=example, loss=loss, ranks=2, microbatches=microbatches, **kwargs
    ) as pipe:
        for step, batch in enumerate(batches):
            plain.zero_grad()
            model.zero_grad()
            expected = one_process(plain, batch, loss, Splitting(microbatches), step=step)
            assert compare(numbers_of(model, float(pipe.step(batch))), expected).equal, step
        return pipe.recordings()


def test_lengths_vary_between_steps():
    """A length that was there before is not recorded again; a smaller last batch is."""
    batches = [batch_of(4, n) for n in (5, 7, 5, 7, 5)] + [batch_of(3, 5), batch_of(1, 7)]
    notes = train(Masked(), batches)
    assert len(notes) == 4  # 2 rows of 5 and of 7, 1 row of 5 and of 7
    assert [note.uses for note in notes] == [7, 4, 1, 1]
    assert notes[1].reason == (
        "mask is (2, 7) torch.bool, not (2, 5) torch.bool; "
        "x is (2, 7, 4) torch.float64, not (2, 5, 4) torch.float64"
    )


def test_lengths_vary_between_micro_batches():
    """A list of micro-batches is taken as it is; each is padded to its own length."""
    batches = [[batch_of(2, 3), batch_of(2, 6)], [batch_of(2, 6), batch_of(2, 3)]]
    notes = train(Masked(), batches)
    assert [note.uses for note in notes] == [2, 2]


def test_padding_masks_switch_the_path():
    """``if mask.all()`` is a guard: both paths are kept, each with its line."""
    full, padded = batch_of(4, 5), batch_of(4, 5, padded=2)
    mixed = {key: torch.cat([full[key][:2], padded[key][:2]]) for key in full}
    notes = train(Masked(), [full, padded, mixed, full, padded])
    assert len(notes) == 2
    assert [note.uses for note in notes] == [5, 5]
    assert "shapes.py:" in notes[0].guards[0]
    assert notes[0].guards[0].startswith("True at ")
    assert "shapes.py:" in notes[1].reason
    assert notes[1].reason.endswith(" is False, not as before")


def test_optional_keys_come_and_go():
    """An argument that is there, is None, or is left out."""
    plain, scaled = batch_of(4, 5), {**batch_of(4, 5), "scale": torch.full((4, 1, 1), 2.0).double()}
    none = {**batch_of(4, 5), "scale": None}
    notes = train(Masked(), [plain, scaled, none, plain, scaled])
    assert [note.reason.partition(" is ")[0] for note in notes[1:]] == ["scale", "scale"]


def test_dtypes_change():
    """Another dtype is another recording."""
    first = batch_of(4, 5)
    notes = train(Masked(), [first, {**first, "mask": first["mask"].int()}, first])
    assert notes[1].reason == "mask is (2, 5) torch.int32, not (2, 5) torch.bool"


def test_modes_and_what_is_frozen():
    """Evaluation, freezing and attributes are named as reasons."""
    model, batch = Masked(), batch_of(4, 5)
    with it.Pipeline(model, example=batch, loss=loss, ranks=2, microbatches=2) as pipe:
        pipe.step(batch)
        pipe.evaluate(batch)
        model.layers[0].requires_grad_(False)
        pipe.step(batch)
        model.factor = 3.0
        pipe.step(batch)
        notes = pipe.recordings()
    assert [note.number for note in notes] == [1, 2, 3, 4]
    assert [note.mode for note in notes[:2]] == ["training", "evaluation, no gradients"]
    assert notes[1].reason.startswith("training of the model is False, not True; training of")
    assert notes[2].reason.startswith("requires_grad of layers.0.weight is False, not True")
    assert notes[3].reason == "attribute factor is 3.0, not 1.0"
    assert all(note.seconds > 0 for note in notes)
    assert pipe.num_recordings == 4


def test_one_line_per_recording(caplog):
    """INFO says how long it took and why."""
    with caplog.at_level(logging.INFO, logger="intandem.runtime.recording_notes"):
        train(Masked(), [batch_of(4, 5), batch_of(4, 7)])
    lines = [record.message for record in caplog.records if "recorded the model" in record.message]
    assert len(lines) == 2
    assert lines[0].endswith("(recording 1): the first")
    assert "(recording 2): mask is (2, 7) torch.bool, not (2, 5)" in lines[1]


def test_recordings_that_never_end(caplog):
    """At the 16th, once, a warning names what changes each time."""

    class Annealed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.rate = 1.0
            self.double()

        def forward(self, x):
            for layer in self.layers:
                x = layer(x) * self.rate
            return x

    model, x = Annealed(), torch.randn(4, 4, dtype=torch.float64)

    def square(output, batch):
        return F.mse_loss(output, batch)

    with it.Pipeline(model, example=x, loss=square, ranks=2, microbatches=2) as pipe:
        for step in itertools.count():
            model.rate = 1 / (step + 1)
            pipe.step(x)
            if pipe.num_recordings == 20:
                break
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    (warning,) = [text for text in warnings if "has been recorded" in text]
    assert warning.startswith("the model has been recorded 16 times, which takes 0.")
    assert "what changes: attribute rate (15 times). Pad batches" in warning


@pytest.mark.parametrize("name", ["is_training", "training_mode"])
def test_attributes_that_sound_like_the_flag(name):
    """Only the flag itself is left out of the attributes."""
    model, batch = Masked(), batch_of(4, 5)
    setattr(model, name, False)
    with it.Pipeline(model, example=batch, loss=loss, ranks=2, microbatches=2) as pipe:
        pipe.step(batch)
        setattr(model, name, True)
        pipe.step(batch)
        assert pipe.recordings()[1].reason == f"attribute {name} is True, not False"
