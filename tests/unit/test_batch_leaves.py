"""What a batch may be made of, and how its leaves are named in ``split``."""

import enum
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn

import intandem as it
from intandem.errors import BatchError
from intandem.runtime.microbatch import check_split, fingerprint, plain_batch, split_batch


def squared(output, batch):
    return ((output - torch.as_tensor(batch["y"])) ** 2).mean()


def test_arrays_become_tensors():
    """A numpy array is split and compared as the tensor it stands for, read-only ones too."""
    x = np.arange(6.0).reshape(3, 2)
    x.setflags(write=False)
    parts = split_batch(UserDict(x=x, inner=UserDict(n=np.int64(3))), 2).parts
    assert [part["x"].tolist() for part in parts] == [[[0, 1], [2, 3]], [[4, 5]]]
    assert parts[0]["inner"] == {"n": torch.tensor(3)}
    assert fingerprint({"x": x}) == fingerprint({"x": torch.from_numpy(x.copy())})
    assert split_batch([x, x], 3).rows == (1, 1, 1)


def test_new_arrays_are_not_the_first():
    """Values of an array in a later batch are used, though numpy abbreviates how it prints."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 4), nn.Linear(4, 1)).double()
    batches = [{"input": np.random.default_rng(i).random((4, 600)), "y": 1.0} for i in range(2)]
    expected = [squared(model(torch.tensor(b["input"])), b).item() for b in batches]
    with it.Pipeline(model, example=batches[0], loss=squared, ranks=2, microbatches=2) as pipe:
        assert [float(pipe.step(b)) for b in batches] == pytest.approx(expected, rel=1e-12)


class Colour(enum.Enum):
    RED = 1


def test_plain_leaves():
    """Tensors, numbers, text, enumerations, dtypes and devices are leaves."""
    batch = [None, True, 1, 1.5, 1j, "s", b"b", Colour.RED, torch.float32, torch.device("cpu")]
    assert plain_batch(batch) == batch
    assert plain_batch({"shape": torch.Size([2, 3])}) == {"shape": (2, 3)}


@pytest.mark.parametrize("leaf", [object(), {1, 2}, torch.Generator(), slice(1, 2), range(3)])
def test_leaves_without_values(leaf):
    """A leaf that cannot be compared is refused, with its path and type."""
    batch = {"x": torch.zeros(4), "more": [1, leaf]}
    with pytest.raises(BatchError, match=rf"^more\.1 of the batch is a {type(leaf).__name__}, w"):
        split_batch(batch, 2)


def test_arrays_of_text():
    """An array that no tensor can hold is refused."""
    with pytest.raises(BatchError, match="the batch holds a ndarray that is no tensor's: "):
        plain_batch({"x": np.array(["a", "b"])})


def test_fingerprint_reads_to_the_end():
    """Values that differ far behind differ."""
    long = "a" * 1000
    assert fingerprint({"text": long + "b"}) != fingerprint({"text": long + "c"})


def test_one_value_per_row():
    """A list with as many values as there are rows is refused, unless it is to be given whole."""
    batch = {"x": torch.zeros(4, 2), "in": {"names": ["a", "b", "c", "d"]}, "size": (4, 2)}
    message = (
        r"^in\.names of the batch is a list of 4 values, as many as there are rows, .* make it a "
        r'tensor, or give it whole to every micro-batch: split=\{"in\.names": None\}$'
    )
    with pytest.raises(BatchError, match=message):
        split_batch(batch, 2)
    with pytest.raises(BatchError, match=message):
        split_batch(batch, 2, {"in": 0})
    for name in ("in", "in.names"):
        parts = split_batch(batch, 2, {name: None}).parts
        assert parts[0]["in"] == parts[1]["in"] == batch["in"]
    assert split_batch(batch, 1).rows == (4,)


def test_split_names_what_is_there():
    """A name that the batch does not have is refused with those near it."""
    batch = {"x": torch.zeros(4), "attention": {"mask": torch.ones(2), "none": None, "empty": []}}
    for name in ("x", "attention", "attention.mask", "attention.none", "attention.empty"):
        check_split(batch, {name: None})
    check_split([batch, batch], {"attention": None})
    check_split(torch.zeros(4), {"batch": 0})
    with pytest.raises(
        BatchError, match=r"split names 'attention\.msk', which .* near it: attention\.mask"
    ):
        check_split(batch, {"attention.msk": None})
    with pytest.raises(BatchError, match=r"split names 'z', which .* near it: 0, 1$"):
        it.Pipeline(
            nn.Linear(2, 2),
            example=(torch.zeros(4, 2), torch.zeros(4, 2)),
            loss=nn.functional.mse_loss,
            split={"z": None},
        )
