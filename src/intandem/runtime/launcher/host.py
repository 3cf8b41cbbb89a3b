"""The store that the ranks meet in, hosted by the launcher on the loopback interface only."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

from intandem.runtime.launcher.environment import HOST

if TYPE_CHECKING:
    from intandem.runtime.board import Board

_BACKLOG = 1024


class StoreHost:
    """Listens at once; answers once torch has been imported, in a thread of its own.

    A ``TCPStore`` left to itself listens on every interface, so it gets a socket that is bound
    already. Connections that come early wait in the socket's queue.

    Attributes:
        port: where ranks find it.
        board: health of the run, or None until torch is there.
        error: why there is no store, or None.
    """

    def __init__(self) -> None:
        self._socket = socket.create_server((HOST, 0), backlog=_BACKLOG)
        self.port: int = self._socket.getsockname()[1]
        self.board: Board | None = None
        self.error: Exception | None = None
        self._store: object = None
        self._thread = threading.Thread(target=self._open, name="intandem-store")

    def start(self) -> None:
        """Begin to answer; returns at once. Call it after the ranks have been started."""
        self._thread.start()

    def close(self) -> None:
        """End the store; waits for torch's import if that is still under way."""
        self._thread.join()
        self.board = self._store = None
        self._socket.close()

    def _open(self) -> None:
        try:
            import torch.distributed as dist

            from intandem.runtime.board import Board

            store = dist.TCPStore(
                HOST,
                self.port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=self._socket.detach(),
            )
            board = Board(store)
            board.supervise()
            self._store, self.board = store, board
        except Exception as error:
            self.error = error
