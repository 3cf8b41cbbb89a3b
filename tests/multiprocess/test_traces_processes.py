"""The trace of several processes: one file, one clock, every message an arrow."""

from pathlib import Path

import torch
from processes import run_ranks
from torch import nn

import intandem as it
from intandem.ir import handovers
from intandem.pipeline import gathering
from perfetto_engine import opened, problems
from trace_format import check_trace


def square(output, batch):
    del batch
    return output.square().mean()


def traced(folder, hosts):
    """Train two steps and trace the last, each rank on the host that it is told it is on."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)])
    x = torch.randn(8, 8)
    pipe = it.Pipeline(model, example=x, loss=square, microbatches=4)
    rank = torch.distributed.get_rank()
    gathering.host_identity = lambda: hosts[rank]
    for _ in range(2):
        pipe.step(x)
    path = pipe.trace(f"{folder}/trace.json")
    found, error_s = pipe.timeline(), pipe._last.gathered().clock_error_s
    spans = {s.action: s for s in found.spans}
    there = {(a.rank, a.message): a.time_s for a in found.arrivals}
    early = [
        spans[h.message.source].end_s - there[h.target_rank, h.message]
        for h in handovers(pipe.program())
    ]
    pipe.close()
    return [str(path), len(early), max(early), error_s]


def run(tmp_path, hosts):
    folder = tmp_path / "out"
    folder.mkdir()
    outcomes = run_ranks(traced, 2, tmp_path, str(folder), hosts, timeout_s=100)
    assert outcomes[0].value is not None, outcomes[0].output
    assert outcomes[0].value == outcomes[1].value
    return outcomes[0].value


def test_processes_of_one_machine(tmp_path):
    """Rank 0 writes all of it; nothing arrives before it was made."""
    path, num_messages, early_s, error_s = run(tmp_path, ["a", "a"])

    events = check_trace(Path(path).read_text(), 2)
    assert len(events["s"]) == num_messages == 8
    assert early_s < 0
    assert error_s == 0
    with opened(Path(path).read_text()) as rows:
        assert problems(rows) == {}
        assert [row["arrows"] for row in rows("SELECT count(*) AS arrows FROM flow")] == [8]


def test_processes_of_two_machines(tmp_path):
    """Clocks are compared, and messages arrive after they were made, but for the error."""
    _, num_messages, early_s, error_s = run(tmp_path, ["a", "b"])

    assert num_messages == 8
    assert 0 < error_s < 10
    assert early_s < 2 * error_s
