"""What benchmarks ask of a pipeline of ours that its users need not know."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import intandem as it


def check_shares_memory(pipe: it.Pipeline) -> None:
    """Return if all messages of this process go through shared memory.

    Raises:
        RuntimeError: if some go over Gloo; the figures would not be what they are called.
    """
    transport = pipe._assembly.ranks._transport
    if not transport.shares_memory:
        msg = "the processes cannot share memory; see docs/transports.md"
        raise RuntimeError(msg)


def cut_before(pipe: it.Pipeline) -> list[str]:
    """Return the names of the segments that stages after the first begin with."""
    cuts = pipe._assembly.recordings._cuts
    return [cuts.names[start][0] for start in cuts.starts[1:]]
