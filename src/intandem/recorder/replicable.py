"""What cannot be held by several replicas of the pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.errors import CaptureError

if TYPE_CHECKING:
    from intandem.recorder.graph import Graph


def check_replicable(graph: Graph) -> None:
    """Refuse a recording whose stages cannot each be held by several ranks.

    Buffers are updated once per micro-batch, in order, and ranks that share out the micro-batches
    have no common order.

    Raises:
        CaptureError: naming the buffers.
    """
    names = dict.fromkeys(name for call in graph.calls for name in call.updates)
    if names:
        listed = ", ".join(list(names)[:4]) + (", ..." if len(names) > 4 else "")
        msg = (
            f"{listed} would be updated by several ranks, each for its own micro-batches; one "
            "process updates it for all of them in order; use a schedule that holds every stage "
            "once (replicas=1; neither chimera nor dualpipe), or freeze it: module.eval()"
        )
        raise CaptureError(msg)
