"""Which recordings there are, why each was made, and what it cost."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.runtime.model_state import differences

if TYPE_CHECKING:
    from intandem.recorder.graph import Guard

_log = logging.getLogger(__name__)

MANY = 16
"""From so many recordings on something is taken to change at every step."""


@dataclass(frozen=True, slots=True)
class RecordingNote:
    """One recording of the model.

    Attributes:
        number: of the recording, from 1.
        batch: shapes and dtypes of what ``forward`` is given.
        mode: training or evaluation, and mixed precision if it is on.
        reason: what differs from the recording before.
        guards: values that Python took from tensors, with their lines; it holds while they hold.
        seconds: that making it took.
        uses: micro-batches that it was found for.
    """

    number: int
    batch: str
    mode: str
    reason: str
    guards: tuple[str, ...]
    seconds: float
    uses: int


@dataclass(slots=True)
class _Entry:
    batch: dict[str, str]
    model: dict[str, str]
    guards: tuple[Guard, ...]
    reasons: list[str]
    seconds: float
    uses: int = 0


class RecordingNotes:
    """Keeps notes of recordings and says when there are many."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        """How many recordings have been noted."""
        return len(self._entries)

    def add(
        self,
        batch: dict[str, str],
        model: dict[str, str],
        guards: tuple[Guard, ...],
        seconds: float,
    ) -> int:
        """Note a new recording; returns its index.

        Args:
            batch: what ``forward`` is given, by name, in words.
            model: the state of the model, in words.
            guards: of the recording.
            seconds: that it took.
        """
        entry = _Entry(batch, model, guards, self._reasons(batch, model, guards), seconds)
        self._entries.append(entry)
        number = len(self._entries)
        _log.info(
            "recorded the model in %.3f s (recording %d): %s",
            seconds,
            number,
            "; ".join(entry.reasons),
        )
        if number == MANY:
            self._warn()
        return number - 1

    def use(self, index: int) -> None:
        """Count a micro-batch that a recording was found for."""
        self._entries[index].uses += 1

    def notes(self) -> tuple[RecordingNote, ...]:
        """Return what is known of every recording."""
        return tuple(
            RecordingNote(
                number=number,
                batch=", ".join(f"{name} {value}" for name, value in entry.batch.items()),
                mode=_mode(entry.model),
                reason="; ".join(entry.reasons),
                guards=tuple(f"{g.outcome!r:.40} at {g.location}" for g in entry.guards),
                seconds=entry.seconds,
                uses=entry.uses,
            )
            for number, entry in enumerate(self._entries, start=1)
        )

    def _reasons(
        self, batch: dict[str, str], model: dict[str, str], guards: tuple[Guard, ...]
    ) -> list[str]:
        """Return what differs from the recording that is nearest; the first has no reason."""
        if not self._entries:
            return ["the first"]
        found = [
            [*differences(batch, entry.batch), *differences(model, entry.model)]
            for entry in self._entries
        ]
        nearest = min(reversed(range(len(found))), key=lambda index: len(found[index]))
        return found[nearest][:4] or [_guard_reason(guards, self._entries[nearest].guards)]

    def _warn(self) -> None:
        """Name what keeps changing."""
        names = (r.partition(" is ")[0] for e in self._entries[1:] for r in e.reasons)
        changing = ", ".join(f"{name} ({n} times)" for name, n in Counter(names).most_common(3))
        _log.warning(
            "the model has been recorded %d times, which takes %.3f s on average; what changes: "
            "%s. Pad batches to a few shapes, and keep numbers that change in buffers or in the "
            "batch",
            len(self._entries),
            sum(e.seconds for e in self._entries) / len(self._entries),
            changing,
        )


def _guard_reason(guards: tuple[Guard, ...], before: tuple[Guard, ...]) -> str:
    for guard, other in zip(guards, before, strict=False):
        if guard.location != other.location or guard.outcome != other.outcome:
            return f"the value at {guard.location} is {guard.outcome!r:.40}, not as before"
    return "other values that Python takes from tensors"


def _mode(model: dict[str, str]) -> str:
    flags = {value for name, value in model.items() if name.startswith("training of")}
    words = {frozenset(["True"]): "training", frozenset(["False"]): "evaluation"}
    mode = words.get(frozenset(flags), "partly training")
    if model["gradients"] == "False":
        mode += ", no gradients"
    if model["mixed precision"] != "off":
        mode += ", mixed precision"
    return mode
