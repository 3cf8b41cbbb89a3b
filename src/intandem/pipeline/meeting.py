"""What processes tell each other while their threads of work may be at something else."""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

from intandem.errors import PeerFailureError
from intandem.runtime.transport.protocol import POLL_S
from intandem.runtime.verdict import verdict_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.pipeline.home import Home
    from intandem.runtime.distributed_watch import DistributedWatch

_VERDICT_S = 4.0
"""How long a process that cannot reach the others waits to be told who is to blame."""


class Meeting:
    """Reports of every process, brought to rank 0, and what it makes of them.

    Unlike ``Exchange``, any thread may use it, and a report may be long: those of one place are
    gone once rank 0 has them.

    Args:
        home: of this process.
        patient: whether a failure of the run is left for the thread of work to be told.
    """

    def __init__(self, home: Home, *, patient: bool) -> None:
        self._home = home
        self._patient = patient

    def conclude(
        self, place: str, report: bytes, conclusion: Callable[[list[bytes]], bytes]
    ) -> bytes:
        """Return what rank 0 concludes from the reports of all, in rank order.

        Args:
            place: unlike any other of this pipeline's.
            report: of this process.
            conclusion: called by rank 0; does not raise.

        Raises:
            PeerFailureError: if the run fails meanwhile.
        """
        membership = self._home.membership
        if membership is None:
            return conclusion([report])
        store = membership.store
        try:
            if membership.rank == 0:
                others = [self._taken(f"{place}/{r}") for r in range(1, membership.num_ranks)]
                concluded = conclusion([report, *others])
                store.set(f"{place}/end", concluded)  # type: ignore[arg-type]  # takes bytes
                return concluded
            store.set(f"{place}/{membership.rank}", zlib.compress(report, 1))  # type: ignore[arg-type]
            self._await(f"{place}/end")
            return bytes(store.get(f"{place}/end"))
        except RuntimeError as error:
            self._lost(error)
            raise PeerFailureError(str(error)) from error

    def _taken(self, key: str) -> bytes:
        self._await(key)
        if self._home.membership is None:
            return b""
        store = self._home.membership.store
        report = zlib.decompress(store.get(key))
        store.delete_key(key)
        return report

    def _await(self, key: str) -> None:
        while self._home.membership and not self._home.membership.store.check([key]):
            self._check()
            time.sleep(POLL_S)

    def _check(self) -> None:
        watch: DistributedWatch | None = self._home.watch
        if watch is not None and self._patient and watch.verdict is not None:
            raise PeerFailureError(verdict_text(watch.verdict))
        if not self._patient:
            self._home.check()

    def _lost(self, error: RuntimeError) -> None:
        """Wait for the name of the process whose end has cost this one its connection."""
        if isinstance(error, PeerFailureError) or self._home.watch is None:
            return
        self._home.watch.suspect(f"lost the store: {error}")
        self._home.watch.wait_for_verdict(_VERDICT_S)
        self._check()
