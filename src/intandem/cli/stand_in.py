"""A stand-in for ``Pipeline`` while a user's script runs up to its first step."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from intandem.equality import Job
from intandem.equality.updates import rebuilt
from intandem.errors import PipelineError
from intandem.pipeline import Pipeline, facade
from intandem.pipeline.assembly import evaluating
from intandem.pipeline.batches import join_outputs
from intandem.pipeline.last_step import LastStep
from intandem.pipeline.training_steps import refuse_none_yet
from intandem.recorder import bind_by_signature
from intandem.recorder.capture import left_as_it_was
from intandem.recorder.recording import autocast_state
from intandem.recorder.stage_chain import as_module
from intandem.runtime.losses import loss_term
from intandem.runtime.microbatch import split_batch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from intandem.recorder.graph import Autocast


@dataclass(frozen=True, slots=True)
class FirstStep:
    """What the first step of a script is given.

    Attributes:
        job: model, batch, loss, and the optimizers made for the model before.
        arguments: keyword arguments of its ``Pipeline``.
        autocast: mixed precision around the step.
    """

    job: Job
    arguments: dict[str, Any]
    autocast: tuple[Autocast, ...]


class Taken(BaseException):
    """Ends a script once its first step is known."""

    def __init__(self, step: FirstStep) -> None:
        super().__init__()
        self.step = step


@contextmanager
def pipelines_stood_in() -> Iterator[None]:
    """Let the first ``Pipeline.step`` end the script; pipelines are not really built.

    What a script may ask of a pipeline before is answered by the plain model.

    Raises:
        Taken: through the script.
    """
    optimizers: list[Optimizer] = []
    replacements = {**_METHODS, "step": _step_that_takes(optimizers)}
    originals = {name: vars(Pipeline).get(name) for name in replacements}
    original_init = Optimizer.__init__

    def noted_init(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        original_init(self, *args, **kwargs)
        optimizers.append(self)

    for name, function in replacements.items():
        setattr(Pipeline, name, function)
    Optimizer.__init__ = noted_init  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.__init__ = original_init  # type: ignore[method-assign]
        for name, original in originals.items():
            if original is None:
                delattr(Pipeline, name)
            else:
                setattr(Pipeline, name, original)


def _step_that_takes(optimizers: list[Optimizer]) -> Any:
    def step(self: Any, batch: Any, *args: Any, **kwargs: Any) -> NoReturn:
        del args, kwargs
        optimizer = rebuilt(optimizers, list(self._model.parameters()))
        job = Job(self._model, batch, self.asked_loss, optimizer)
        raise Taken(FirstStep(job, self.asked, autocast_state()))

    return step


def _init(self: Any, model: Any, *, example: Any, loss: Any = None, **arguments: Any) -> None:
    del example
    self._model = as_module(model)
    self._steps = _NoSteps
    self._last = LastStep(None, None, None, _NoSteps)  # type: ignore[arg-type]
    self.asked_loss, self.asked = loss, arguments
    self.num_ranks = arguments.get("ranks") or 1


class _NoSteps:
    """Steps before the first one."""

    run_ahead = False
    last = staticmethod(refuse_none_yet)

    @staticmethod
    def settle() -> None:
        """Nothing is under way."""


def _getattr(self: Any, name: str) -> NoReturn:
    if name.startswith("__") or not name.startswith("_"):
        msg = f"{type(self).__name__!r} object has no attribute {name!r}"
        raise AttributeError(msg)
    msg = (
        "the script asks its Pipeline before the first step for what only a real one knows "
        f"({_asked_publicly() or name}); do that after the first step, or give check a function: "
        "file.py:function returning intandem.Job(model, batch, loss)"
    )
    raise PipelineError(msg)


def _asked_publicly() -> str:
    """Name the method of ``Pipeline`` that has been called, or nothing."""
    name = ""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename == facade.__file__:
        name, frame = f"{frame.f_code.co_name}()", frame.f_back
    return name


def _outputs(self: Any, batch: Any) -> tuple[list[tuple[Any, Any]], tuple[int, ...]]:
    """Run the plain model in evaluation mode; return (output, part) pairs and rows of each part."""
    model, asked = self._model, self.asked
    bind = asked.get("inputs") or bind_by_signature(
        model, loss_is_separate=self.asked_loss is not None
    )
    parts = split_batch(batch, 1, asked.get("split"))
    with left_as_it_was(model), evaluating(model):
        given = [(bind(part), part) for part in parts.parts]
        return [(model(*a.args, **a.kwargs), part) for a, part in given], parts.rows


def _evaluate(self: Any, batch: Any) -> float:
    pairs, rows = _outputs(self, batch)
    terms = [loss_term(output, part, self.asked_loss) for output, part in pairs]
    if terms[0].count is not None:
        count = sum(float(term.count or 0.0) for term in terms)
        return sum(float(term.root) for term in terms) / (count or 1.0)
    weighed = zip(terms, rows, strict=True)
    return sum(float(term.root) * number for term, number in weighed) / sum(rows)


def _predict(self: Any, batch: Any) -> Any:
    return join_outputs([output for output, _ in _outputs(self, batch)[0]])


def _named_parameters(self: Any) -> Any:
    return self._model.named_parameters()


def _clip_grad_norm_(self: Any, max_norm: float) -> float:
    return float(torch.nn.utils.clip_grad_norm_(self._model.parameters(), max_norm))


def _optimizer(self: Any, factory: Any) -> Optimizer:
    made: Optimizer = factory(list(self._model.parameters()))
    return made


def _grad_scaler(self: Any, **scaling: Any) -> GradScaler:
    """Return a scaler of scale 1: what the step is taken for has no scale."""
    del self, scaling
    return GradScaler("cpu", enabled=False)


def _recordings(self: Any) -> tuple[()]:
    del self
    return ()


def _state_dict(self: Any) -> dict[str, Any]:
    return {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}


def _close(self: Any, *exception: object) -> None:
    del self, exception


_METHODS: dict[str, Any] = {
    "__init__": _init,
    "__getattr__": _getattr,
    "evaluate": _evaluate,
    "predict": _predict,
    "named_parameters": _named_parameters,
    "clip_grad_norm_": _clip_grad_norm_,
    "grad_scaler": _grad_scaler,
    "optimizer": _optimizer,
    "recordings": _recordings,
    "state_dict": _state_dict,
    "num_recordings": property(lambda self: 1),
    "close": _close,
    "__exit__": _close,
}
