"""Processes that do nothing but what they are told, a line at a time.

The benchmark's own process holds a ``Workers``; each of the processes calls ``obey``. An order is a
line of words; an answer is a line of JSON. In between, a process sleeps.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import IO


_LOOK_S = 1.0
"""How often it is looked whether a process has ended while another is waited for."""

_LIMIT_S = 900.0
"""Nothing that is asked for takes as long; what does hangs."""


class WorkerError(RuntimeError):
    """A process ended, and says what it wrote last; or it does not answer."""


def rank_environments(num_ranks: int) -> list[dict[str, str]]:
    """Return what torch.distributed reads, for each rank of a new group on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [
        place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
        for rank in range(num_ranks)
    ]


class Workers:
    """Processes that run one command.

    Args:
        command: what they run.
        environments: what each has in its environment besides this one's; one per process.

    Raises:
        WorkerError: if one ends before it says that it is ready.
    """

    def __init__(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        self._errors = [tempfile.TemporaryFile("w+") for _ in environments]  # noqa: SIM115
        self._processes = [
            subprocess.Popen(
                command, env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )
            for environment, errors in zip(environments, self._errors, strict=True)
        ]  # fmt: skip
        try:
            self._answers()
        except WorkerError:
            self.close()
            raise

    def tell(self, order: str) -> list[Any]:
        """Give all processes the same order, and return their answers once all have answered."""
        return self.tell_each([order] * len(self._processes))

    def tell_each(self, orders: Sequence[str]) -> list[Any]:
        """Give each process its own order."""
        for process, order in zip(self._processes, orders, strict=True):
            with suppress(BrokenPipeError):  # what it wrote last is told below
                print(order, file=_pipe(process.stdin), flush=True)
        return self._answers()

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):  # what it was not told is lost
                    _pipe(pipe).close()
        for errors in self._errors:
            errors.close()

    def _answers(self) -> list[Any]:
        return [json.loads(self._line_of(number)) for number in range(len(self._processes))]

    def _line_of(self, number: int) -> str:
        stdout, limit_s = _pipe(self._processes[number].stdout), time.monotonic() + _LIMIT_S
        while not select.select([stdout], [], [], _LOOK_S)[0]:
            if time.monotonic() > limit_s:
                msg = f"process {number} has not answered for {_LIMIT_S:.0f} s"
                raise WorkerError(msg)
            for other, process in enumerate(self._processes):
                if process.poll() is not None:
                    raise self._ended(other)
        line = stdout.readline()
        if not line:
            raise self._ended(number)
        return line

    def _ended(self, number: int) -> WorkerError:
        self._errors[number].seek(0)
        last = self._errors[number].read().strip().splitlines()[-1:]
        return WorkerError(f"process {number} ended: {' '.join(last) or 'it wrote nothing'}")


def _pipe(found: IO[str] | None) -> IO[str]:
    assert found is not None  # noqa: S101  (asked for when it was started)
    return found


def obey(prepare: Callable[[], Mapping[str, Callable[[str], object]]]) -> None:
    """Prepare, say so, and carry out orders until there are no more; then end the process.

    Args:
        prepare: returns what to do by the first word of an order; given the rest of the line.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    orders = prepare()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        order, _, rest = line.strip().partition(" ")
        print(json.dumps(orders[order](rest)), file=answers, flush=True)
    answers.flush()
    os._exit(0)
