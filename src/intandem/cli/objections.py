"""What is wrong with the words of a command line, in one sentence."""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
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

import tyro

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class _Option:
    """An option, or an argument without a name.

    Attributes:
        names: as they are typed; empty for an argument without one.
        kind: of its value, ``bool`` for a flag.
        label: what it is called where it is missing.
        needed: whether it cannot be left out.
    """

    names: tuple[str, ...]
    kind: Any
    label: str
    needed: bool

    @property
    def expected(self) -> str:
        """What its value may be."""
        if get_origin(self.kind) is Literal:
            *others, last = map(str, get_args(self.kind))
            return f"{', '.join(others)} or {last}" if others else last
        if get_origin(self.kind) is tuple:
            return "values with spaces in between"
        kinds = {int: "a whole number", float: "a number", Path: "the name of a file"}
        return kinds.get(self.kind, "text")

    def accepts(self, value: str) -> bool:
        """Tell whether ``value`` can be read as its kind."""
        if get_origin(self.kind) is Literal:
            return value in get_args(self.kind)
        try:
            if self.kind in {int, float}:
                self.kind(value)
        except ValueError:
            return False
        return True


def objection(kind: type, argv: Sequence[str], *, command: str) -> str | None:
    """Say why ``argv`` cannot be read as the fields of ``kind``; None if nothing is found."""
    options = _options(kind)
    by_name = {name: option for option in options for name in option.names}
    places = [option for option in options if not option.names]
    words, given, unnamed = list(argv), set[str](), list[str]()
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not _is_name(name):
            unnamed.append(name + equals + value)
            continue
        option = by_name.get(name.replace("_", "-"))
        if option is None:
            return f"unknown option {name}{_hint(name, by_name, command)}"
        given.add(option.label)
        if option.kind is bool:
            continue
        if not equals and (not words or _is_name(words[0])):
            return f"{name} needs a value; expected {option.expected}"
        value = value if equals else words.pop(0)
        while get_origin(option.kind) is tuple and words and not _is_name(words[0]):
            words.pop(0)
        if not option.accepts(value):
            return f"{name} is {value!r}; expected {option.expected}"
    given.update(option.label for option, _ in zip(places, unnamed, strict=False))
    if len(unnamed) > len(places):
        return f"{unnamed[len(places)]!r} is an argument too many; see intandem {command} --help"
    if missing := [o.label for o in options if o.needed and o.label not in given]:
        return f"needs {' and '.join(missing)}; see intandem {command} --help"
    return None


def _is_name(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and not (word[1].isdigit() or word[1] == ".")


def _hint(name: str, by_name: dict[str, _Option], command: str) -> str:
    tails = {f"--{known.rpartition('.')[2]}": known for known in by_name if "." in known}
    nearest = get_close_matches(name, by_name, n=1, cutoff=0.7)
    nearest += [tails[tail] for tail in get_close_matches(name, tails, n=1, cutoff=0.7)]
    return f"; did you mean {nearest[0]}?" if nearest else f"; see intandem {command} --help"


def _options(kind: type, prefix: str = "") -> list[_Option]:
    """Options of a dataclass's fields, those of dataclasses in it after their fields' names."""
    hints = get_type_hints(kind, include_extras=True)
    found: list[_Option] = []
    for field in fields(kind):
        base, notes = _without_notes(hints[field.name])
        if isinstance(base, type) and is_dataclass(base):
            found += _options(base, prefix if _is_flat(notes) else f"{prefix}{field.name}.")
        elif tyro.conf.Suppress not in notes:
            found.append(_option(field, base, notes, prefix))
    return found


def _is_flat(notes: tuple[object, ...]) -> bool:
    """Whether the options of a dataclass are named as if they were of the one that it is in."""
    return tyro.conf.OmitArgPrefixes in notes or any(getattr(n, "name", None) == "" for n in notes)


def _option(field: Field[Any], base: Any, notes: tuple[object, ...], prefix: str) -> _Option:
    hyphens = f"{prefix}{field.name}".replace("_", "-")
    needed = field.default is MISSING and field.default_factory is MISSING
    if tyro.conf.Positional in notes:
        labels = (getattr(note, "metavar", None) for note in notes)
        return _Option((), base, next(filter(None, labels), hyphens.upper()), needed)
    aliases = (name for note in notes for name in getattr(note, "aliases", None) or ())
    opposite = f"{prefix}no-{field.name}".replace("_", "-")
    names = (f"--{hyphens}", *aliases, *([f"--{opposite}"] if base is bool else []))
    return _Option(names, base, names[0], needed)


def _without_notes(hint: Any) -> tuple[Any, tuple[object, ...]]:
    """Return a type without ``Annotated`` and ``None``, and what it was annotated with."""
    notes: tuple[object, ...] = ()
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        notes += tuple(more)
    if get_origin(hint) in {Union, UnionType}:
        others = [arg for arg in get_args(hint) if arg is not type(None)]
        hint = others[0] if len(others) == 1 else str
    return hint, notes
