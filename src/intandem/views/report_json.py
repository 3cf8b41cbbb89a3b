"""A report as JSON: what a run leaves, so that its page can be made again at any time.

Versioned and strict: reading what was written gives an equal value; anything else is an error that
names the place. Actions, messages and programs are in their text forms; tuples are lists; what has
its default is left out.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from intandem.errors import ScheduleParseError
from intandem.ir import Action, Arrival, Message, Program, Span, Timeline, format_program
from intandem.ir.analysis import IdleParts, PathStep
from intandem.ir.strict_json import as_list, as_number, as_object, as_whole, read_object
from intandem.ir.text import parse_program
from intandem.views.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT, VERSION = "intandem report", 1

_NAMES = {
    kind.__name__: kind
    for kind in (Action, Arrival, IdleParts, Message, PathStep, Program, Span, Timeline)
}
"""Types that hints of others name without importing them at run time."""

_TEXTS: dict[object, Callable[[str], object]] = {
    Action: Action.parse,
    Message: Message.parse,
    Program: parse_program,
}


def format_report(report: Report) -> str:
    """Write ``report`` as JSON, ending in a newline."""
    content = {"format": FORMAT, "version": VERSION, "report": _encoded(report)}
    return json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=False) + "\n"


def parse_report(text: str, *, what: str) -> Report:
    """Read what ``format_report`` writes.

    Args:
        text: of the file.
        what: its name, which errors begin with.

    Raises:
        ValueError: if ``text`` is anything else, or of another version.
    """
    content = read_object(text, what=what, known=("format", "version", "report"))
    if content.get("format") != FORMAT:
        msg = f"{what}: format is {content.get('format')!r}; expected {FORMAT!r}"
        raise ValueError(msg)
    if content.get("version") != VERSION:
        msg = f"{what}: version is {content.get('version')!r}; this one reads {VERSION}"
        raise ValueError(msg)
    found = _decoded(Report, content.get("report"), f"{what}: report")
    if not isinstance(found, Report):  # never: says so to the type checker
        raise TypeError(what)
    return found


def _encoded(value: Any) -> Any:
    if type(value) in _TEXTS:
        return format_program(value) if isinstance(value, Program) else str(value)
    if isinstance(value, tuple):
        return [_encoded(item) for item in value]
    if is_dataclass(value):
        return {
            field.name: _encoded(found)
            for field in fields(value)
            if field.init and (found := getattr(value, field.name)) != field.default
        }
    return value.value if isinstance(value, Enum) else value


def _decoded(kind: Any, value: object, where: str) -> object:
    if get_origin(kind) is UnionType:
        if value is None and NoneType in get_args(kind):
            return None
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), value, where)
    if kind in _TEXTS:
        return _text(kind, value, where)
    if hasattr(kind, "_fields"):
        hints = get_type_hints(kind, localns=_NAMES)
        return kind(*_tuple(tuple(hints[name] for name in kind._fields), value, where))
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    return _plain(kind, value, where)


def _tuple(kinds: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    items = as_list(value, what=where)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        msg = f"{where} has {len(items)} items; expected {len(kinds)}"
        raise ValueError(msg)
    pairs = enumerate(zip(kinds, items, strict=True))
    return tuple(_decoded(kind, item, f"{where}[{index}]") for index, (kind, item) in pairs)


def _text(kind: Any, value: object, where: str) -> object:
    try:
        return _TEXTS[kind](_plain(str, value, where))
    except ScheduleParseError as error:
        msg = f"{where}: {error}"
        raise ValueError(msg) from None


def _dataclass(kind: Any, value: object, where: str) -> object:
    known = [field for field in fields(kind) if field.init]
    content = as_object(value, what=where, known=[field.name for field in known])
    for field in known:
        if field.default is MISSING and field.name not in content:
            msg = f"{where} has no {field.name!r}"
            raise ValueError(msg)
    hints = get_type_hints(kind, localns=_NAMES)
    return kind(
        **{key: _decoded(hints[key], item, f"{where}.{key}") for key, item in content.items()}
    )


def _plain(kind: Any, value: object, where: str) -> Any:
    if kind is float:
        number = as_number(value, what=where)
        if not math.isfinite(number):
            msg = f"{where} has {number}; expected a finite number"
            raise ValueError(msg)
        return number
    if kind is int:
        return as_whole(value, what=where)
    if type(value) is not kind:
        msg = f"{where} has {value!r}; expected {'text' if kind is str else 'true or false'}"
        raise ValueError(msg)
    return value
