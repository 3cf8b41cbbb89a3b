"""Executes one rank's row of a program: events in, commands out.

A pure state machine: no torch, no clock, no input or output. There is one for every schedule,
and it knows none of them. What it adds to the row is when receives are made ready: ahead of
need, at most ``MAX_POSTED`` outstanding per peer, in the row's order. For the row of rank 1::

    row      recv:0F0>1@0   1F0   recv:0F1>1@0   1B0    send:1B0>0@0   recv:0F2>1@0  ...
    start    post 0F0, post 0F1, await 0F0
    Received(0F0)   post 0F2, run 1F0
    Ran(1F0)        await 0F1
    Received(0F1)   run 1B0
    Ran(1B0)        transmit 1B0, await 0F2

The executor performs a batch of commands in order. Only the last one of a batch takes time, and
its end is the next event. All of this follows from the row alone, so it is worked out once, when
the interpreter is made; an event then costs one comparison, whatever the size of the program.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self, assert_never

from intandem.errors import RunError
from intandem.ir import Action, Compute, Message, Recompute, Recv, ReduceGrads, Send

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from intandem.ir import Instruction

MAX_POSTED = 2
"""Receives outstanding per directed pair of ranks: one being waited for, one on its way."""


class Transit(NamedTuple):
    """A message between this rank and another: what every pass asks of it, worked out once.

    Attributes:
        message: which.
        peer: the other rank.
        tag: the message's text.
        key: source stage, target stage and micro-batch; a pass has no other message with these.
    """

    message: Message
    peer: int
    tag: str
    key: tuple[int, int, int]

    @classmethod
    def of(cls, instruction: Send | Recv) -> Self:
        """Return what an instruction is about."""
        message = instruction.message
        key = (message.source.stage, message.target_stage, message.source.microbatch)
        return cls(message, instruction.peer, str(message), key)


@dataclass(frozen=True, slots=True)
class Post:
    """Make ready to receive. Does not wait."""

    recv: Recv
    transit: Transit = field(compare=False)


@dataclass(frozen=True, slots=True)
class Transmit:
    """Hand a message over. Does not wait."""

    send: Send
    transit: Transit = field(compare=False)


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for the message of a receive posted before. Ends with ``end``, a ``Received``."""

    recv: Recv
    transit: Transit = field(compare=False)
    end: Received = field(compare=False)


@dataclass(frozen=True, slots=True)
class Run:
    """Compute. Ends with ``end``, a ``Ran``."""

    instruction: Compute | Recompute
    end: Ran = field(compare=False)


@dataclass(frozen=True, slots=True)
class Reduce:
    """Add up gradients held on several ranks. Ends with ``Reduced``."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left to do."""


Command = Post | Transmit | Await | Run | Reduce | Finish


@dataclass(frozen=True, slots=True)
class Received:
    """The message that was awaited is here."""

    message: Message

    def __str__(self) -> str:
        return f"received {self.message}"


@dataclass(frozen=True, slots=True)
class Ran:
    """The action was computed, or computed again."""

    action: Action

    def __str__(self) -> str:
        return f"ran {self.action}"


@dataclass(frozen=True, slots=True)
class Reduced:
    """Gradients held on several ranks are added up."""

    def __str__(self) -> str:
        return "reduced"


Event = Received | Ran | Reduced


@dataclass(frozen=True, slots=True)
class _Turn:
    """One batch of commands, the slot of its last one, and the event that ends it."""

    commands: tuple[Command, ...]
    slot: int
    end: Event | None


class Interpreter:
    """State of one rank's row. One object serves any number of passes, one after another."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self._turns = tuple(_turns(tuple(instructions)))
        self._at: int | None = None

    @property
    def slot(self) -> int:
        """Index in the row of the instruction whose end is awaited; its length at the end."""
        return 0 if self._at is None else self._turns[self._at].slot

    @property
    def finished(self) -> bool:
        """Whether ``Finish`` has been given out."""
        return self._at == len(self._turns) - 1

    def start(self) -> tuple[Command, ...]:
        """Begin a pass and return its first commands. One that did not end is forgotten."""
        self._at = 0
        return self._turns[0].commands

    def handle(self, event: Event) -> tuple[Command, ...]:
        """Take the end of the last command given out and return the next commands.

        Raises:
            RunError: if ``event`` is not that end.
        """
        at = self._at
        end = None if at is None else self._turns[at].end
        if at is None or (event is not end and event != end):
            msg = f"slot {self.slot}: expected {self._awaited()}, got {event}"
            raise RunError(msg)
        self._at = at + 1
        return self._turns[at + 1].commands

    def _awaited(self) -> str:
        if self._at is None:
            return "start"
        return str(self._turns[self._at].end or "no event, the row is finished")


def _turns(row: tuple[Instruction, ...]) -> Iterator[_Turn]:
    """Cut the row after every instruction that takes time."""
    posts = _Posts(i for i in row if isinstance(i, Recv))
    commands: list[Command] = list(posts.first())
    for slot, instruction in enumerate(row):
        command, end = _carry_out(instruction)
        commands.append(command)
        if end is not None:
            yield _Turn(tuple(commands), slot, end)
            commands = list(posts.after(instruction))
    yield _Turn((*commands, Finish()), len(row), None)


def _carry_out(instruction: Instruction) -> tuple[Command, Event | None]:
    """The command for an instruction and the event that ends it; None if it does not wait."""
    match instruction:
        case Send():
            return Transmit(instruction, Transit.of(instruction)), None
        case Recv(message=message):
            received = Received(message)
            return Await(instruction, Transit.of(instruction), received), received
        case Compute(action=action) | Recompute(action=action):
            ran = Ran(action)
            return Run(instruction, ran), ran
        case ReduceGrads():
            return Reduce(), Reduced()
        case _:
            assert_never(instruction)


class _Posts:
    """Receives not yet posted, by peer."""

    def __init__(self, receives: Iterable[Recv]) -> None:
        self._left: dict[int, deque[Recv]] = defaultdict(deque)
        for recv in receives:
            self._left[recv.peer].append(recv)

    def first(self) -> Iterator[Post]:
        """The receives to post before anything else."""
        for left in self._left.values():
            for _ in range(min(MAX_POSTED, len(left))):
                yield _post(left.popleft())

    def after(self, done: Instruction) -> Iterator[Post]:
        """The receive to post now that ``done`` is: the next of the same peer, if it was one."""
        if isinstance(done, Recv) and (left := self._left[done.peer]):
            yield _post(left.popleft())


def _post(recv: Recv) -> Post:
    return Post(recv, Transit.of(recv))
