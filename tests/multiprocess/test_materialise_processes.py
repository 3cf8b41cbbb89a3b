"""Ranks as processes each hold and read their own part of a model, and no other."""

import re
import sys
from pathlib import Path

import torch
from processes import run_ranks

import intandem as it
from harness import TOLERANCE, gradients, relative_error, repeatable_cuts
from intandem.checkpoint import weight_files
from intandem.checkpoint.weight_files import WeightFiles
from intandem.equality import Splitting, one_process
from intandem.pipeline import tensors

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit"))
from test_materialise import BATCH, meta, plain, save_folder

MICROBATCHES = 2


class Watched:
    """What a process was given memory for, and what it read."""

    def __init__(self, patch):
        self.allocated, self.amounts, self.opened = set(), [], set()
        real_allocate, real_fill = tensors.allocate, WeightFiles.fill
        real_opened = weight_files._opened

        def allocate(model, names, device):
            made = real_allocate(model, names, device)
            self.allocated |= set(made)
            return made

        def fill(files, model, names):
            self.amounts.append(real_fill(files, model, names))
            return self.amounts[-1]

        def opened(path):
            self.opened.add(path.name)
            return real_opened(path)

        patch.setattr("intandem.pipeline.materialise.allocate", allocate)
        patch.setattr(WeightFiles, "fill", fill)
        patch.setattr(weight_files, "_opened", opened)


def step_of(model, weights):
    """Loss, own gradients, and the whole state, of one step."""
    options = it.Options(threads_per_rank=1, seed=7)
    with (
        repeatable_cuts(),
        it.Pipeline(
            model, example=BATCH, microbatches=MICROBATCHES, weights=weights, options=options
        ) as pipe,
    ):
        loss = float(pipe.step(BATCH))
        own = {name for name, _ in pipe.named_parameters()}
        state = pipe.state_dict()
        evaluated = pipe.evaluate(BATCH)
        short = float(pipe.step({"ids": BATCH["ids"][:3, :5]}))
    return loss, own, state, evaluated, short


def from_folder(folder):
    """One process's share of a model in files: its numbers, its memory, its reading."""
    import pytest

    expected = one_process(plain(), BATCH, None, Splitting(MICROBATCHES))
    model = meta()
    with pytest.MonkeyPatch.context() as patch:
        watched = Watched(patch)
        loss, own, state, _, _ = step_of(model, folder)
    held = {n for n, p in model.named_parameters() if not p.is_meta}
    reference = plain()
    reference_state = reference.state_dict()
    buffers = {n for n, _ in reference.named_buffers()}
    return {
        "loss": abs(loss - expected.loss) / abs(expected.loss),
        "own": sorted(own),
        "only_own": held == own
        and watched.allocated - {n for n, _ in model.named_buffers()} == own,
        "bytes_read": sum(amount.num_bytes for amount in watched.amounts),
        "bytes_held": sum(p.numel() * 8 for n, p in reference.named_parameters() if n in own)
        + sum(
            b.numel() * b.element_size()
            for b in reference.state_dict().values()
            if b.dtype == torch.int64
        )
        + sum(b.numel() * 8 for n, b in reference.named_buffers() if "running" in n),
        "state": all(
            torch.equal(state[n], t) for n, t in reference_state.items() if n not in buffers
        ),
        "updated": int(state["stats.num_batches_tracked"]),
        "tied": model.head.weight is model.wte.weight,
    }


def gradients_of_folder(folder):
    """The largest error of this process's gradients after one step."""
    expected = one_process(plain(), BATCH, None, Splitting(MICROBATCHES)).gradients
    model = meta()
    options = it.Options(threads_per_rank=1)
    with it.Pipeline(
        model, example=BATCH, microbatches=MICROBATCHES, weights=folder, options=options
    ) as pipe:
        pipe.step(BATCH)
        own = [name for name, _ in pipe.named_parameters()]
    found = gradients(model)
    return relative_error({n: found[n] for n in own}, {n: expected[n] for n in own})


def by_initialisers():
    """Every bit of a model as its initialisers and a step make it, as text, and its losses."""
    loss, _, state, evaluated, short = step_of(meta(), "init")
    sums = {n: t.double().flatten().tolist() for n, t in state.items()}
    return {"loss": loss, "evaluated": evaluated, "short": short, "state": sums}


def test_each_process_reads_and_holds_its_share(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    save_folder(plain(), folder, num_shards=6)
    results = [o.value for o in run_ranks(from_folder, 2, tmp_path, str(folder))]
    for result in results:
        assert result["loss"] <= TOLERANCE
        assert result["only_own"]
        assert result["bytes_read"] == result["bytes_held"]
        assert result["state"]
        assert result["updated"] == MICROBATCHES
        assert result["tied"]
    first, second = (set(result["own"]) for result in results)
    assert first & second == {"wte.weight"}
    assert len(first) > 3
    assert len(second) > 3


def test_gradients_of_processes_are_the_plain_models(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    save_folder(plain(), folder)
    for outcome in run_ranks(gradients_of_folder, 2, tmp_path, str(folder)):
        assert outcome.value <= TOLERANCE, re.sub(r"\s+", " ", outcome.output)[-400:]


def test_initialisers_give_processes_what_one_process_gets(tmp_path):
    outcomes = run_ranks(by_initialisers, 2, tmp_path)
    assert outcomes[0].value == outcomes[1].value, outcomes[1].output[-400:]
    found = outcomes[0].value
    model = meta()
    loss, _, _, evaluated, short = step_of(model, "init")
    expected = {n: t.double().flatten().tolist() for n, t in model.state_dict().items()}
    assert found["loss"] == loss
    assert (found["evaluated"], found["short"]) == (evaluated, short)
    changed = {n for n in expected if n.startswith("stats.running") or "tracked" in n}
    assert {n: v for n, v in found["state"].items() if n not in changed} == {
        n: v for n, v in expected.items() if n not in changed
    }


def stepped(model, weights, *, early):
    """This rank's parameters after two steps of an optimizer made early or late."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1) if early else None
    with (
        repeatable_cuts(),
        it.Pipeline(model, example=BATCH, microbatches=MICROBATCHES, weights=weights) as pipe,
    ):
        optimizer = optimizer or torch.optim.AdamW(pipe.parameters(), lr=0.1)
        for _ in range(2):
            pipe.step(BATCH)
            optimizer.step()
            optimizer.zero_grad()
        return {name: p.detach() for name, p in pipe.named_parameters()}


def early_optimizers(folder):
    """Whether optimizers made before the pipeline do what later ones do, by kind of model."""
    same = {}
    for kind, model, weights in (("meta", meta, folder), ("freed", plain, None)):
        early = stepped(model(), weights, early=True)
        late = stepped(model(), weights, early=False)
        same[kind] = sorted(early) == sorted(late) and all(early[n].equal(late[n]) for n in late)
        same[f"{kind} moved"] = any(not p.equal(plain().get_parameter(n)) for n, p in early.items())
    return same


def test_optimizers_made_before_the_pipeline_train_their_part(tmp_path):
    """Own parameters are the same objects; other ranks', meta or freed, have no gradients."""
    (tmp_path / "weights").mkdir()
    save_folder(plain(), tmp_path / "weights")
    for outcome in run_ranks(early_optimizers, 2, tmp_path, str(tmp_path / "weights")):
        assert outcome.code == 0, outcome.output[-3000:]
        assert all(outcome.value.values()), outcome.value
