"""The stream of whoever asks ranks for something, on their GPU, for the threads that do it.

A GPU and a stream are a thread's own. Were they not handed on, what the caller has put on a stream
of its own (the batch, an optimizer) and what ranks compute would not wait for each other.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def callers_stream(device: torch.device | None) -> torch.cuda.Stream | None:
    """Return the calling thread's current stream on ``device``; None where that is no GPU."""
    is_gpu = device is not None and device.type == "cuda"
    return torch.cuda.current_stream(device) if is_gpu else None


def on_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """Make a stream, and its GPU, those of the calling thread while open."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)
