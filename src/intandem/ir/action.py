"""One unit of work in a schedule, and its text form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from intandem.errors import ScheduleParseError


class ActionKind(StrEnum):
    """What an action does. The letters follow ``torch.distributed.pipelining``."""

    F = "F"
    """Forward."""
    B = "B"
    """Full backward: input gradient and weight gradient together (I then W)."""
    I = "I"  # noqa: E741  (the field's letter)
    """Backward for the stage's inputs only. The zero-bubble papers call this B."""
    W = "W"
    """Backward for the stage's weights only."""

    __hash__ = str.__hash__
    """Enum's own is written in Python, and every pass over a schedule looks kinds up."""


_ACTION = re.compile(r"(?P<stage>0|[1-9][0-9]*)(?P<kind>[FBIW])(?P<microbatch>0|[1-9][0-9]*)")


@dataclass(frozen=True, slots=True, order=True)
class Action:
    """``kind`` of ``stage`` on ``microbatch``, written ``2F0``: stage 2, F, micro-batch 0."""

    stage: int
    kind: ActionKind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"

    @classmethod
    def parse(cls, text: str) -> Action:
        """Read the form ``__str__`` writes.

        Raises:
            ScheduleParseError: if ``text`` is anything else.
        """
        if (match := _ACTION.fullmatch(text)) is None:
            form = "<stage><F|B|I|W><microbatch>, e.g. 2F0"
            msg = f"{text!r} is not an action; expected {form}"
            raise ScheduleParseError(msg)
        return cls(int(match["stage"]), ActionKind(match["kind"]), int(match["microbatch"]))
