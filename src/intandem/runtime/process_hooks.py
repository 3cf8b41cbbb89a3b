"""What a process of a run does when it ends or is told to end."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from intandem.errors import PeerFailureError, RunError
from intandem.runtime.verdict import verdict_text

if TYPE_CHECKING:
    from types import FrameType

    from intandem.runtime.verdict import Verdict

EXIT_CODE = 1
"""Of a process that takes part in a failed run."""


class Mortal(Protocol):
    """What the hooks need of a watch."""

    @property
    def verdict(self) -> Verdict | None: ...  # noqa: D102
    @property
    def delivered(self) -> bool: ...  # noqa: D102
    def check(self) -> None: ...  # noqa: D102
    def fail(self, error: BaseException) -> None: ...  # noqa: D102
    def terminate(self) -> Verdict: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Hooks(Protocol):
    """Effects on the process as a whole."""

    def install(self, watch: Mortal) -> None:
        """Let the process act for ``watch`` when it ends."""
        ...

    def undo(self) -> None:
        """Take back what ``install`` did."""
        ...

    def end(self, text: str) -> None:
        """End the process now, from any thread, after showing ``text`` on stderr."""
        ...


class ProcessHooks:
    """The real ones: ``atexit``, SIGTERM, ``os._exit``.

    At exit, an exception that nobody caught is told to the others, and the rank says goodbye. In
    a failed run the process then ends at once: threads blocked in a transport cannot be joined.
    A process that was forked off (a loader's worker) is left alone.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._watch: Mortal | None = None
        self._has_handler = False
        self._exit_code = EXIT_CODE

    def install(self, watch: Mortal) -> None:
        """Register at exit and, from the main thread, for SIGTERM unless the user handles it."""
        self._watch = watch
        atexit.register(self._at_exit)
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_sigterm)
            self._has_handler = True

    def undo(self) -> None:
        """Unregister both."""
        atexit.unregister(self._at_exit)
        in_main = threading.current_thread() is threading.main_thread()
        if self._has_handler and in_main:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._has_handler = False

    def end(self, text: str) -> None:
        """See ``Hooks.end``; what is buffered is written if that does not block."""
        if text:
            _show(text)
        flusher = threading.Thread(target=_flush, daemon=True)
        flusher.start()
        flusher.join(0.5)
        os._exit(EXIT_CODE)

    def _at_exit(self) -> None:
        if self._watch is None or os.getpid() != self._pid:
            return
        error = _unhandled()
        if error is not None:
            self._watch.fail(error)
        self._watch.close()
        verdict = self._watch.verdict
        if verdict is not None:
            if not self._watch.delivered:  # it ended of something else, such as a lost connection
                _show(verdict_text(verdict))
            _flush()
            os._exit(self._exit_code)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if self._watch is None or os.getpid() != self._pid:
            _die_of(signum)
            return
        if self._watch.delivered:
            self._watch.terminate()  # on its way out: nothing to say again
            return
        self._watch.terminate()
        try:
            self._watch.check()
        except PeerFailureError:
            raise
        except RunError:  # nobody else's failure: this rank ends of the signal
            self._exit_code = 128 + signum
            raise


def _unhandled() -> BaseException | None:
    """The exception that ended the main thread, if one did."""
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error if isinstance(error, BaseException) else None


def _die_of(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _show(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
