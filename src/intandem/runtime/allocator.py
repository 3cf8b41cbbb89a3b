"""The C library's memory, which a step frees and asks for again many times."""

from __future__ import annotations

import ctypes
import functools
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of what glibc's mallopt(3) sets."""

_LARGEST_IN_HEAP = 32 << 20
"""Bytes: the most that glibc takes for its second threshold, and where its own adjusting ends."""

_KEPT = 512 << 20
"""Bytes that may be free at the end of the heap before they are given back."""

_SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep freed memory for the next micro-batch; return whether it does now.

    By itself glibc gives back what is free at the end of its heap once it is twice the largest
    tensor so far, as it is after each backward, and the system fills the pages with zeros when
    they are asked for again: 4 % of the time of a GPT's step. Nothing is changed for
    other C libraries, or where the environment says how memory is to be kept.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SET_BY_USER):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP) and mallopt(_TRIM_THRESHOLD, _KEPT))
