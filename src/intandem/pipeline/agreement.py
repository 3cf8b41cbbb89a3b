"""Whether all processes are about to do the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from intandem.errors import BatchError, RunError
from intandem.runtime.microbatch import fingerprint
from intandem.runtime.model_state import differences, digest_of

if TYPE_CHECKING:
    from intandem.pipeline.exchange import Exchange
    from intandem.runtime.model_state import ModelState
    from intandem.runtime.recordings import Recordings

_MAX_NAMED = 4


class Agreement:
    """Compares what a pass is about with rank 0's, which sends what all others work on.

    Every process finds its recordings by itself: by the batch, and by the state of the model. Both
    go in one message. Rank 0 leaves its state in words where others can read it, once for each.

    Args:
        exchange: with the other processes.
        recordings: know the state of the model.
    """

    def __init__(self, exchange: Exchange, recordings: Recordings) -> None:
        self._exchange = exchange
        self._recordings = recordings
        self._state: ModelState | None = None
        self._at_first = recordings.facts(recordings.state())
        self._facts: dict[str, str] = {}
        self._digest = ""
        self._left: set[str] = set()

    def check(self, batch: Any, state: ModelState, what: str) -> None:
        """Compare.

        Args:
            batch: of this process.
            state: of its model.
            what: the call it is for, such as ``step()``.

        Raises:
            BatchError: if the batch differs.
            RunError: if the state of the model differs, or rank 0 makes another call.
        """
        self._look(state)
        if self._exchange.rank == 0 and self._digest not in self._left:
            self._exchange.leave(f"state/{self._digest}", json.dumps(self._facts).encode())
            self._left.add(self._digest)
        own = f"{self._digest} {fingerprint(batch)}".encode()
        first = self._exchange.first(what, own)
        if first == own:
            return
        digest, _, theirs = first.decode().partition(" ")
        if theirs != fingerprint(batch):
            msg = (
                f"rank {self._exchange.rank} has another batch than rank 0: {fingerprint(batch)}, "
                f"not {theirs}; give every rank the same batch (seed the loader alike)"
            )
            raise BatchError(msg)
        self._refuse(digest)

    def _look(self, state: ModelState) -> None:
        if state != self._state:
            self._state = state
            facts = self._recordings.facts(state)
            self._facts = {k: v for k, v in facts.items() if self._counts(k, v)}
            self._digest = digest_of(self._facts)

    def _counts(self, name: str, value: str) -> bool:
        return not name.startswith("attribute ") or self._at_first.get(name) != value

    def _refuse(self, digest: str) -> None:
        theirs = json.loads(self._exchange.read(f"state/{digest}"))
        at_first = {n: v for n, v in self._at_first.items() if n in {**self._facts, **theirs}}
        found = differences({**at_first, **self._facts}, {**at_first, **theirs})
        more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        msg = (
            f"rank {self._exchange.rank} has the model in another state than rank 0: "
            f"{', '.join(found[:_MAX_NAMED])}{more}; call train(), eval() and requires_grad_() and "
            "set attributes alike on every rank"
        )
        raise RunError(msg)
