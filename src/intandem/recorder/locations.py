"""Where in the user's code something happens."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import sysconfig
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from torch import nn

_OURS = str(Path(__file__).parents[1])
_LIBRARIES = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
_TORCH = str(Path(torch.__file__).parent)
_PYTHON = tuple({sysconfig.get_path(key) for key in ("stdlib", "platstdlib")})


def user_location() -> str:
    """Return ``file:line`` of the innermost frame that is neither torch's, Python's nor ours.

    That is the user's line, or that of a library whose model the user trains.
    """
    frame = _of_others(sys._getframe(1))
    return "an unknown line" if frame is None else _shown(frame)


def user_place() -> str:
    """Return the same for a message; a line of a library is followed by who called it."""
    frames = list(_frames())
    users = [f for f in frames if not f.f_code.co_filename.startswith(_LIBRARIES)]
    if frames and users and frames[0] is not users[0]:
        return f"{_shown(frames[0])} (called at {_shown(users[0])})"
    return user_location()


def _shown(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _frames() -> Iterator[FrameType]:
    """Yield frames of others' code, innermost first, out to where a recording began."""
    frame = _of_others(sys._getframe(1))
    while frame is not None:
        yield frame
        frame = _of_others(frame.f_back)


def _of_others(frame: FrameType | None) -> FrameType | None:
    """Return the first of a frame and its callers that is others', if a recording reaches there."""
    while frame is not None:
        code = frame.f_code
        if not _is_internal(code.co_filename):
            return frame
        if code.co_name == "call_forward" and code.co_filename.startswith(_OURS):
            return None
        frame = frame.f_back
    return None


@functools.cache
def _is_internal(path: str) -> bool:
    if path.startswith("<"):
        return not path.startswith(("<stdin", "<ipython"))
    if path.startswith((_OURS, _TORCH)):
        return True
    return path.startswith(_PYTHON) and not path.startswith(_LIBRARIES)


def where_set(module: nn.Module, name: str) -> str:
    """Return ``at file:line`` of a statement outside ``__init__`` that sets an attribute.

    Empty if there is none in the source of the module's classes.
    """
    for kind in type(module).__mro__:
        try:
            lines, first = inspect.getsourcelines(kind)
            tree = ast.parse(textwrap.dedent("".join(lines)))
            path = inspect.getsourcefile(kind)
        except (OSError, TypeError, SyntaxError):
            continue
        if kind.__module__.partition(".")[0] == "torch":
            break
        if line := _line_that_sets(tree, name):
            return f", at {path}:{first + line - 1}"
    return ""


def _line_that_sets(tree: ast.AST, name: str) -> int:
    """Return the first line of a class that sets an attribute, in ``forward`` if there is one."""
    methods = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name != "__init__"]
    for method in sorted(methods, key=lambda method: method.name != "forward"):
        for node in ast.walk(method):
            if isinstance(node, ast.stmt) and any(_mentions(t, name) for t in _changed(node)):
                return node.lineno
    return 0


def _changed(node: ast.AST) -> list[ast.expr]:
    """Return the expressions that a statement may change."""
    if isinstance(node, ast.Assign | ast.Delete):
        return node.targets
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        return [node.target]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return [node.value.func]
    return []


def _mentions(target: ast.expr, name: str) -> bool:
    return any(isinstance(n, ast.Attribute) and n.attr == name for n in ast.walk(target))
