"""Text forms of schedules and programs, versioned and strict.

A schedule::

    intandem schedule 1
    name: 1f1b
    placement: 0 1
    microbatches: 2
    rank 0: 0F0 0F1 0B0 0B1
    rank 1: 1F0 1B0 1F1 1B1

A program has one line more, which stages hand values to which (activations / gradients), and
instructions in place of actions::

    intandem program 1
    name: 1f1b
    placement: 0 1
    microbatches: 1
    links: 0>1 / 1>0
    rank 0: 0F0 send:0F0>1@1 recv:1B0>0@1 0B0
    rank 1: recv:0F0>1@0 1F0 1B0 send:1B0>0@0

The placement of stages held several times has a bar between replicas: ``placement: 0 1 | 1 0``. An
action that runs together with the next one of its rank has an ampersand: ``0F1& 1B0``.

A name that is more than letters, digits and ``._+-`` is written as a JSON string. Reading what
was written gives an equal value; anything unexpected is an error that names its line.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn, TypeVar

from intandem.errors import ScheduleParseError
from intandem.ir.action import Action
from intandem.ir.placement import Placement
from intandem.ir.program import (
    Compute,
    Instruction,
    Message,
    Program,
    Recompute,
    Recv,
    ReduceGrads,
    Send,
    StageLinks,
)
from intandem.ir.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Pairs = tuple[tuple[int, int], ...]

SCHEDULE_HEADER = "intandem schedule 1"
PROGRAM_HEADER = "intandem program 1"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9._+-]+")
_COUNT = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_PAIR = re.compile(r"(0|[1-9][0-9]*)>(0|[1-9][0-9]*)", re.ASCII)
_MESSAGE = re.compile(r"(?P<source>\w+)>(?P<target>0|[1-9][0-9]*)@(?P<peer>0|[1-9][0-9]*)", re.A)


def format_schedule(schedule: Schedule) -> str:
    """Write ``schedule`` in its text form, ending in a newline."""
    head = _format_head(schedule.name, schedule.placement, schedule.num_microbatches)
    rows = _format_rows(tuple(tuple(schedule.words(r)) for r in range(schedule.num_ranks)))
    return "\n".join([SCHEDULE_HEADER, *head, *rows]) + "\n"


def format_program(program: Program) -> str:
    """Write ``program`` in its text form, ending in a newline."""
    head = _format_head(program.name, program.placement, program.num_microbatches)
    links = [f"{s}>{t}" for s, t in program.links.activations]
    links += ["/"] + [f"{s}>{t}" for s, t in program.links.gradients]
    rows = _format_rows(program.instructions)
    return "\n".join([PROGRAM_HEADER, *head, f"links: {' '.join(links)}", *rows]) + "\n"


def parse_schedule(text: str) -> Schedule:
    """Read what ``format_schedule`` writes. The result is not verified.

    Raises:
        ScheduleParseError: if ``text`` is anything else; names the line, what was found there
            and what was expected.
    """
    reader = _Reader(text)
    reader.header(SCHEDULE_HEADER)
    name, placement, num_microbatches = _parse_head(reader)
    computes = reader.rows(_parse_compute)
    rows = tuple(tuple(compute.action for compute in row) for row in computes)
    overlaps = frozenset(
        (rank, slot)
        for rank, row in enumerate(computes)
        for slot, compute in enumerate(row)
        if compute.overlaps
    )
    return Schedule(name, placement, num_microbatches, rows, overlaps)


def parse_program(text: str) -> Program:
    """Read what ``format_program`` writes. The result is not verified.

    Raises:
        ScheduleParseError: as ``parse_schedule``.
    """
    reader = _Reader(text)
    reader.header(PROGRAM_HEADER)
    name, placement, num_microbatches = _parse_head(reader)
    activations, gradients = reader.links()
    rows = reader.rows(parse_instruction)
    links = StageLinks(activations, gradients)
    return Program(name, placement, num_microbatches, links, rows)


def parse_instruction(text: str) -> Instruction:
    """Read one instruction as its ``__str__`` writes it.

    Raises:
        ScheduleParseError: if ``text`` is anything else.
    """
    kind, colon, rest = text.partition(":")
    if text == "reduce":
        return ReduceGrads()
    if not colon:
        return _parse_compute(text)
    if kind == "recompute":
        return Recompute(Action.parse(rest))
    if kind == "send":
        return Send(*_parse_transfer(text, rest))
    if kind == "recv":
        return Recv(*_parse_transfer(text, rest))
    msg = f"{text!r} is not an instruction; expected 0F0, send:…, recv:…, recompute:… or reduce"
    raise ScheduleParseError(msg)


def _parse_compute(text: str) -> Compute:
    return Compute(Action.parse(text.removesuffix("&")), text.endswith("&"))


def _parse_transfer(text: str, rest: str) -> tuple[Message, int]:
    if (match := _MESSAGE.fullmatch(rest)) is None:
        msg = f"{text!r} is not a transfer; expected <send|recv>:<action>><stage>@<rank>"
        raise ScheduleParseError(msg)
    return Message(Action.parse(match["source"]), int(match["target"])), int(match["peer"])


def _format_head(name: str, placement: Placement, num_microbatches: int) -> tuple[str, str, str]:
    ranks = " | ".join(" ".join(map(str, row)) for row in placement.rows)
    return (
        f"name: {name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)}",
        f"placement: {ranks}".rstrip(),
        f"microbatches: {num_microbatches}",
    )


def _format_rows(rows: tuple[tuple[object, ...], ...]) -> list[str]:
    return [f"rank {rank}: {' '.join(map(str, row))}".rstrip() for rank, row in enumerate(rows)]


def _parse_head(reader: _Reader) -> tuple[str, Placement, int]:
    name = reader.field("name", "a name of letters, digits and ._+-, or a JSON string", _name)
    placement = reader.field("placement", "one rank per stage, separated by one space", _placement)
    count = reader.field("microbatches", "a number in decimal digits", _count)
    return name, placement, count


def _name(text: str) -> str:
    if _PLAIN_NAME.fullmatch(text):
        return text
    name = json.loads(text)
    if not isinstance(name, str) or text != json.dumps(name) or _PLAIN_NAME.fullmatch(name):
        raise ValueError(text)
    return name


def _count(text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(word) for word in text.split(" ")) if text else ()


def _placement(text: str) -> Placement:
    rank_of, *replicas = (_counts(row) for row in text.split(" | "))
    if any(len(row) != len(rank_of) for row in replicas):
        raise ValueError(text)
    return Placement(rank_of, tuple(replicas))


def _pair(text: str) -> tuple[int, int]:
    if (match := _PAIR.fullmatch(text)) is None:
        raise ValueError(text)
    return int(match[1]), int(match[2])


def _links(text: str) -> tuple[Pairs, Pairs]:
    words = text.split(" ")
    slash = words.index("/")
    return tuple(map(_pair, words[:slash])), tuple(map(_pair, words[slash + 1 :]))


class _Reader:
    """Lines of a text form, taken one after another."""

    def __init__(self, text: str) -> None:
        self._lines = text.removesuffix("\n").split("\n")
        self._next = 0

    def header(self, expected: str) -> None:
        if self._take(expected) != expected:
            self._refuse(self._lines[0], expected)

    def field(self, key: str, expected: str, read: Callable[[str], T]) -> T:
        line = self._take(f"{key}: ...")
        found_key, _, value = line.partition(":")
        if found_key != key or (value and not value.startswith(" ")) or line != line.rstrip():
            self._refuse(line, f"'{key}: ' and {expected}")
        try:
            return read(value[1:])
        except ValueError:
            self._refuse(line, f"'{key}: ' and {expected}")

    def links(self) -> tuple[Pairs, Pairs]:
        return self.field(
            "links", "pairs such as 0>1, a slash between activations/gradients", _links
        )

    def rows(self, read: Callable[[str], T]) -> tuple[tuple[T, ...], ...]:
        rows: list[tuple[T, ...]] = []
        while self._next < len(self._lines):
            key = f"rank {len(rows)}"
            rows.append(
                self.field(key, "words separated by one space", lambda v: self._words(v, read))
            )
        return tuple(rows)

    def _words(self, value: str, read: Callable[[str], T]) -> tuple[T, ...]:
        try:
            return tuple(read(word) for word in value.split(" ")) if value else ()
        except ScheduleParseError as error:
            msg = f"line {self._next}: {error}"
            raise ScheduleParseError(msg) from None

    def _take(self, expected: str) -> str:
        if self._next == len(self._lines):
            msg = f"line {self._next + 1}: found the end of the text; expected {expected!r}"
            raise ScheduleParseError(msg)
        self._next += 1
        return self._lines[self._next - 1]

    def _refuse(self, found: str, expected: str) -> NoReturn:
        msg = f"line {self._next}: found {found!r}; expected {expected}"
        raise ScheduleParseError(msg)
