"""Code of the user's: modules by name or file, and what they raise, with the line."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import sysconfig
import traceback
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

from intandem.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any


def find_function(target: str) -> Callable[..., Any]:
    """Return the function that ``package.module:name`` or ``file.py:name`` names.

    Raises:
        ValueError: if there is no such module or function.
        PipelineError: if the module raised while it was imported.
    """
    place, _, name = target.rpartition(":")
    if not (place and name):
        msg = f"{target!r} is no function; expected module:function or file.py:function"
        raise ValueError(msg)
    if place.endswith(".py"):
        check_defined(place, name)
    with errors_of(place):
        module = import_module(place)
    return function_of(module, name)


def function_of(module: ModuleType, name: str) -> Callable[..., Any]:
    """Return a function of ``module``.

    Raises:
        ValueError: if it has none of that name; says which it has.
    """
    function: Callable[..., Any] | None = getattr(module, name, None)
    if function is None or not callable(function):
        known = sorted(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
        msg = f"{module.__name__} has no function {name!r}; it has {', '.join(known) or 'none'}"
        raise ValueError(msg)
    return function


def call_as_configured(name: str, table: str, /, *positional: Any, **named: Any) -> Any:
    """Call the function that ``name`` names with what a configuration gives it.

    Args:
        name: ``module:function`` or ``file.py:function``.
        table: where the configuration has its arguments, for the message.
        positional: what it is called with.
        named: the same, by name.

    Raises:
        ValueError: if there is no such function, or it does not take these arguments.
        PipelineError: if it raised; says where.
    """
    function = find_function(name)
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, with nothing to look at
        signature = None
    try:
        if signature is not None:
            signature.bind(*positional, **named)
    except TypeError as error:
        msg = f"{name} takes {signature}: {error}; [{table}] gives what it is called with"
        raise ValueError(msg) from None
    with errors_of(name):
        return function(*positional, **named)


def source_files(target: str) -> list[Path]:
    """Return the files that say what a function is: that of its module, and its own if another.

    Args:
        target: ``module:function`` or ``file.py:function``; a partial function or an object that
            can be called will do, too.

    Raises:
        ValueError: if there is no such function.
    """
    found: Any = inspect.unwrap(find_function(target))
    while isinstance(found, partial):
        found = inspect.unwrap(found.func)
    module = import_module(target.rpartition(":")[0])
    places = [getattr(module, "__file__", None)]
    is_code = inspect.isroutine(found) or inspect.isclass(found)
    with suppress(TypeError, OSError):  # written in C, or typed in
        places.append(inspect.getsourcefile(found if is_code else type(found)))
    files = [Path(place).resolve() for place in places if place]
    return [file for file in dict.fromkeys(files) if file.suffix == ".py" and file.is_file()]


def takes(name: str, parameter: str) -> bool:
    """Tell whether a function has a parameter of that name.

    Raises:
        ValueError: if there is no such function.
    """
    function = find_function(name)
    try:
        return parameter in inspect.signature(function).parameters
    except ValueError:  # written in C, with nothing to look at
        return False


def import_module(place: str) -> ModuleType:
    """Import a module by its name or by the path of its file.

    Raises:
        ValueError: if there is none.
    """
    if place.endswith(".py"):
        return _import_file(Path(place))
    try:
        with importable_from(Path.cwd()):
            return importlib.import_module(place)
    except ModuleNotFoundError as error:
        msg = f"cannot import {place!r}: {error}"
        raise ValueError(msg) from error


def _import_file(path: Path) -> ModuleType:
    """Import a file, once. It is known by its name meanwhile, as data classes look it up."""
    spec = spec_from_file_location(path.stem, str(path))
    if spec is None or spec.loader is None or not path.is_file():
        msg = f"there is no file {str(path)!r}"
        raise ValueError(msg)
    check_text(path)
    known = sys.modules.get(path.stem)
    if (
        known is not None
        and Path(getattr(known, "__file__", None) or "").resolve() == path.resolve()
    ):
        return known
    module = module_from_spec(spec)
    is_new = sys.modules.setdefault(path.stem, module) is module
    try:
        with importable_from(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        if is_new:
            del sys.modules[path.stem]
        raise
    return module


def check_text(path: Path) -> None:
    """Refuse by its name a file that Python, before 3.11.4, refuses without.

    Raises:
        ValueError: if there are null bytes in it.
    """
    if b"\0" in path.read_bytes():
        msg = f"{path} is not Python: it contains null bytes"
        raise ValueError(msg)


def check_defined(place: str, name: str) -> None:
    """Look for ``name`` in a file without running it, which may be training.

    Raises:
        ValueError: if nothing in the file can define it.
    """
    if not Path(place).is_file():
        msg = f"there is no file {place!r}"
        raise ValueError(msg)
    check_text(Path(place))
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
    libraries = (str(Path(__file__).parent), *installed, "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if not f.filename.startswith(libraries)]
    if isinstance(error, SyntaxError):
        return f" at {error.filename}:{error.lineno}" if error.filename else ""
    return f" at {users[-1].filename}:{users[-1].lineno}" if users else None


@contextmanager
def importable_from(folder: Path) -> Iterator[None]:
    """Let modules be imported from ``folder``, while open."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
