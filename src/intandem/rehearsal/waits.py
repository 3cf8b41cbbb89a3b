"""Waits that end when they are to, and leave the processor to others meanwhile.

A sleep ends late: by the timer's slack (50 µs on Linux, unless a thread asks for less), and by what
the kernel takes to wake a thread. So a wait sleeps until shortly before its end, by as much as
sleeps end late here, and gives the processor away again and again for what is left. Its end is a
point in time, not a length: what was late once is not late again.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time

MAX_EARLY_S = 150e-6
"""What is given away in small pieces at most; on a busy machine sleeps end later than that."""

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
        late_s = statistics.median(_late_s(_TRIAL_S) for _ in range(_NUM_TRIALS))
        self.early_s = min(max(late_s, 0.0), MAX_EARLY_S)

    def until(self, end_s: float) -> None:
        """Return at ``end_s`` on the clock of ``time.perf_counter`` or soon after, never before."""
        left_s = end_s - time.perf_counter() - self.early_s
        if left_s > 0:
            time.sleep(left_s)
        while time.perf_counter() < end_s:
            time.sleep(0)


def _late_s(length_s: float) -> float:
    """Seconds by which a sleep of ``length_s`` ends late."""
    began_s = time.perf_counter()
    time.sleep(length_s)
    return time.perf_counter() - began_s - length_s


def _ask_for_exact_timers() -> None:
    """Let sleeps of this thread end without slack (Linux; elsewhere they have none to give up)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
