"""Three ways to compute one backward of two Transformer blocks, on any device."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining._backward import (
    stage_backward_input,
    stage_backward_weight,
)
from torch.profiler import ProfilerActivity, profile

from intandem.runtime.weight_gradients import differentiate

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTHS = {32: (4, 64), 64: (2, 128), 128: (2, 128), 256: (2, 128), 512: (1, 128), 1024: (1, 128)}
"""Micro-batch and sequence length by width."""

NUM_BLOCKS = 2


class Block(nn.Module):
    """Attention and a feed-forward part, each after a norm and added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.before_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, sequence, width) for the same."""
        batch, length, width = x.shape
        parts = self.qkv(self.before_attention(x)).view(batch, length, 3, 4, width // 4)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.before_feed(x))))


@dataclass(frozen=True)
class Sides:
    """Seconds of the two parts of a backward; the second is 0 where there is one part."""

    first_s: float
    second_s: float = 0.0


class Bench:
    """One width: a model, its input, and the gradient of its output.

    Args:
        width: one of ``WIDTHS``.
        device: where it runs. Times are taken when the device has done its work.
        dtype: of parameters and inputs.
    """

    def __init__(self, width: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        shape = (*WIDTHS[width], width)
        place = {"device": device, "dtype": dtype}
        self.model = nn.Sequential(*(Block(width) for _ in range(NUM_BLOCKS))).to(**place)
        self.x, self.gradient = torch.randn(shape).to(**place), torch.randn(shape).to(**place)
        self.is_cuda = torch.device(device).type == "cuda"

    def now_s(self) -> float:
        """Return the time at which all work so far is done."""
        if self.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return a fresh leaf and what the model makes of it."""
        x = self.x.detach().requires_grad_()
        return x, self.model(x)

    def plain(self, x: Tensor, y: Tensor) -> Sides:
        """One call of autograd."""
        del x
        began = self.now_s()
        y.backward(self.gradient)
        return Sides(self.now_s() - began)

    def intandem(self, x: Tensor, y: Tensor) -> Sides:
        """I and W as the pipeline runs them."""
        began = self.now_s()
        (x.grad,), pending = differentiate([(y, self.gradient)], [x], hooked=False)
        between = self.now_s()
        pending.add_up()
        return Sides(between - began, self.now_s() - between)

    def torch(self, x: Tensor, y: Tensor) -> Sides:
        """I and W as `torch.distributed.pipelining` runs them."""
        began = self.now_s()
        _, groups = stage_backward_input([y], [self.gradient], [x], self.model.parameters())
        between = self.now_s()
        stage_backward_weight(self.model.parameters(), groups)
        return Sides(between - began, self.now_s() - between)

    @property
    def ways(self) -> dict[str, Callable[[Tensor, Tensor], Sides]]:
        """All, by name."""
        return {"plain": self.plain, "intandem": self.intandem, "torch": self.torch}

    def check(self) -> dict[str, float]:
        """Largest error of a gradient by way, relative to its norm, after two micro-batches."""
        found: dict[str, list[Tensor]] = {}
        for name, way in self.ways.items():
            self.model.zero_grad()
            for _ in range(2):
                way(*self.forward())
            found[name] = [p.grad.clone() for p in self.model.parameters() if p.grad is not None]
        return {
            name: max(
                float((a - b).norm() / b.norm())
                for a, b in zip(gradients, found["plain"], strict=True)
            )
            for name, gradients in found.items()
        }

    def peak_bytes(self, way: Callable[[Tensor, Tensor], Sides]) -> int:
        """Most bytes allocated during a backward, over what there was before its forward."""
        for _ in range(2):  # the first makes .grad
            found = (self._cuda_peak if self.is_cuda else self._cpu_peak)(way)
        return found

    def _cuda_peak(self, way: Callable[[Tensor, Tensor], Sides]) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way(*self.forward())
        return torch.cuda.max_memory_allocated() - before

    def _cpu_peak(self, way: Callable[[Tensor, Tensor], Sides]) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            way(*self.forward())
        live = peak = 0
        events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
        for event in sorted(events, key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                live += event.nbytes()
                peak = max(peak, live)
        return peak
