"""Waits that end when they are to, and leave the processor to others meanwhile.

A sleep ends late: by the timer's slack (50 µs on Linux, unless a thread asks for less), and by what
the kernel takes to wake a thread. So a wait sleeps until shortly before its end and looks at the
clock for what is left. How shortly follows from how late sleeps have ended before, so that three of
four end early enough. A wait's end is a point in time, not a length: what was late once is not late
again.
"""

from __future__ import annotations

import ctypes
import select
import sys
import time

MAX_EARLY_S = 60e-6
"""What is spent looking at the clock at most. On a busy machine sleeps end later than that;
more would cost ranks that are threads of one process, which look at it in turns."""

_FIRST_EARLY_S = 40e-6
_MORE_S, _LESS_S = 6e-6, 2e-6
"""What a sleep that ended too late, or early enough, changes; 1 in 4 may be too late."""

_PR_SET_TIMERSLACK = 29
_NUM_TRIALS = 15
_TRIAL_S = 1e-3


class Waiter:
    """Waits, on the thread that made it.

    Attributes:
        early_s: how long before its end a wait stops sleeping.
    """

    def __init__(self) -> None:
        _ask_for_exact_timers()
        self.early_s = _FIRST_EARLY_S
        self._let_go = select.poll().poll
        """Gives away Python's lock but not the processor, as ``time.sleep(0)`` would."""
        for _ in range(_NUM_TRIALS):
            self.until(time.perf_counter() + _TRIAL_S)

    def until(self, end_s: float) -> None:
        """Return at ``end_s`` on the clock of ``time.perf_counter`` or soon after, never before."""
        now_s = time.perf_counter()
        left_s = end_s - now_s - self.early_s
        if left_s > 0:
            time.sleep(left_s)
            now_s = time.perf_counter()
            self._learn(was_late=now_s > end_s)
        while now_s < end_s:
            self._let_go(0)
            now_s = time.perf_counter()

    def _learn(self, *, was_late: bool) -> None:
        changed_s = self.early_s + (_MORE_S if was_late else -_LESS_S)
        self.early_s = min(max(changed_s, 0.0), MAX_EARLY_S)


def _ask_for_exact_timers() -> None:
    """Let sleeps of this thread end without slack (Linux; elsewhere they have none to give up)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
