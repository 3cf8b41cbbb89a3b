"""Takes a rank through its row of a program: asks the interpreter, has done what it says.

What doing means is the caller's: a training pass computes (``passes``), a rehearsal waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, assert_never

from intandem.errors import ActionError, PeerFailureError
from intandem.ir import Compute, Recompute, Recv, ReduceGrads, Send
from intandem.runtime.interpreter import (
    Await,
    Command,
    Event,
    Finish,
    Interpreter,
    Post,
    Reduce,
    Reduced,
    Run,
    Transmit,
)
from intandem.runtime.watch import BETWEEN_STEPS, Position

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intandem.ir import Instruction, Program
    from intandem.runtime.interpreter import Transit
    from intandem.runtime.watch import Watch


class Acts(Protocol):
    """Does, for one rank and one pass, what the instructions of its row say."""

    def post(self, transit: Transit) -> None:
        """Make ready to receive."""
        ...

    def transmit(self, transit: Transit) -> None:
        """Send what an action left."""
        ...

    def receive(self, transit: Transit) -> None:
        """Wait for a message."""
        ...

    def compute(self, instruction: Compute | Recompute) -> None:
        """Run one action."""
        ...

    def finish(self) -> None:
        """The row is at its end: make sure of what was taken on trust."""
        ...


class RowExecutor:
    """One rank's thread of work.

    Args:
        rank: this rank.
        watch: is told where this rank is, and that it failed.
    """

    def __init__(self, rank: int, watch: Watch) -> None:
        self._rank = rank
        self._watch = watch
        self._rows: dict[int, _Row] = {}

    def execute(self, acts: Acts, program: Program, step: int, reduce: Callable[[], None]) -> None:
        """Run this rank's row of ``program``.

        Args:
            acts: does it.
            program: what all ranks execute.
            step: number of the step, to be named in errors.
            reduce: adds up gradients held on several ranks.

        Raises:
            ActionError: if an instruction raised; the watch is told first.
            PeerFailureError: if another rank failed.
        """
        row = self._row(program)
        interpreter, places, at = row.interpreter, row.places, self._watch.at
        try:
            commands = interpreter.start()
            while not interpreter.finished:
                at(places[interpreter.slot].at(step))
                event = _perform(commands, acts, reduce)
                if event is not None:
                    commands = interpreter.handle(event)
            _perform(commands, acts, reduce)
            at(places[-1].at(step))
        except PeerFailureError:
            raise
        except Exception as error:
            self._watch.fail(error)
            position = places[interpreter.slot].at(step)
            msg = f"rank {self._rank} raised {type(error).__name__}: {error} at {position}"
            raise ActionError(msg) from error

    def _row(self, program: Program) -> _Row:
        if id(program) not in self._rows:
            self._rows[id(program)] = _Row.of(program, self._rank)
        return self._rows[id(program)]


def _perform(commands: Sequence[Command], acts: Acts, reduce: Callable[[], None]) -> Event | None:
    event: Event | None = None
    for command in commands:
        match command:
            case Post():
                acts.post(command.transit)
            case Transmit():
                acts.transmit(command.transit)
            case Await():
                acts.receive(command.transit)
                event = command.end
            case Run():
                acts.compute(command.instruction)
                event = command.end
            case Reduce():
                reduce()
                event = Reduced()
            case Finish():
                acts.finish()
            case _:
                assert_never(command)
    return event


@dataclass(frozen=True, slots=True)
class _Place:
    """An instruction, said in words once: where it is and what it does."""

    slot: int
    stage: int | None
    microbatch: int | None
    doing: str

    def at(self, step: int) -> Position:
        return Position(step, self.slot, self.stage, self.microbatch, self.doing)


def _place(slot: int, instruction: Instruction) -> _Place:
    match instruction:
        case Compute(action=action) | Recompute(action=action):
            return _Place(slot, action.stage, action.microbatch, str(instruction))
        case Send(message=message):
            source = message.source
            return _Place(slot, source.stage, source.microbatch, str(instruction))
        case Recv(message=message):
            microbatch = message.source.microbatch
            return _Place(slot, message.target_stage, microbatch, str(instruction))
        case ReduceGrads():
            return _Place(slot, None, None, str(instruction))


@dataclass(frozen=True, slots=True)
class _Row:
    """One rank's row of a program, prepared."""

    program: Program
    interpreter: Interpreter
    places: tuple[_Place, ...]

    @classmethod
    def of(cls, program: Program, rank: int) -> _Row:
        row = program.instructions[rank]
        places = [_place(slot, instruction) for slot, instruction in enumerate(row)]
        end = _Place(len(row), None, None, BETWEEN_STEPS)
        return cls(program, Interpreter(row), (*places, end))
