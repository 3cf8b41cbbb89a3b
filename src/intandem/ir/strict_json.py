"""JSON objects read strictly: what is wrong is refused by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def read_object(text: str, *, what: str, known: Sequence[str]) -> Mapping[str, object]:
    """Return the content of a JSON object with no other keys than ``known``, each once.

    Raises:
        ValueError: beginning with ``what``; names the key.
    """

    def unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            msg = f"{what}: key {twice!r} is given twice"
            raise ValueError(msg)
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        msg = f"{what}: not JSON: {error}"
        raise ValueError(msg) from None
    return as_object(content, what=what, known=known)


def as_object(content: object, *, what: str, known: Sequence[str]) -> Mapping[str, object]:
    """Return ``content`` if it is an object with no other keys than ``known``.

    Raises:
        ValueError: beginning with ``what``; names the key.
    """
    if not isinstance(content, dict):
        msg = f"{what}: found {type(content).__name__}; expected a JSON object"
        raise ValueError(msg)
    if unknown := [key for key in content if key not in known]:
        msg = f"{what}: unknown key {unknown[0]!r}; known: {', '.join(known)}"
        raise ValueError(msg)
    return content


def as_number(value: object, *, what: str) -> float:
    """Return ``value`` if it is a number.

    Raises:
        ValueError: beginning with ``what``.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{what} has {value!r}; expected a number"
        raise ValueError(msg)
    return float(value)


def as_whole(value: object, *, what: str) -> int:
    """Return ``value`` if it is a whole number.

    Raises:
        ValueError: beginning with ``what``.
    """
    number = as_number(value, what=what)
    if not number.is_integer():
        msg = f"{what} has {number}; expected a whole number"
        raise ValueError(msg)
    return int(number)


def as_list(value: object, *, what: str) -> list[object]:
    """Return ``value`` if it is a list.

    Raises:
        ValueError: beginning with ``what``.
    """
    if not isinstance(value, list):
        msg = f"{what} has {value!r}; expected a list"
        raise ValueError(msg)
    return value
