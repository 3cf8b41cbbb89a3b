"""One step in tandem, and what is seen of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from intandem.equality.comparison import Numbers, numbers_of
from intandem.equality.outputs import joined, snapshot
from intandem.pipeline import Options, Pipeline
from intandem.pipeline.home import device_of_threads, place
from intandem.recorder.trees import map_tree

if TYPE_CHECKING:
    from torch import nn

    from intandem.equality.job import Job, Setting
    from intandem.recorder import Call
    from intandem.runtime.observer import Observer, Where
    from intandem.runtime.stage import Stage


class Sight:
    """Keeps the outputs of a step, and where forward asks for mixed precision.

    Args:
        then: shown everything as well.
    """

    def __init__(self, then: Observer | None = None) -> None:
        self.outputs: dict[int, Any] = {}
        self.autocast = ""
        self._then = then

    def on_call(self, stage: Stage, call: Call, result: Any, where: Where) -> None:
        """Look at the mixed precision a call runs under."""
        if not self.autocast and any(state.enabled for state in call.autocast):
            self.autocast = f"{call.name} at {call.location}"
        if self._then is not None:
            self._then.on_call(stage, call, result, where)

    def on_output(self, microbatch: int, output: Any) -> None:
        """Keep a copy."""
        self.outputs[microbatch] = snapshot(output)
        if self._then is not None:
            self._then.on_output(microbatch, output)


def in_tandem(
    job: Job, setting: Setting, model: nn.Module, observer: Observer | None = None
) -> tuple[Numbers, Sight]:
    """Run one step of ``job`` in a pipeline; ``model``, a copy of the job's, gets gradients."""
    splitting = setting.splitting
    sight = Sight(observer)
    pipeline = Pipeline(
        model,
        example=job.batch,
        loss=job.loss,
        ranks=setting.ranks,
        schedule=setting.schedule,
        microbatches=splitting.microbatches,
        recompute=setting.recompute,
        split=splitting.split,
        count=splitting.count,
        inputs=splitting.inputs,
        blocks=splitting.blocks,
        options=Options(seed=setting.seed, threads_per_rank=torch.get_num_threads()),
        **setting.more,
    )
    with pipeline, pipeline.observed(sight):
        loss = float(pipeline.step(job.batch))
    return numbers_of(model, loss, joined(sight.outputs, carries_loss=job.loss is None)), sight


def where_it_runs(job: Job) -> Job:
    """Return ``job`` on the device that a pipeline moves it to, so that one process computes there.

    What is there is not copied.
    """
    device = device_of_threads(Options())
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())

    def moved(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf

    held = [*job.model.parameters(), *job.model.buffers()]
    batch = map_tree(moved, job.batch)
    if all(tensor.device == device for tensor in held):
        return replace(job, batch=batch)
    model = copy.deepcopy(job.model)
    place(model, device)
    return replace(job, model=model, batch=batch)


def twin(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` without gradients."""
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        parameter.grad = None
    return made
