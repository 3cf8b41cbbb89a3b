"""What ended a run, in one line, and how ranks and launcher tell it to each other (JSON)."""

from __future__ import annotations

import json
import signal
import traceback
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from intandem.errors import ActionError, PeerFailureError
from intandem.runtime.watch import Position

_MAX_TRACEBACK_CHARS = 50_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who ended the run, and why. The first verdict of a run is the only one.

    Attributes:
        rank: the culprit, or None if it was nobody of the run.
        cause: what happened to it, such as ``raised ValueError: boom``; a whole sentence
            where ``rank`` is None.
        position: where it was, or None if it had not begun.
        last_seen: the position was read by others and may be a beat old.
        traceback: of the culprit's exception, or empty.
        is_stop: nobody failed: the run was told to stop.
    """

    rank: int | None
    cause: str
    position: Position | None = None
    last_seen: bool = False
    traceback: str = ""
    is_stop: bool = False

    @classmethod
    def stopped(cls, name: str) -> Verdict:
        """What is said of a run that was told to stop by the signal called ``name``."""
        return cls(None, f"the run was stopped by {name}", is_stop=True)

    @classmethod
    def of_error(cls, rank: int, position: Position | None, error: BaseException) -> Verdict:
        """What ``rank`` says about ``error``, which it raised at ``position``."""
        origin = error.__cause__ if isinstance(error, ActionError) else None
        origin = error if origin is None else origin
        message = str(origin).strip().split("\n", maxsplit=1)[0]
        name = type(origin).__name__
        cause = f"raised {name}: {message}" if message else f"raised {name}"
        return cls(rank, cause, position, traceback=traceback_of(origin))


def traceback_of(error: BaseException) -> str:
    """The traceback of ``error`` as Python shows it; of a very long one the end."""
    return "".join(traceback.format_exception(error)).rstrip()[-_MAX_TRACEBACK_CHARS:]


def verdict_text(verdict: Verdict) -> str:
    """The message that every rank and the launcher show: one line, then the traceback."""
    who = "" if verdict.rank is None else f"rank {verdict.rank} "
    place = ""
    if verdict.position is not None:
        place = f"{', last seen' if verdict.last_seen else ''} at {verdict.position}"
    elif verdict.rank is not None:
        place = ", before its first step"
    line = f"{who}{verdict.cause}{place}"
    if not verdict.traceback:
        return line
    return f"{line} (traceback of rank {verdict.rank} below)\n{verdict.traceback}"


def is_consequence(error: BaseException) -> bool:
    """Whether ``error`` only passes on that another rank failed."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:  # an error can be its own cause
        if isinstance(seen, PeerFailureError):
            return True
        chain.append(seen)
        seen = seen.__cause__
    return False


def death_cause(status: int) -> str:
    """What an exit status says, in the words of a verdict.

    Args:
        status: as ``subprocess`` has it: an exit code, or minus the signal.
    """
    if status < 0:
        return f"was killed by {_signal_name(-status)}"
    if status == 0:
        return "left the run early, with exit code 0"
    return f"ended with exit code {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Presence(StrEnum):
    """Whether a rank takes part."""

    RUNNING = "running"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Origin:
    """Which process a beat comes from; tells a peer on the same host whether it lives.

    Attributes:
        host: names a machine and its table of processes.
        pid: process id there.
        started: when it was started, in the kernel's ticks: ids are used again.
        trail_fd: where it writes its position; see ``trail``.
        joined_ns: when it joined, on its own clock.
    """

    host: str
    pid: int
    started: int
    trail_fd: int = -1
    joined_ns: int = 0


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank says of itself a few times per second.

    Attributes:
        count: grows with every beat.
        presence: whether the rank takes part.
        origin: its process.
        position: where it is, or None before its first instruction.
        waits: it waits for another rank.
        patient_step: the last in which something runs for the first time, or None.
    """

    count: int
    presence: Presence
    origin: Origin
    position: Position | None
    waits: bool = False
    patient_step: int | None = None


def encode(value: Verdict | Beat) -> str:
    """Write as JSON text."""
    return json.dumps(asdict(value))


def decode_verdict(text: bytes) -> Verdict:
    """Read what ``encode`` wrote of a verdict."""
    fields: dict[str, Any] = json.loads(text)
    return Verdict(**{**fields, "position": _position(fields["position"])})


def decode_beat(text: bytes) -> Beat:
    """Read what ``encode`` wrote of a beat."""
    fields: dict[str, Any] = json.loads(text)
    return Beat(
        fields["count"],
        Presence(fields["presence"]),
        Origin(**fields["origin"]),
        _position(fields["position"]),
        fields["waits"],
        fields["patient_step"],
    )


def _position(fields: list[Any] | None) -> Position | None:
    return None if fields is None else Position(*fields)
