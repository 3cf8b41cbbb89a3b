"""What a thread of this process is doing, line by line."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from types import FrameType

_DEBUGGERS = frozenset({"pdb", "bdb", "pydevd", "_pydevd_bundle", "debugpy"})


class Stack(NamedTuple):
    """Where a thread is.

    Attributes:
        text: its calls, the last one last; empty if there is no such thread.
        is_debugged: whether somebody looks at it in a debugger, and will let it go on.
    """

    text: str
    is_debugged: bool


def stack_of(thread_id: int | None) -> Stack:
    """Return the stack of the thread with this ``threading.get_ident()``."""
    frame = sys._current_frames().get(thread_id or 0)
    if frame is None:
        return Stack("", is_debugged=False)
    text = "".join(traceback.format_stack(frame)).rstrip()
    return Stack(f"Stack (most recent call last):\n{text}", _is_debugged(frame))


def _is_debugged(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _DEBUGGERS:
            return True
        frame = frame.f_back
    return False
