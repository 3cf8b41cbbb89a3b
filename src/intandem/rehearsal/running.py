"""Starts the ranks of a rehearsal: threads of this process, or processes of their own."""

from __future__ import annotations

import queue
import tempfile
import threading
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from intandem.errors import PeerFailureError, RunError
from intandem.rehearsal.rank import run_rank
from intandem.rehearsal.request import decode_report, encode_request
from intandem.runtime.launcher import MAX_RANKS, launch_command
from intandem.runtime.launcher.launch import module_command
from intandem.runtime.local_watch import local_watches
from intandem.runtime.transport.local import local_transports
from intandem.runtime.verdict import verdict_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from intandem.rehearsal.request import RankReport, Request
    from intandem.runtime.local_watch import LocalWatch
    from intandem.runtime.transport.local import LocalTransport

REQUEST_FILE = "request.json"
PROGRESS_FILE = "progress"
_LOOK_S = 0.2


class TransportKind(StrEnum):
    """How messages travel."""

    LOCAL = "local"
    """Between threads of this process."""
    SHARED = "shared"
    """Between processes, in memory that both have mapped."""
    GLOO = "gloo"
    """Between processes, over Gloo."""


class Progress(NamedTuple):
    """How far a rehearsal is.

    Attributes:
        part: index of the part whose step begins.
        step: index of that step, warm-up included.
    """

    part: int
    step: int


def run_all(
    request: Request, kind: TransportKind, on_progress: Callable[[Progress], None]
) -> tuple[RankReport, ...]:
    """Run ``request`` on all of its ranks and return what each brings back, in rank order.

    Raises:
        RunError: if a rank failed.
        ValueError: if there are more ranks than processes may be.
    """
    match kind:
        case TransportKind.LOCAL:
            return _run_threads(request, on_progress)
        case TransportKind.SHARED | TransportKind.GLOO:
            return _run_processes(request, kind, on_progress)


def report_file(rank: int) -> str:
    """Name of the file that ``rank`` writes its report to."""
    return f"report-{rank}.json"


def _run_threads(
    request: Request, on_progress: Callable[[Progress], None]
) -> tuple[RankReport, ...]:
    watches = local_watches(request.num_ranks)
    transports = local_transports(watches)
    results: queue.SimpleQueue[tuple[int, RankReport | BaseException]] = queue.SimpleQueue()

    def work(transport: LocalTransport, watch: LocalWatch) -> None:
        def tell(part: int, step: int) -> None:
            if transport.rank == 0:
                on_progress(Progress(part, step))

        try:
            results.put((transport.rank, run_rank(request, transport, watch, tell)))
        except BaseException as error:  # handed to the thread that asked
            watch.fail(error)
            results.put((transport.rank, error))

    for transport, watch in zip(transports, watches, strict=True):
        name = f"intandem rank {transport.rank}"
        threading.Thread(target=work, args=(transport, watch), name=name, daemon=True).start()
    try:
        found = [results.get() for _ in watches]
    except BaseException as error:  # KeyboardInterrupt: let the ranks stop at their next wait
        for watch in watches:
            watch.fail(error)
        raise
    return _reports(found)


def _reports(found: Sequence[tuple[int, RankReport | BaseException]]) -> tuple[RankReport, ...]:
    errors = [item for _, item in found if isinstance(item, BaseException)]
    own = [error for error in errors if not isinstance(error, PeerFailureError)]
    if errors:
        raise (own or errors)[0]
    in_order = sorted(found, key=lambda pair: pair[0])
    return tuple(item for _, item in in_order if not isinstance(item, BaseException))


def _run_processes(
    request: Request, kind: TransportKind, on_progress: Callable[[Progress], None]
) -> tuple[RankReport, ...]:
    if request.num_ranks > MAX_RANKS:
        msg = f"{request.num_ranks} ranks are more than the {MAX_RANKS} processes there may be"
        raise ValueError(msg)
    with tempfile.TemporaryDirectory(prefix="intandem-rehearsal-") as name:
        folder = Path(name)
        (folder / REQUEST_FILE).write_text(encode_request(request), "utf-8")
        command = module_command("intandem.rehearsal.process", [name, kind])
        with _following(folder / PROGRESS_FILE, on_progress):
            outcome = launch_command(command, ranks=request.num_ranks)
        if outcome.verdict is not None:
            raise RunError(verdict_text(outcome.verdict).partition("\n")[0])
        files = (folder / report_file(rank) for rank in range(request.num_ranks))
        return tuple(decode_report(file.read_text("utf-8")) for file in files)


@contextmanager
def _following(file: Path, on_progress: Callable[[Progress], None]) -> Iterator[None]:
    """Tell of what rank 0 writes to ``file``, while the ranks run."""
    over = threading.Event()

    def follow() -> None:
        seen = ""
        while not over.wait(_LOOK_S):
            found = file.read_text("utf-8") if file.exists() else ""
            if found and found != seen:
                seen = found
                on_progress(Progress(*map(int, found.splitlines()[-1].split())))

    thread = threading.Thread(target=follow, name="intandem progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
