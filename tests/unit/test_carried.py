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


class Fills(nn.Linear):
    """Sets a value in what it is given, or leaves it alone."""

    def __init__(self, fill):
        super().__init__(4, 4)
        self.fill = fill

    def forward(self, x, held):
        self.fill(held, x)
        return super().forward(x)


class Hands(nn.Module):
    """Hands the same object from block to block."""

    def __init__(self, make, fill):
        super().__init__()
        self.make = make
        self.layers = nn.ModuleList(Fills(fill) for _ in range(3))

    def forward(self, x):
        held = self.make()
        for layer in self.layers:
            x = layer(x, held)
        return x


def appends(held, x):
    held.append(x.mean().item())


def adds(held, x):
    held["n"] = held.get("n", 0) + float(x.mean())


def adds_deep(held, x):
    held["inner"][0] += float(x.mean())


def sets_level(held, x):
    held.level = float(x.mean())


@pytest.mark.parametrize(
    ("make", "fill", "words"),
    [
        (list, appends, r"sets \[0\] from nothing to .* in a list that it is given"),
        (dict, adds, r"sets \['n'\] from nothing to .* in a dict that it is given"),
        (lambda: {"inner": [0.0]}, adds_deep, r"sets \['inner'\]\[0\] from 0\.0 to .* in a dict"),
        (Holder, sets_level, r"sets \[level\] from nothing to .* in a Holder"),
    ],
)
def test_a_block_that_fills_what_it_is_given(make, fill, words):
    with pytest.raises(CaptureError, match=rf"layers\.0 {words}.*, at .*test_carried\.py:\d+"):
        it.capture(Hands(make, fill), torch.randn(3, 4))


@pytest.mark.parametrize(
    ("make", "fill"),
    [
        (lambda: {"n": 1.0, "inner": [2, "three"]}, lambda *_: None),
        (list, lambda held, x: held.append(x)),
    ],
)
def test_what_blocks_are_given_and_leave_alone(make, fill):
    it.capture(Hands(make, fill), torch.randn(3, 4))


class Between(nn.Module):
    """Computes something between two blocks."""

    def __init__(self, between):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.between = between

    def forward(self, x):
        return self.two(self.between(self.one(x)))


def in_another_dtype(x):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        return x * torch.tensor(0.1).to(x.dtype)
    finally:
        torch.set_default_dtype(before)


def under_hooks(x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t):
        return x * x


def saved_elsewhere(x):
    with torch.autograd.graph.save_on_cpu():
        return x * x


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (in_another_dtype, r"calls tensor under the default dtype torch\.float16, .* at .*\.py:"),
        (under_hooks, r"calls mul under torch\.autograd\.graph\.saved_tensors_hooks, at .*\.py:"),
    ],
)
def test_modes_that_glue_sets_and_no_stage_would(between, words):
    with pytest.raises(CaptureError, match=words):
        it.capture(Between(between), torch.randn(3, 4))


def test_hooks_that_keep_saved_tensors_as_they_are():
    it.capture(Between(saved_elsewhere), torch.randn(3, 4))


class Overwrites(Between):
    """Has a value in a configuration that its first run replaces."""

    def __init__(self):
        super().__init__(lambda x: x)
        self.config = Holder()
        self.config.level = 1.0

    def forward(self, x):
        x = self.one(x) * self.config.level
        self.config.level = 2.0
        return self.two(x)


def test_a_configuration_that_is_overwritten_not_filled_in():
    with pytest.raises(CaptureError, match="forward sets config between blocks"):
        it.capture(Overwrites(), torch.randn(3, 4))


class Turns(Between):
    """Sets its own training flag to the other value."""

    def forward(self, x):
        self.training = not self.training
        return super().forward(x)


def test_a_training_flag_that_forward_sets():
    with pytest.raises(CaptureError, match="forward sets training between blocks"):
        it.capture(Turns(torch.tanh), torch.randn(3, 4))
