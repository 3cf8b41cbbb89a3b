"""Splitting a batch: every row once, in order, none added; and telling batches apart."""

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intandem.errors import BatchError
from intandem.runtime.microbatch import fingerprint, split_batch


@given(rows=st.integers(1, 40), parts=st.integers(1, 50))
def test_every_row_once(rows, parts):
    """Parts differ by one row at most; fewer rows than parts give one row each."""
    batch = torch.arange(rows * 2).reshape(rows, 2)
    split = split_batch(batch, parts)
    assert len(split.parts) == min(rows, parts)
    assert torch.equal(torch.cat(split.parts), batch)
    assert split.rows == tuple(map(len, split.parts))
    assert max(split.rows) - min(split.rows) <= 1
    assert list(split.rows) == sorted(split.rows, reverse=True)


@dataclass
class Pair:
    x: torch.Tensor
    kind: str


def test_structures_are_kept():
    """Dictionaries, tuples and dataclasses come back as they were; scalars go to every part."""
    x = torch.arange(6)
    batch = {"a": (x, [x + 1]), "pair": Pair(x, "kind"), "t": torch.tensor(3), "n": None, "f": 0.5}
    first, second = split_batch(batch, 2).parts
    assert torch.equal(first["a"][0], x[:3])
    assert torch.equal(second["a"][1][0], x[3:] + 1)
    assert torch.equal(second["pair"].x, x[3:])
    assert (second["pair"].kind, second["n"], second["f"]) == ("kind", None, 0.5)
    assert first["t"] is second["t"] is batch["t"]
    assert torch.equal(batch["pair"].x, x)


def test_mappings_become_dictionaries():
    """What a tokenizer returns is a mapping of its own type; its parts are dictionaries."""
    part = split_batch(UserDict(x=torch.arange(4)), 2).parts[1]
    assert type(part) is dict
    assert torch.equal(part["x"], torch.tensor([2, 3]))


def test_split_says_where_rows_are():
    """A name, or the first part of a path, may have its rows on another dim, or none."""
    batch = {"x": torch.zeros(4, 2), "in": {"y": torch.arange(8).reshape(2, 4)}, "w": torch.ones(3)}
    split = split_batch(batch, 2, {"in": 1, "w": None})
    assert split.rows == (2, 2)
    assert torch.equal(split.parts[1]["in"]["y"], batch["in"]["y"][:, 2:])
    assert split.parts[0]["w"] is split.parts[1]["w"] is batch["w"]


def test_given_micro_batches():
    """A list of anything but tensors is taken as it is; a list of tensors is a batch."""
    parts = [(torch.zeros(2), 1), (torch.zeros(5), 2)]
    assert split_batch(parts, 7).rows == (2, 5)
    assert split_batch([torch.zeros(4), torch.ones(4)], 2).rows == (2, 2)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"n": 1}, "the batch has no tensor with rows to split; a batch holds at least one"),
        (torch.zeros(()), "the batch has no tensor with rows to split; a batch holds at least one"),
        (torch.zeros(0, 3), "the batch has no rows"),
        ({"x": torch.zeros(2), "y": torch.zeros(3)}, "rows: x has 2, y has 3; say which dim"),
    ],
)
def test_batches_that_cannot_be_split(batch, message):
    """Nothing to split, no rows, or leaves that disagree are refused."""
    with pytest.raises(BatchError, match=message):
        split_batch(batch, 2)


def test_fingerprint():
    """It differs when a value, shape, dtype, name or plain leaf does, and only then."""
    batch = {"x": torch.arange(6.0).reshape(2, 3), "n": 1}
    changed = batch["x"].clone()
    changed[1, 2] += 1e-6
    others = [
        {**batch, "x": changed},
        {**batch, "x": batch["x"].reshape(3, 2)},
        {**batch, "x": batch["x"].to(torch.float64)},
        {**batch, "n": 2},
        {"y": batch["x"], "n": 1},
        {**batch, "x": batch["x"].flip(0)},
    ]
    prints = [fingerprint(other) for other in (batch, *others)]
    assert len(set(prints)) == len(prints)
    assert fingerprint({"x": batch["x"].T.contiguous().T, "n": 1}) == prints[0]
    assert fingerprint({"x": batch["x"].bfloat16(), "n": 1})
    assert fingerprint(torch.zeros(0, 3))
