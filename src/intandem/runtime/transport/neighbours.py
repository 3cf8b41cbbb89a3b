"""Whether two processes are on one machine, and a socket between them if they are.

The target of an edge listens at a path in a folder that nobody else may enter, and leaves the path
in the store; the source says there whether it could connect. Where either cannot, both know, and
the edge is Gloo's.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

_MACHINE = Path("/proc/sys/kernel/random/boot_id")
_NOWHERE = "-"
_MET = "met"
_ACCEPT_S = 10.0
"""How long a source that has connected may take to be seen."""


def can_share_memory() -> bool:
    """Tell whether this system has what messages in shared memory need."""
    try:
        os.close(os.memfd_create("intandem"))
    except (AttributeError, OSError):  # not Linux, or forbidden
        return False
    return _MACHINE.exists()


def meet(store: Store, *, is_source: bool, willing: bool) -> socket.socket | None:
    """Connect the two ends of an edge, if they are on one machine. Waits for the other end.

    Args:
        store: of the edge alone.
        is_source: which end this process is.
        willing: whether it wants to, and can.
    """
    if is_source:
        place = store.get("place").decode()
        found = _connected(place) if willing else None
        store.set("met", _NOWHERE if found is None else _MET)
        return found
    if not willing or (folder := _private_folder()) is None:
        store.set("place", _NOWHERE)
        store.get("met")
        return None
    with folder as path:
        return _listen(store, f"{path}/edge")


def _private_folder() -> tempfile.TemporaryDirectory[str] | None:
    try:
        return tempfile.TemporaryDirectory(prefix="intandem-")
    except OSError:
        return None


def _connected(place: str) -> socket.socket | None:
    machine, _, path = place.partition(" ")
    if machine != _machine():
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:  # another container of the machine, or another user
        connection.close()
        return None
    return connection


def _listen(store: Store, path: str) -> socket.socket | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(path)
            listener.listen(1)
        except OSError:  # a path too long for a socket
            path = ""
        store.set("place", f"{_machine()} {path}" if path else _NOWHERE)
        if store.get("met") != _MET.encode():
            return None
        listener.settimeout(_ACCEPT_S)
        connection, _ = listener.accept()
        return connection


def _machine() -> str:
    return _MACHINE.read_text("ascii").strip()
