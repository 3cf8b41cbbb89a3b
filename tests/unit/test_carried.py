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


class Holder:
    level = 0.0


class Shares(nn.Linear):
    """Sets or reads a number in an object that other blocks may hold."""

    def __init__(self, holder, *, sets):
        super().__init__(4, 4)
        self.holder, self.sets = holder, sets

    def forward(self, x):
        x = super().forward(x)
        if self.sets:
            self.holder.level = float(x.detach().mean())
        return x * (1 + self.holder.level)


def test_a_number_that_blocks_share_in_an_object():
    holder = Holder()
    model = nn.Sequential(Shares(holder, sets=True), nn.Linear(4, 4), Shares(holder, sets=False))
    with pytest.raises(CaptureError, match=r"0\.holder\.level to .* object that 2\.holder holds"):
        it.capture(model, torch.randn(3, 4))


def test_objects_that_blocks_share_and_leave_alone():
    holder = Holder()
    holder.level = 0.5
    it.capture(nn.Sequential(*(Shares(holder, sets=False) for _ in range(2))), torch.randn(3, 4))


def test_an_object_shared_inside_one_block():
    holder = Holder()
    both = InOrder(Shares(holder, sets=True), Shares(holder, sets=False))
    it.capture(nn.Sequential(both, nn.Linear(4, 4)), torch.randn(3, 4))


class InOrder(nn.Module):
    def __init__(self, one, two):
        super().__init__()
        self.one, self.two = one, two

    def forward(self, x):
        return self.two(self.one(x))
