"""Configurations in files: read, held against their types, written so that they can be read again.

What is wrong is said in one sentence with the key, its value, and what it may be.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from intandem.train.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_PLACE = re.compile(r" - at `\$\.?(.*)`$")


def read_config(path: Path) -> Config:
    """Return the configuration of a ``.toml`` or ``.json`` file.

    Raises:
        ValueError: if it is no such file, has a key that there is not, or a value of another type.
        OSError: if it cannot be read.
    """
    if path.suffix not in {".toml", ".json"}:
        msg = f"{path} is no configuration; expected a .toml or .json file"
        raise ValueError(msg)
    text = _text(path)
    try:
        table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:  # tomllib's and json's own are ValueErrors
        msg = f"{path} is not {path.suffix[1:].upper()}: {error}"
        raise ValueError(msg) from error
    try:
        return config_of(table)
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


def config_of(table: object) -> Config:
    """Return the configuration that nested dictionaries are.

    Raises:
        ValueError: naming the first key that there is not, or whose value is of another type.
    """
    if not isinstance(table, dict):
        msg = f"is a {type(table).__name__}; expected tables of keys"
        raise ValueError(msg)
    for problem in _unknown_keys(table, Config, ""):
        raise ValueError(problem)
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        raise ValueError(_in_words(str(error), table)) from None


def checked(config: Config) -> Config:
    """Return ``config`` if every value is what its key may have.

    Raises:
        ValueError: naming the first key whose value is not.
    """
    return config_of(table_of(config))


def table_of(config: Config) -> dict[str, Any]:
    """Return a configuration as nested dictionaries; what is None is left out."""
    found: dict[str, Any] = _without_none(msgspec.to_builtins(config))
    return found


def write_config(config: Config) -> str:
    """Return TOML that ``read_config`` reads as the same configuration."""
    return "\n".join(_toml(table_of(config), "")).lstrip("\n") + "\n"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        msg = f"{path}: there is no such file"
        raise ValueError(msg) from None
    except UnicodeDecodeError as error:
        msg = f"{path} is not text in UTF-8 (byte {error.start}); save it as UTF-8"
        raise ValueError(msg) from None


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list | tuple) else value


# What is wrong.


def _unknown_keys(table: Mapping[str, Any], kind: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(kind, include_extras=False)
    known = [f.name for f in fields(kind)]
    for key, value in table.items():
        if key not in known:
            yield f"there is no key {prefix}{key}{_hint(key, prefix, known)}"
        elif isinstance(value, dict) and is_dataclass(hints[key]):
            yield from _unknown_keys(value, hints[key], f"{prefix}{key}.")
        elif (item := _item_kind(hints[key])) and isinstance(value, list):
            for index, part in enumerate(value):
                if isinstance(part, dict):
                    yield from _unknown_keys(part, item, f"{prefix}{key}[{index}].")


def _item_kind(hint: Any) -> Any:
    """The dataclass that a tuple is of, if it is of one."""
    args = get_args(hint) if get_origin(hint) is tuple else ()
    return args[0] if args and is_dataclass(args[0]) else None


def _hint(key: str, prefix: str, known: list[str]) -> str:
    """The nearest key of the same table, or the same key of another one."""
    if nearest := get_close_matches(key, known, n=1, cutoff=0.6):
        return f"; did you mean {prefix}{nearest[0]}?"
    every = {path.rpartition(".")[2]: path for path in all_keys(Config)}
    if nearest := get_close_matches(key, every, n=1, cutoff=0.75):
        return f"; did you mean {every[nearest[0]]}?"
    return f"; {prefix.rstrip('.') or 'a configuration'} has {', '.join(known)}"


def all_keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield every key with its table: ``data.seq``."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        if is_dataclass(hints[each.name]):
            yield from all_keys(hints[each.name], f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}"


def _in_words(message: str, table: Mapping[str, Any]) -> str:
    """Say msgspec's finding in our words: its key, its value, what was expected."""
    place = _PLACE.search(message)
    path = re.findall(r"\w+", place[1]) if place else []
    shown = place[1] if place else "the configuration"
    if missing := re.match(r"Object missing required field `(\w+)`", message):
        return f"{shown} needs {missing[1]}"
    value, hint = _walk(path, table)
    return f"{shown} is {_shown(value)}; expected {expected(hint)}"


def _walk(path: list[str], table: Mapping[str, Any]) -> tuple[Any, Any]:
    """Value and type of a key, by its path."""
    value: Any = table
    hint: Any = Config
    for part in path:
        if part.isdigit():
            args = get_args(_bare(hint))
            value, hint = value[int(part)], args[0]
        else:
            value, hint = value[part], get_type_hints(_bare(hint), include_extras=True)[part]
    return value, hint


def _shown(value: Any) -> str:
    return "a table" if isinstance(value, dict) else repr(value)


def _bare(hint: Any) -> Any:
    """Return a type without ``Annotated`` and ``None``."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in {Union, UnionType}:
        hint = _bare(next(arg for arg in get_args(hint) if arg is not type(None)))
    return hint


def expected(hint: Any) -> str:
    """Say what a value of a type is: "a whole number, 1 or more"."""
    bare = _bare(hint)
    if get_origin(bare) is Literal:
        *others, last = map(str, get_args(bare))
        return f"{', '.join(others)} or {last}"
    if get_origin(bare) is tuple:
        item, *more = get_args(bare)
        inside = expected(item)
        if more and more[0] is not ...:
            return f"a list of {len(more) + 1}, each {inside}"
        return "a list of tables" if is_dataclass(item) else f"a list, each {inside}"
    if is_dataclass(bare) or get_origin(bare) is dict:
        return "a table"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words[bare] + _bounds(hint)


def _bounds(hint: Any) -> str:
    if get_origin(hint) in {Union, UnionType}:
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    meta = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Meta)), None)
    if meta is None:
        return ""
    if meta.ge is not None and (meta.le is not None or meta.lt is not None):
        to = f"to {meta.le:g}" if meta.le is not None else f"to less than {meta.lt:g}"
        return f" from {meta.ge:g} {to}"
    return f", {meta.ge:g} or more" if meta.ge is not None else f", more than {meta.gt:g}"


# Writing. Strings, numbers, truth values and lists of them look alike in JSON and in TOML.


def _toml(table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if _is_table(value)}
    for key, value in table.items():
        if key not in inner:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in inner.items():
        path = f"{prefix}{_key(key)}"
        for part in value if isinstance(value, list) else [value]:
            yield f"\n[[{path}]]" if isinstance(value, list) else f"\n[{path}]"
            yield from _toml(part, f"{path}.")


def _is_table(value: Any) -> bool:
    is_list = isinstance(value, list) and all(isinstance(v, dict) for v in value)
    return bool(value) and (isinstance(value, dict) or is_list)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
