"""Find what a user wants trained: ``MODULE:FUNCTION``, or the first step of a script."""

from __future__ import annotations

import inspect
import runpy
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intandem.cli.stand_in import Taken, pipelines_stood_in
from intandem.equality import Job
from intandem.errors import PipelineError
from intandem.user_code import (
    check_defined,
    check_text,
    errors_of,
    function_of,
    import_module,
    importable_from,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from intandem.recorder.graph import Autocast


_NO_STEP = "{} ended without a step of a Pipeline; there is nothing to check"


@dataclass(frozen=True, slots=True)
class Found:
    """A job, and how its script builds the pipeline.

    Attributes:
        job: model, batch and loss.
        arguments: keyword arguments of its ``Pipeline``.
        autocast: mixed precision around its step.
    """

    job: Job
    arguments: dict[str, Any] = field(default_factory=dict)
    autocast: tuple[Autocast, ...] = ()


def find_job(target: str, script_arguments: Sequence[str] = ()) -> Found:
    """Return the job that ``target`` names.

    Args:
        target: ``package.module:function``, ``file.py:function``, or a script.
        script_arguments: passed to a script.

    Raises:
        ValueError: if there is no such module, function or script.
        PipelineError: if a script trains nothing, or what was run of the user's raised.
    """
    place, colon, name = target.rpartition(":")
    if colon:
        if place.endswith(".py"):
            check_defined(place, name)
        with exits_of(place), errors_of(place):
            module = import_module(place)
        with exits_of(target), errors_of(target):
            return Found(_call(module, name))
    if not Path(target).is_file():
        msg = f"{target!r} is neither a script nor MODULE:FUNCTION (file.py:function will do)"
        raise ValueError(msg)
    return _first_step(Path(target), script_arguments)


def _call(module: ModuleType, name: str) -> Job:
    function = function_of(module, name)
    _check_needs_nothing(function, name)
    job = function()
    if not isinstance(job, Job):
        msg = f"{name}() returned a {type(job).__name__}; expected intandem.Job(model, batch, loss)"
        raise ValueError(msg)
    return job


def _check_needs_nothing(function: Callable[..., Any], name: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, with nothing to look at
        return
    needed = [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
    ]
    if needed:
        msg = (
            f"{name} is called without arguments, and needs {', '.join(needed)}; give them "
            "defaults, or name a function that needs none and returns an intandem.Job"
        )
        raise ValueError(msg)


@contextmanager
def exits_of(what: str) -> Iterator[None]:
    """Turn an exit of the user's code into a line that says that it came too early.

    Raises:
        PipelineError: in place of it.
    """
    try:
        yield
    except SystemExit as stop:
        if not stop.code:
            raise PipelineError(_NO_STEP.format(what)) from stop
        msg = (
            f"{what} exited with {stop.code!r} before it had shown what it trains; if it wants "
            'arguments, give them with --script-args="..."'
        )
        raise PipelineError(msg) from stop


def _first_step(script: Path, script_arguments: Sequence[str]) -> Found:
    before = sys.argv
    sys.argv = [str(script), *script_arguments]
    try:
        folder, name = script.resolve().parent, str(script)
        with pipelines_stood_in(), importable_from(folder), exits_of(name), errors_of(name):
            check_text(script)
            runpy.run_path(str(script), run_name="__main__")
    except Taken as taken:
        step = taken.step
        return Found(step.job, step.arguments, step.autocast)
    finally:
        sys.argv = before
    raise PipelineError(_NO_STEP.format(script))
