"""Makes everything that a run needs out of its configuration."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from intandem.pipeline import Options, Pipeline
from intandem.runtime.transport.process_group import launched_num_ranks
from intandem.train.data.dataset import Stateful, as_rows
from intandem.train.data.iterator import BatchIterator, in_order, next_batch
from intandem.train.models import find_loss, find_model
from intandem.train.optimizers import find_optimizer

if TYPE_CHECKING:
    from intandem.pipeline.optimizer import PipelineOptimizer
    from intandem.pipeline.scaling import PipelineGradScaler
    from intandem.train.config import Config
    from intandem.train.data.dataset import Data

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of.

    Attributes:
        config: of the run.
        data: as they were found.
        batches: to train on.
        validation: batches held out, and how many rows each has.
        pipe: the pipeline.
        optimizer: of this process's parameters, which each rank steps by itself.
        scaler: of gradients, with fp16.
        num_parameters: of the model.
    """

    config: Config
    data: Data
    batches: Stateful
    validation: list[tuple[Any, int]]
    pipe: Pipeline
    optimizer: PipelineOptimizer
    scaler: PipelineGradScaler | None
    num_parameters: int

    def precision(self) -> AbstractContextManager[Any]:
        """Return the precision that steps and validations run in."""
        if self.config.precision == "fp32":
            return nullcontext()
        first = next(self.pipe.parameters(), None)
        device = "cpu" if first is None else first.device.type
        return torch.autocast(device, dtype=_DTYPES[self.config.precision])


def set_up(config: Config, data: Data) -> Parts:
    """Return the parts of a run. Collective. The caller closes the pipeline.

    Raises:
        ValueError: if the configuration does not go together.
        TypeError: if a function of the user's returns something else than it should.
        PipelineError: if the model cannot be run in stages.
    """
    batches = _batches(config, data)
    validation = _validation(config, data)
    model = find_model(config, data)
    every = [name for name, _ in model.named_parameters()]
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    pipe = _pipeline(config, data, model, batches)
    try:
        optimizer = _optimizer(config, pipe, every)
        scaler = pipe.grad_scaler() if config.precision == "fp16" else None
    except BaseException:
        pipe.close()
        raise
    return Parts(config, data, batches, validation, pipe, optimizer, scaler, num_parameters)


def _batches(config: Config, data: Data) -> Stateful:
    if isinstance(data.training, Stateful):
        return data.training
    rows = as_rows(data.training, "what is trained on")
    return BatchIterator(rows, batch_rows=config.data.rows, seed=config.seed)


def _validation(config: Config, data: Data) -> list[tuple[Any, int]]:
    if data.validation is None or not config.validation.every:
        return []
    rows = as_rows(data.validation, "what is held out")
    return in_order(rows, batch_rows=config.data.rows, num_batches=config.validation.batches)


def _pipeline(config: Config, data: Data, model: torch.nn.Module, batches: Stateful) -> Pipeline:
    asked = config.pipeline
    options = Options(
        device=asked.device,
        seed=config.seed,
        timeout_s=asked.timeout_s,
        threads_per_rank=asked.threads_per_rank,
        hang_s=asked.hang_s,
        open_blocks=asked.open_blocks,
    )
    return Pipeline(
        model,
        example=_peek(batches, config.steps),
        loss=find_loss(config, data),
        ranks=asked.ranks or (1 if launched_num_ranks() is None else None),
        schedule=asked.schedule,
        microbatches=asked.microbatches,
        split_points=asked.split_points,
        recompute=asked.recompute,
        replicas=asked.replicas,
        options=options,
    )


def _optimizer(config: Config, pipe: Pipeline, every: list[str]) -> PipelineOptimizer:
    """Return an optimizer that each rank steps in its own thread of work."""
    name_of = {id(parameter): name for name, parameter in pipe.named_parameters()}

    def of_rank(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        named = [(name_of[id(parameter)], parameter) for parameter in parameters]
        return find_optimizer(config.optimizer, named, every)

    return pipe.optimizer(of_rank)


def _peek(batches: Stateful, num_steps: int) -> Any:
    """Return the next batch, and leave it where it is."""
    position = batches.state_dict()
    batch = next_batch(batches, step=0, num_steps=num_steps)
    batches.load_state_dict(position)
    return batch
