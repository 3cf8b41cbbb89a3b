"""Being shown what a pass computes, for those who look for a difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from intandem.recorder import Call
    from intandem.runtime.stage import Stage


class Where(NamedTuple):
    """Where a call ran.

    Attributes:
        stage: its number.
        microbatch: its index.
        recomputed: whether this was a forward run again for its backward.
    """

    stage: int
    microbatch: int
    recomputed: bool


class Observer(Protocol):
    """Is shown results as they are made. Local ranks call it from several threads."""

    def on_call(self, stage: Stage, call: Call, result: Any, where: Where) -> None:
        """``call`` has returned ``result``, which later calls may write to."""
        ...

    def on_output(self, microbatch: int, output: Any) -> None:
        """The last stage has made the model's output for a micro-batch."""
        ...
