"""Where a rank is, to the instruction, even once its process is dead (Linux, same host).

A beat is up to a fifth of a second old, in which a rank may do a hundred actions. So each rank
also writes its position into a page of memory without a name; others on the host map the page
while the process lives, and read it after its death. Elsewhere the last beat has to do.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from intandem.runtime.watch import Position

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intandem.runtime.verdict import Beat, Origin, Verdict

_RECORD = struct.Struct("<?qqqq95s")
_PATIENT_STEP = struct.Struct("<q")
"""After the record: the last step in which something runs for the first time."""

_PAGE_BYTES = _RECORD.size + _PATIENT_STEP.size
_NONE = -1


class Trail:
    """This process's page.

    Attributes:
        fd: of the page in this process, or -1 if there is none.
    """

    def __init__(self) -> None:
        self.fd = -1
        self._page: mmap.mmap | bytearray = bytearray(_PAGE_BYTES)
        if sys.platform == "linux":
            with suppress(OSError):
                self.fd = os.memfd_create("intandem-trail")
                os.ftruncate(self.fd, _PAGE_BYTES)
                self._page = mmap.mmap(self.fd, _PAGE_BYTES)
        self.be_patient(_NONE)

    def write(self, position: Position) -> None:
        """Say where this rank is now; takes a fifth of a microsecond."""
        stage, microbatch = position.stage, position.microbatch
        _RECORD.pack_into(
            self._page,
            0,
            True,
            position.step,
            position.slot,
            _NONE if stage is None else stage,
            _NONE if microbatch is None else microbatch,
            position.doing.encode(),
        )

    def be_patient(self, step: int) -> None:
        """Say in which step something runs for the first time."""
        _PATIENT_STEP.pack_into(self._page, _RECORD.size, step)


class Trails:
    """The pages of other processes, mapped while they live."""

    def __init__(self) -> None:
        self._pages: dict[int, tuple[Origin, mmap.mmap | None]] = {}

    def __len__(self) -> int:
        """Number of ranks that have joined."""
        return len(self._pages)

    def follow(self, beats: Mapping[int, Beat]) -> None:
        """Map the pages of ranks that are new, or that have been started again."""
        for rank, beat in beats.items():
            known = self._pages.get(rank)
            if known is None or known[0] != beat.origin:
                self._pages[rank] = (beat.origin, _map(beat.origin))

    def refreshed(self, beats: Mapping[int, Beat]) -> dict[int, Beat]:
        """Return ``beats`` with what the ranks' pages say now, where these can be read."""
        return {rank: self._refreshed(rank, beat) for rank, beat in beats.items()}

    def _refreshed(self, rank: int, beat: Beat) -> Beat:
        known = self._pages.get(rank)
        if known is None or known[0] != beat.origin or known[1] is None:
            return beat
        (step,) = _PATIENT_STEP.unpack_from(known[1], _RECORD.size)
        return replace(beat, position=_read(known[1]), patient_step=None if step == _NONE else step)

    def complete(self, verdict: Verdict) -> Verdict:
        """Replace the culprit's last beat by where it really was, if that can be read."""
        if verdict.rank not in self._pages or not verdict.last_seen:
            return verdict
        page = self._pages[verdict.rank][1]
        if page is None:
            return verdict
        return replace(verdict, position=_read(page), last_seen=False)


def _map(origin: Origin) -> mmap.mmap | None:
    if origin.trail_fd < 0 or sys.platform != "linux":
        return None
    try:
        fd = os.open(f"/proc/{origin.pid}/fd/{origin.trail_fd}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return mmap.mmap(fd, _PAGE_BYTES, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def _read(page: mmap.mmap) -> Position | None:
    written, step, slot, stage, microbatch, doing = _RECORD.unpack_from(page)
    if not written:
        return None
    return Position(
        step,
        slot,
        None if stage == _NONE else stage,
        None if microbatch == _NONE else microbatch,
        doing.rstrip(b"\0").decode(errors="replace"),
    )
