"""Find what a user wants trained: ``MODULE:FUNCTION``, or the first step of a script."""

from __future__ import annotations

import ast
import importlib
import inspect
import runpy
import sys
import sysconfig
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intandem.cli.stand_in import Taken, pipelines_stood_in
from intandem.equality import Job
from intandem.errors import PipelineError

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
            _check_defined(place, name)
        with errors_of(place):
            module = _module(place)
        with errors_of(target):
            return Found(_call(module, name))
    if not Path(target).is_file():
        msg = f"{target!r} is neither a script nor MODULE:FUNCTION (file.py:function will do)"
        raise ValueError(msg)
    return _first_step(Path(target), script_arguments)


def _call(module: ModuleType, name: str) -> Job:
    function = getattr(module, name, None)
    if not callable(function):
        known = sorted(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
        msg = f"{module.__name__} has no function {name!r}; it has {', '.join(known) or 'none'}"
        raise ValueError(msg)
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


def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        spec = spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            msg = f"there is no file {place!r}"
            raise ValueError(msg)
        module = module_from_spec(spec)
        with _importable_from(Path(place).parent):
            spec.loader.exec_module(module)
        return module
    try:
        with _importable_from(Path.cwd()):
            return importlib.import_module(place)
    except ModuleNotFoundError as error:
        msg = f"cannot import {place!r}: {error}"
        raise ValueError(msg) from error


def _check_defined(place: str, name: str) -> None:
    """Look for ``name`` in a file without running it, which may be training.

    Raises:
        ValueError: if nothing in the file can define it.
    """
    if not Path(place).is_file():
        msg = f"there is no file {place!r}"
        raise ValueError(msg)
    try:
        tree = ast.parse(Path(place).read_bytes(), filename=place)
    except SyntaxError as error:
        msg = f"{place} is not Python: {error}"
        raise ValueError(msg) from error
    nodes = list(ast.walk(tree))
    if any(isinstance(n, ast.alias) and n.name == "*" for n in nodes):
        return
    functions = [n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    imported = [(n.asname or n.name) for n in nodes if isinstance(n, ast.alias)]
    assigned = [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    if name not in {*functions, *imported, *assigned}:
        known = ", ".join(f for f in functions if f[0] != "_") or "none"
        msg = f"{place} has no function {name!r}; it has {known}"
        raise ValueError(msg)


@contextmanager
def errors_of(what: str) -> Iterator[None]:
    """Turn what the user's code raises into a line that says where.

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
    except PipelineError:
        raise
    except Exception as error:
        if (place := _user_line(error)) is None:
            raise
        msg = f"{what} raised {type(error).__name__}: {error}{place}"
        raise PipelineError(msg) from error


def _user_line(error: BaseException) -> str | None:
    """Write ``" at "``, file and line of the innermost frame that is neither ours nor a library's.

    None if there is no such frame; empty if a file cannot even be read as Python.
    """
    installed = (sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    libraries = (str(Path(__file__).parents[1]), *installed, "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if not f.filename.startswith(libraries)]
    if isinstance(error, SyntaxError):
        return f" at {error.filename}:{error.lineno}" if error.filename else ""
    return f" at {users[-1].filename}:{users[-1].lineno}" if users else None


def _first_step(script: Path, script_arguments: Sequence[str]) -> Found:
    before = sys.argv
    sys.argv = [str(script), *script_arguments]
    try:
        folder = script.resolve().parent
        with pipelines_stood_in(), _importable_from(folder), errors_of(str(script)):
            runpy.run_path(str(script), run_name="__main__")
    except Taken as taken:
        step = taken.step
        return Found(step.job, step.arguments, step.autocast)
    finally:
        sys.argv = before
    raise PipelineError(_NO_STEP.format(script))


@contextmanager
def _importable_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
