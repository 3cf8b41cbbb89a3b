"""What a user rarely needs to say about a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.runtime.stillness import HANG_S

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Options:
    """What rarely needs to be said.

    Attributes:
        device: where ranks compute: ``cpu``, ``cuda``, ``cuda:1``; by default CUDA where there is
            any: the process's own under a launcher, one for all local ranks without.
        seed: keys every random draw of the run.
        timeout_s: how long processes may take to find each other, in seconds.
        open_blocks: whether a block beside an uneven cut may be cut inside: docs/capture.md.
        threads_per_rank: torch's own threads for each local rank; by default the cores shared out.
        hang_s: how long an action may take at least before its rank is taken to hang, in seconds;
            5 times the longest that was seen, where that is more. ``float("inf")``: for ever.
        shared_memory: whether CPU ranks that are processes of one machine hand messages over in
            shared memory, rather than over Gloo.
    """

    device: torch.device | str | None = None
    seed: int = 0
    timeout_s: float = 300.0
    threads_per_rank: int | None = None
    open_blocks: bool = False
    hang_s: float = HANG_S
    shared_memory: bool = True
