"""Gradients cross stages as autograd made them: in their memory layout, in memory of their own."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import intandem as it
from harness import gradients, repeatable_cuts, same_bits
from intandem.equality import Splitting, one_process
from intandem.runtime import backward


class Patches(nn.Module):
    """Returns tokens whose memory is that of an image: a transposed view."""

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, 16, 4, stride=4)

    def forward(self, pixels):
        return self.project(pixels).flatten(2).transpose(1, 2)


class Scaled(nn.Module):
    """A block whose gradients sum over tokens."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.gamma = nn.Parameter(torch.rand(16))

    def forward(self, tokens):
        return tokens + self.gamma * torch.tanh(self.linear(tokens))


def patches():
    torch.manual_seed(0)
    blocks = [Patches(), *(Scaled() for _ in range(3))]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(16 * 64, 4)).double()
    batch = {"input": torch.randn(4, 3, 32, 32).double(), "target": torch.arange(4) % 4}
    return model, batch


def loss(output, batch):
    return cross_entropy(output, batch["target"])


def test_memory_layout():
    """With views between stages a step has one process's bits, wherever it is cut."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = one_process(*patches(), loss, Splitting(2))
    finally:
        torch.set_num_threads(before)
    for ranks in (1, 2, 3, 4):
        model, batch = patches()
        options = it.Options(threads_per_rank=1)
        with (
            repeatable_cuts(),
            it.Pipeline(
                model, example=batch, loss=loss, ranks=ranks, microbatches=2, options=options
            ) as pipe,
        ):
            pipe.step(batch)
        assert same_bits(gradients(model), expected.gradients) == []


def _entry(kept):
    leaf = torch.ones(1, 4, dtype=torch.float64, requires_grad=True)
    kept.entries[0] = leaf
    return leaf


@pytest.mark.parametrize("hooked", [True, False])
def test_memory_of_its_own(hooked):
    """A gradient on its way is not changed when the next micro-batch is added to a weight's.

    A weight with hooks has its gradient from autograd, which takes memory that others see as well.
    """
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    if hooked:
        bias.register_post_accumulate_grad_hook(lambda _: None)
    kept = backward.Kept()
    end = ((_entry(kept) + bias.view(1, 4)) * 3).sum()
    kept.ends.append((end, torch.ones_like(end)))
    backward.backward(kept, {})
    sent = backward.gradient_to_send(kept, 0)
    bias.grad += 1
    assert sent.tolist() == [[3.0] * 4]


def test_no_copy_without_need():
    """A gradient that nobody shares is handed on as it is."""
    kept = backward.Kept()
    end = (_entry(kept) * torch.full((1, 4), 2.0, dtype=torch.float64)).sum()
    kept.ends.append((end, torch.ones_like(end)))
    backward.backward(kept, {})
    sent = backward.gradient_to_send(kept, 0)
    assert sent is kept.entry_gradients[0]
    assert kept.entries[0].grad is None


def test_copies_keep_strides():
    """A copy has the strides of a gradient with gaps (of a slice) or repeats (of a mean)."""
    whole = torch.arange(24.0).view(2, 3, 4)
    for gradient in (whole[:, 1:], whole.transpose(0, 2)[1:], whole[:1].expand(5, 3, 4)):
        copied = backward._copied(gradient)
        assert torch.equal(copied, gradient)
        assert copied.stride() == gradient.stride()
        assert copied.data_ptr() != gradient.data_ptr()
