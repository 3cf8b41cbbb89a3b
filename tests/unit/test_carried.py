"""State that calls hand on unseen is refused."""

import pytest
import torch
from torch import nn

import intandem as it
from intandem.errors import CaptureError


class Writes(nn.Linear):
    def __init__(self, bank, *, writes):
        super().__init__(4, 4)
        self.register_buffer("bank", bank)
        self.writes = writes

    def forward(self, x):
        x = super().forward(x)
        if self.writes:
            self.bank.add_(x.detach().mean(0))
        return x + self.bank


def test_buffers_that_are_views_of_the_same_memory():
    memory = torch.zeros(3, 4)
    model = nn.Sequential(Writes(memory[0], writes=True), Writes(memory[0], writes=False))
    with pytest.raises(CaptureError, match=r"buffer 0\.bank, which shares memory with .* 1\.bank"):
        it.capture(model, torch.randn(3, 4))


def test_buffers_beside_each_other_in_the_same_memory():
    memory = torch.zeros(3, 4)
    model = nn.Sequential(Writes(memory[0], writes=True), Writes(memory[1], writes=True))
    it.capture(model, torch.randn(3, 4))


class Counts(nn.Linear):
    number = 0

    def __init__(self):
        super().__init__(4, 4)
        self.number = 0

    def forward(self, x):
        self.number += 1
        return super().forward(x) * self.number


def test_a_module_called_twice_that_counts():
    layer = Counts()
    with pytest.raises(CaptureError, match=r"0 is called 2 times and sets 0\.number from 0 to 2"):
        it.capture(nn.Sequential(layer, nn.Linear(4, 4), layer), torch.randn(3, 4))
    it.capture(nn.Sequential(layer, nn.Linear(4, 4), Counts()), torch.randn(3, 4))
