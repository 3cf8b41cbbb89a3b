"""Processes that do not make the same calls are told so; they do not wait for ever."""

import pytest
import torch
from processes import run_ranks
from torch import nn

import intandem as it


def square(output, batch):
    del batch
    return output.square().mean()


def one_call_more(what, folder):
    """Rank 0 alone makes a call that takes every rank, as under ``if rank == 0:``."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), torch.randn(6, 4)
    pipe = it.Pipeline(model, example=x, loss=square, microbatches=3)
    pipe.step(x)
    rank = torch.distributed.get_rank()
    try:
        if rank == 0:
            {"state_dict": pipe.state_dict, "report": lambda: pipe.report(f"{folder}/r.html")}[
                what
            ]()
        pipe.step(x)
    except it.PipelineError as error:
        return str(error).splitlines()[0]
    return None


def unfreeze(folder):
    """What was frozen when the pipeline was built is trained after all."""
    del folder
    torch.manual_seed(0)
    model, x = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]).double(), torch.randn(6, 4)
    x = x.double()
    model[0].requires_grad_(requires_grad=False)
    pipe = it.Pipeline(model, example=x, loss=square, microbatches=3)
    pipe.step(x)
    model[0].requires_grad_(requires_grad=True)
    pipe.step(x)
    own = dict(pipe.named_parameters())
    rank = torch.distributed.get_rank()
    pipe.close()
    return rank, None if "0.weight" not in own else own["0.weight"].grad is not None


def held():
    """Which parameters have memory here once the pipeline is built."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)]), torch.randn(6, 4)
    pipe = it.Pipeline(model, example=x, loss=square, microbatches=3, stages=["1"])
    own = [name for name, _ in pipe.named_parameters()]
    here = [name for name, parameter in model.named_parameters() if not parameter.is_meta]
    pipe.close()
    return own, here


@pytest.mark.parametrize("what", ["state_dict", "report"])
def test_a_call_of_one_rank_alone_is_named(what, tmp_path):
    """Both ranks raise; the message names both calls."""
    call = {"state_dict": "state_dict()", "report": "timeline()"}[what]
    outcomes = run_ranks(one_call_more, 2, tmp_path, what, str(tmp_path), timeout_s=60)

    for outcome in outcomes:
        assert f"rank 1 calls step() while rank 0 calls {call}" in (outcome.value or outcome.output)


def test_unfreezing_across_a_cut(tmp_path):
    """The gradient finds its way back over an edge that had none before."""
    outcomes = run_ranks(unfreeze, 2, tmp_path, str(tmp_path), timeout_s=60)

    assert [o.value for o in outcomes] == [[0, True], [1, None]]


def test_parameters_of_other_ranks_are_freed(tmp_path):
    """A process holds what its own stage uses, and nothing else."""
    first, second = run_ranks(held, 2, tmp_path, timeout_s=60)

    assert first.value == [["0.weight", "0.bias"]] * 2
    names = [f"{index}.{kind}" for index in (1, 2, 3) for kind in ("weight", "bias")]
    assert second.value == [names] * 2
