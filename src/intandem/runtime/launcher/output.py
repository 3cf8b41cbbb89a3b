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
        prefix: put before each line; None to leave lines as they are.
        rest: the line that has not ended yet.
    """

    source: IO[bytes]
    target: int
    prefix: bytes | None
    rest: bytearray = field(default_factory=bytearray)


class Output:
    """The pipes of all ranks. Whole lines only, so that ranks do not mix within a line.

    Of a line that was drawn over itself with carriage returns (a progress bar), the last state
    is passed on. Rank 0's bytes are passed on unchanged, and each state of such a line is.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._unended: list[tuple[int, bytes]] = []

    def add(self, child: Child) -> None:
        """Pass on what ``child`` prints, each line marked with its rank unless that is 0."""
        prefix = f"[rank {child.rank}] ".encode() if child.rank else None
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
        for target, data in self._unended:
            _write(target, data)

    def _read(self, stream: _Stream) -> None:
        data = os.read(stream.source.fileno(), _READ_BYTES)
        if not data:
            self._finish(stream)
            return
        stream.rest += data
        text = bytes(stream.rest)
        end = text.rfind(b"\n") + 1
        if stream.prefix is None:
            end = max(end, text.rfind(b"\r") + 1)
        if len(text) - end > _MAX_LINE_BYTES:
            end = len(text)
        stream.rest = bytearray(text[end:])
        _write(stream.target, _shown(stream.prefix, text[:end]))

    def _finish(self, stream: _Stream) -> None:
        self._selector.unregister(stream.source)
        stream.source.close()
        rest = bytes(stream.rest)
        if stream.prefix is None:  # what others still print is not to go on in this line
            self._unended.append((stream.target, rest))
        else:
            _write(stream.target, _shown(stream.prefix, rest))


def _shown(prefix: bytes | None, text: bytes) -> bytes:
    if prefix is None:
        return text
    lines = text.removesuffix(b"\n").split(b"\n") if text else []
    return b"".join(_marked(prefix, line) for line in lines)


def _marked(prefix: bytes, line: bytes) -> bytes:
    return prefix + line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n"


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]
