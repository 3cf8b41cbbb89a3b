"""Our schedules train in ``torch.distributed.pipelining``, on two processes.

Gradients are compared with a plain loop over micro-batches, in float64.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from processes import run_ranks
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

from harness import TOLERANCE, relative_error
from intandem.ir import format_compute_csv, parse_compute_csv
from intandem.schedules import build_schedule

OURS = {"1f1b": 4, "interleaved": 4, "gis": 5, "hanayo": 4, "dualpipe-v": 6}
"""Name and micro-batches. gis splits backwards; dualpipe-v splits some and overlaps others."""
WIDTH = 6


def layers(count):
    """As many layers as stages, and the same in every process."""
    torch.manual_seed(0)
    return [
        torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()).double()
        for _ in range(count)
    ]


def batch(rows):
    """Inputs and targets, a row for each micro-batch."""
    torch.manual_seed(1)
    return torch.randn(rows, WIDTH).double(), torch.randn(rows, WIDTH).double()


def loss(output, target):
    """A sum over rows, so that micro-batches add up."""
    return ((output - target) ** 2).sum()


def plain_gradients(modules, inputs, targets):
    """Of one process that goes through the micro-batches one by one."""
    model = torch.nn.Sequential(*modules)
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        loss(model(x), y).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def train_there(files):
    """Worst error of this rank's gradients, by schedule, with torch's runtime and our orders."""
    dist.init_process_group("gloo")
    return {name: error_there(file, count) for name, (file, count) in files.items()}


def error_there(file, num_microbatches):
    """Load ``file`` into torch's runtime, take one step, and compare."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    schedule = parse_compute_csv(Path(file).read_text(), name="ours")
    num_stages = schedule.num_stages
    modules, (inputs, targets) = layers(num_stages), batch(num_microbatches)
    held = schedule.placement.stages_of(rank)
    stages = [PipelineStage(modules[s], s, num_stages, torch.device("cpu")) for s in held]
    runtime = _PipelineScheduleRuntime(stages, num_microbatches, loss, scale_grads=False)
    runtime._load_csv(file)
    assert runtime.pp_group_size == num_ranks
    first, last = 0 in held, num_stages - 1 in held
    runtime.step(*([inputs] if first else []), **({"target": targets} if last else {}))
    expected = plain_gradients(layers(num_stages), inputs, targets)
    own = {f"{s}.{name}": p.grad for s in held for name, p in modules[s].named_parameters()}
    return relative_error(own, {name: expected[name] for name in own})


def test_ours_train_there(tmp_path):
    """In two processes, with torch's sends, receives, backward and split backward."""
    files = {}
    for name, count in OURS.items():
        schedule = build_schedule(name, num_ranks=2, num_microbatches=count)
        file = tmp_path / f"{name}.csv"
        file.write_text(format_compute_csv(schedule))
        files[name] = (str(file), count)

    outcomes = run_ranks(train_there, 2, tmp_path, files)

    for outcome in outcomes:
        assert outcome.code == 0, outcome.output
        assert outcome.value.keys() == OURS.keys()
        assert max(outcome.value.values()) <= TOLERANCE
