"""Passes on what ranks print, line by line, saying whose line it is."""

from __future__ import annotations

import os
import selectors
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import IO

    from intandem.runtime.launcher.child import Child

_READ_BYTES = 65536
_MAX_LINE_BYTES = 65536


@dataclass(slots=True)
class _Stream:
    """One pipe of a rank.

    Attributes:
        source: where its output arrives.
        target: file descriptor it goes to.
        prefix: put before each line.
        rest: the line that has not ended yet.
    """

    source: IO[bytes]
    target: int
    prefix: bytes
    rest: bytearray = field(default_factory=bytearray)


class Output:
    """The pipes of all ranks. Whole lines only, so that ranks do not mix within a line.

    Of a line that was drawn over itself with carriage returns (a progress bar), the last state
    is passed on.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add(self, child: Child) -> None:
        """Pass on what ``child`` prints, each line marked with its rank."""
        prefix = f"[rank {child.rank}] ".encode()
        for source, target in ((child.process.stdout, 1), (child.process.stderr, 2)):
            if source is not None:
                os.set_blocking(source.fileno(), False)
                stream = _Stream(source, target, prefix)
                self._selector.register(source, selectors.EVENT_READ, stream)

    def forward(self, timeout_s: float) -> bool:
        """Pass on what has come, waiting for it at most ``timeout_s`` seconds.

        Returns:
            Whether anything came.
        """
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            self._read(key.data)
        return bool(ready)

    def close(self) -> None:
        """Pass on what is left, without waiting for more."""
        while self.forward(0.0):
            pass
        for key in list(self._selector.get_map().values()):
            self._finish(key.data)
        self._selector.close()

    def _read(self, stream: _Stream) -> None:
        data = os.read(stream.source.fileno(), _READ_BYTES)
        if not data:
            self._finish(stream)
            return
        stream.rest += data
        *lines, rest = bytes(stream.rest).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        stream.rest = bytearray(rest)
        _write(stream.target, b"".join(_marked(stream.prefix, line) for line in lines))

    def _finish(self, stream: _Stream) -> None:
        self._selector.unregister(stream.source)
        stream.source.close()
        if stream.rest:
            _write(stream.target, _marked(stream.prefix, bytes(stream.rest)))


def _marked(prefix: bytes, line: bytes) -> bytes:
    return prefix + line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n"


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]
