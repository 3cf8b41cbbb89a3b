"""Training over Gloo, where a rank holds only its own stage's parameters."""

import copy
import logging

import pytest
import torch
from processes import run_ranks
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import intandem as it
from harness import COUNTS, TOLERANCE, Counting, relative_error
from intandem.equality import Splitting, one_process


def loss(output, batch):
    return F.cross_entropy(output, batch[1])


def task(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        *[nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.2)) for _ in range(4)],
        nn.Linear(6, 3),
    ).double()
    return model, (torch.randn(7, 6).double(), torch.randint(3, (7,)))


def own(pipe, model):
    """The parameters that this rank holds, of another model of the same names."""
    return {name: model.get_parameter(name) for name, _ in pipe.named_parameters()}


def errors_of(pipe, plain):
    held = dict(pipe.named_parameters())
    found = {n: p.grad for n, p in held.items()}
    return relative_error(found, {n: p.grad for n, p in own(pipe, plain).items()})


def realities():
    """Freezing, accumulation, groups, an average by hand, hooks, modes: errors by what was done."""
    model, batch = task()
    plain, found = copy.deepcopy(model), {}
    counts = {"ours": 0, "theirs": 0}

    def counting(which):
        def hook(*_):
            counts[which] += 1

        return hook

    for each, which in ((model, "ours"), (plain, "theirs")):
        each[1].requires_grad_(requires_grad=False)
        each[3][0].register_full_backward_hook(counting(which))
    with it.Pipeline(model, example=batch, loss=loss, microbatches=3, split_points=["2"]) as pipe:
        splitting = Splitting(3)
        counts["ours"] = 0  # building runs the model too, to see what it costs
        for step in range(2):  # accumulated
            pipe.step(batch)
            one_process(plain, batch, loss, splitting, step=step)
        found["frozen, accumulated"] = errors_of(pipe, plain)
        rank = torch.distributed.get_rank()
        assert counts["ours"] == (counts["theirs"] if rank == 1 else 0), counts
        groups = [
            [{"params": [p for n, p in named if n.endswith("bias")], "weight_decay": 0.0},
             {"params": [p for n, p in named if n.endswith("weight")], "lr": 0.05}]
            for named in (list(pipe.named_parameters()), list(plain.named_parameters()))
        ]  # fmt: skip
        optimizers = [torch.optim.AdamW(group, lr=0.01) for group in groups]
        average = {n: p.detach().clone() for n, p in pipe.named_parameters()}
        expected_average = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        expected_average.update_parameters(plain)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for name, parameter in pipe.named_parameters():
            average[name].lerp_(parameter.detach(), 0.1)
        expected_average.update_parameters(plain)
        theirs = own(pipe, expected_average.module)
        found["average"] = relative_error(average, {n: p.detach() for n, p in theirs.items()})
        for each in (model, plain):
            each[1].requires_grad_(requires_grad=True)
            each[0].eval()
        pipe.step(batch)
        one_process(plain, batch, loss, splitting, step=2)
        found["unfrozen, part in eval"] = errors_of(pipe, plain)
        assert set(pipe.state_dict()) == set(plain.state_dict())
    return found


def test_training_realities(tmp_path):
    """Every rank has one process's numbers for what it holds."""
    for outcome in run_ranks(realities, 2, tmp_path, timeout_s=90):
        assert outcome.code == 0, outcome.output[-3000:]
        assert max(outcome.value.values()) <= 10 * TOLERANCE, outcome.value


def lora():
    """Three steps of adapters in a small Llama; the frozen base is trained by nobody."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import LlamaConfig, LlamaForCausalLM

    logging.disable()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(LlamaForCausalLM(config), adapters).double()
    ids = torch.randint(40, (6, 8))
    batch, plain = {"input_ids": ids, "labels": ids.clone()}, copy.deepcopy(model)
    with it.Pipeline(model, example=batch, microbatches=3) as pipe:
        optimizers = [
            torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=0.01)
            for parameters in (pipe.parameters(), plain.parameters())
        ]
        for step in range(2):
            pipe.step(batch)
            one_process(plain, batch, None, Splitting(3), step=step)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        state = get_peft_model_state_dict(model, pipe.state_dict())
    expected = get_peft_model_state_dict(plain)
    assert set(state) == set(expected)
    return max(float((state[name] - tensor).norm()) for name, tensor in expected.items())


def test_lora_over_processes(tmp_path):
    """The adapters' state is whole on every rank, through ``pipe.state_dict()``."""
    for outcome in run_ranks(lora, 2, tmp_path, timeout_s=90):
        assert outcome.code == 0, outcome.output[-3000:]
        assert outcome.value <= 1e-9


def average_of_the_whole_module():
    """AveragedModel of a module that other ranks' parameters are freed of; what it says."""
    model, batch = task()
    with it.Pipeline(model, example=batch, loss=loss, microbatches=3) as pipe:
        pipe.step(batch)
        average = AveragedModel(model)
        average.update_parameters(model)
        average.update_parameters(model)
        return sorted(n for n, p in average.module.named_parameters() if not p.is_meta) == sorted(
            n for n, _ in pipe.named_parameters()
        )


def test_average_of_the_whole_module(tmp_path):
    """It averages what this rank holds; the rest stays without data."""
    for outcome in run_ranks(average_of_the_whole_module, 2, tmp_path, timeout_s=60):
        assert outcome.code == 0, outcome.output[-3000:]
        assert outcome.value is True


def count_forwards(recompute):
    """How often this rank's blocks run in each call, from the first step on."""
    torch.manual_seed(0)
    model, found = nn.Sequential(*map(Counting, range(4))), []
    x = torch.randn(7, 4)
    with it.Pipeline(
        model, example=x, loss=F.mse_loss, microbatches=3, schedule="zb-h1",
        recompute=recompute,
    ) as pipe:  # fmt: skip
        for call in (pipe.step, pipe.evaluate, pipe.step, pipe.predict, pipe.step):
            COUNTS.clear()
            call(x)
            found.append(sorted(COUNTS.values()))
    return found


@pytest.mark.parametrize(("recompute", "times"), [("none", 1), ("all", 2)])
def test_no_step_runs_a_forward_more_often_than_it_has_to(recompute, times, tmp_path):
    """Once for each micro-batch, and once more where it is recomputed; in evaluation once."""
    outcomes = run_ranks(count_forwards, 2, tmp_path, recompute)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].output[-3000:]
    stepped = [3 * times]
    for first, second in zip(*(outcome.value for outcome in outcomes), strict=True):
        assert len(first) + len(second) == 4
    kinds = [stepped, [3], stepped, [3], stepped]
    for outcome in outcomes:
        assert [sorted(set(counts)) for counts in outcome.value] == kinds
