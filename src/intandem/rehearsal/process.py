"""One rank's process of a rehearsal: ``python -m intandem.rehearsal.process FOLDER KIND``."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from intandem.errors import PeerFailureError, RunError
from intandem.rehearsal.rank import run_rank
from intandem.rehearsal.request import decode_request, encode_report
from intandem.rehearsal.running import (
    PROGRESS_FILE,
    REQUEST_FILE,
    TransportKind,
    report_file,
)
from intandem.runtime.distributed_watch import DistributedWatch
from intandem.runtime.suspicion import Limits
from intandem.runtime.transport.distributed import connect
from intandem.runtime.transport.edges import Edge
from intandem.runtime.transport.process_group import default_store, join_process_group

if TYPE_CHECKING:
    from intandem.rehearsal.request import RankReport, Request

_CPU = torch.device("cpu")
_NOT_SHARED = "these processes cannot share memory (docs/transports.md); take --transport gloo"


def main(folder: Path, kind: TransportKind) -> None:
    """Do what the request in ``folder`` says, and leave a report there."""
    torch.set_num_threads(1)
    request = decode_request((folder / REQUEST_FILE).read_text("utf-8"))
    rank, report = _run(request, folder, kind)
    (folder / report_file(rank)).write_text(encode_report(report), "utf-8")


def _run(request: Request, folder: Path, kind: TransportKind) -> tuple[int, RankReport]:
    membership = join_process_group(_CPU)
    limits = Limits(hang_s=math.inf)  # an emulated action takes as long as it was asked to
    watch = DistributedWatch(default_store(), membership.rank, membership.num_ranks, limits=limits)
    edges = [Edge(*way) for a, b in request.sizes() for way in ((a, b), (b, a))]
    shared = kind is TransportKind.SHARED
    transport = connect(membership, edges, watch, device=_CPU, shared_memory=shared)
    if shared and not transport.shares_memory:
        watch.fail(RunError(_NOT_SHARED))
        sys.exit(1)
    progress = folder / PROGRESS_FILE

    def tell(part: int, step: int) -> None:
        if membership.rank == 0:
            with progress.open("a") as file:
                file.write(f"{part} {step}\n")

    try:
        report = run_rank(request, transport, watch, tell)
    except PeerFailureError:  # the rank that failed is named by the command that started this one
        sys.exit(1)
    except Exception as error:
        watch.fail(error)
        raise
    transport.close()
    watch.close()
    return membership.rank, report


if __name__ == "__main__":
    main(Path(sys.argv[1]), TransportKind(sys.argv[2]))
