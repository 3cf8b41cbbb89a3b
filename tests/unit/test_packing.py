"""A message keeps its tensors, bit for bit, and anything else in its place is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intandem.errors import ContractError
from intandem.runtime.transport.packing import Buffer, layout_of, pack, unpack
from intandem.runtime.transport.protocol import Label, TensorSpec

DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
)
specs = st.builds(
    TensorSpec,
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from(DTYPES),
)
labels = st.builds(Label, st.integers(-(2**63), 2**63 - 1), st.text(max_size=120))


def filled(spec, seed):
    """A tensor of random bits; for bool, of random truths."""
    bits = torch.Generator().manual_seed(seed)
    shape = (*spec.shape, spec.dtype.itemsize)
    high = 2 if spec.dtype is torch.bool else 256
    raw = torch.randint(high, shape, generator=bits, dtype=torch.uint8)
    return raw.view(spec.dtype).view(spec.shape)


def same_bits(a, b):
    return torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )


def message(payload, layout, label):
    """A payload, packed into memory of its own."""
    buffer = Buffer(torch.empty(layout.num_bytes, dtype=torch.uint8))
    pack(payload, layout, label, buffer)
    return buffer.flat


def opened(flat, layout, label):
    """What a receiver that has these bytes finds in them."""
    return unpack(Buffer(flat), layout, label)


def transposed(tensor):
    """The same values in memory of the other order."""
    return tensor.mT.contiguous().mT if tensor.dim() >= 2 else tensor


@given(st.lists(st.tuples(specs, st.booleans(), st.booleans()), max_size=20), labels)
def test_round_trip(entries, label):
    """Any dtypes, shapes, strides and absences come back with the same bits."""
    contract = tuple(spec for spec, _, _ in entries)
    payload = tuple(
        None if absent else (transposed(filled(spec, i)) if turned else filled(spec, i))
        for i, (spec, absent, turned) in enumerate(entries)
    )
    layout = layout_of(contract)

    flat = message(payload, layout, label)
    received = opened(flat, layout, label)

    assert flat.shape == (layout.num_bytes,)
    assert len(received) == len(payload)
    for sent, got, spec in zip(payload, received, contract, strict=True):
        assert (sent is None) == (got is None)
        if got is not None:
            assert (got.shape, got.dtype) == (spec.shape, spec.dtype)
            assert got.is_contiguous()
            assert same_bits(got, sent)


CONTRACT = (TensorSpec((2, 3), torch.float32), TensorSpec((4,), torch.int64))
LABEL = Label(5, "0F3>1")


def packed():
    layout = layout_of(CONTRACT)
    return message((torch.ones(2, 3), torch.arange(4)), layout, LABEL), layout


@given(st.integers(0, 127), st.integers(1, 255))
def test_every_flipped_header_byte_is_refused(position, flip):
    """No byte of the header is without meaning."""
    flat, layout = packed()
    flat[position] ^= flip

    with pytest.raises(ContractError, match=r"expected 0F3>1 of step 5 with \[\(2, 3\) float32"):
        opened(flat, layout, LABEL)


def test_presence_of_a_tensor_that_the_contract_lacks_is_refused():
    """The bits beyond the last tensor are zero."""
    flat, layout = packed()
    flat[128] |= 4

    with pytest.raises(ContractError, match=r"3 tensor\(s\) marked, expected 2"):
        opened(flat, layout, LABEL)


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (Label(6, "0F3>1"), "got 0F3>1 of step 5$"),
        (Label(5, "0F4>1"), "got 0F3>1 of step 5$"),
        (Label(5, "0F3>10"), "got 0F3>1 of step 5$"),
    ],
)
def test_another_label_is_named(label, found):
    """Both what was expected and what arrived."""
    flat, layout = packed()

    with pytest.raises(ContractError, match=f"expected {label} with .*{found}"):
        opened(flat, layout, label)


def test_another_contract_is_refused():
    """Same size and label, other shapes: two ends that disagree about the model."""
    flat, _ = packed()
    other = layout_of((TensorSpec((3, 2), torch.float32), CONTRACT[1]))

    with pytest.raises(ContractError, match="with other tensors, 288 bytes instead of 288"):
        opened(flat, other, LABEL)


def test_long_tags_that_differ_at_the_end_are_told_apart():
    """A tag is compared as a whole, however much of it the header has room for."""
    layout = layout_of(())
    flat = message((), layout, Label(0, "x" * 200 + "a"))

    opened(flat, layout, Label(0, "x" * 200 + "a"))
    with pytest.raises(ContractError):
        opened(flat, layout, Label(0, "x" * 200 + "b"))


def test_received_tensors_are_independent():
    """Writing to one in place does not upset what autograd saved of another."""
    flat, layout = packed()
    first, second = opened(flat, layout, LABEL)
    first.requires_grad_()
    loss = (first * first).sum()
    second.zero_()

    loss.backward()

    assert torch.equal(first.grad, 2 * torch.ones(2, 3))


def test_packing_copies():
    """The message is no longer touched by the sender, whatever it does with its tensors."""
    source = torch.ones(2, 3, requires_grad=True)
    layout = layout_of(CONTRACT[:1])
    flat = message((source,), layout, LABEL)
    with torch.no_grad():
        source.zero_()

    (got,) = opened(flat, layout, LABEL)

    assert got.sum() == 6
    assert not flat.requires_grad
    assert not got.requires_grad
