"""Does what the interpreter says: computes, hands over and waits, for one rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from intandem.errors import ActionError, PeerFailureError
from intandem.ir import Compute, Recompute, Recv, ReduceGrads, Send
from intandem.runtime.interpreter import (
    Await,
    Command,
    Event,
    Finish,
    Interpreter,
    Post,
    Ran,
    Received,
    Reduce,
    Reduced,
    Run,
    Transmit,
)
from intandem.runtime.passes import Pass
from intandem.runtime.watch import Position
from intandem.runtime.work import Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.ir import Instruction, Program
    from intandem.runtime.tied import TiedGradients
    from intandem.runtime.transport.protocol import Transport
    from intandem.runtime.watch import Watch
    from intandem.runtime.weights import Weights
    from intandem.runtime.work import RankResult, StepWork


class Executor:
    """One rank's thread of work.

    Args:
        rank: this rank.
        transport: its end of the transport.
        watch: is told where this rank is, and that it failed.
        weights: the model's parameters and buffers.
        tied: adds up gradients that are held in several parts.
    """

    def __init__(
        self,
        rank: int,
        transport: Transport,
        watch: Watch,
        weights: Weights,
        tied: TiedGradients,
    ) -> None:
        self._rank = rank
        self._transport = transport
        self._watch = watch
        self._weights = weights
        self._tied = tied
        self._rows: dict[int, _Row] = {}

    def execute(self, work: StepWork) -> RankResult:
        """Run this rank's row of ``work.program``.

        Raises:
            ActionError: if an instruction raised; the watch is told first.
            PeerFailureError: if another rank failed.
        """
        if work.mode is Mode.TRAIN:
            self._tied.begin(self._rank)
        run = Pass(self._rank, self._transport, self._weights, work)
        row = self._row(work.program)
        interpreter, places = row.interpreter, row.places
        try:
            commands = interpreter.start()
            while not interpreter.finished:
                self._watch.at(places[interpreter.slot].at(work.step))
                event = self._perform(commands, run, work)
                if event is not None:
                    commands = interpreter.handle(event)
            self._perform(commands, run, work)
            run.finish()
            self._watch.at(places[-1].at(work.step))
        except PeerFailureError:
            raise
        except Exception as error:
            self._watch.fail(error)
            position = places[interpreter.slot].at(work.step)
            msg = f"rank {self._rank} raised {type(error).__name__}: {error} at {position}"
            raise ActionError(msg) from error
        return run.result

    def _row(self, program: Program) -> _Row:
        if id(program) not in self._rows:
            self._rows[id(program)] = _Row.of(program, self._rank)
        return self._rows[id(program)]

    def _perform(self, commands: Sequence[Command], run: Pass, work: StepWork) -> Event | None:
        event: Event | None = None
        for command in commands:
            match command:
                case Post(recv=recv):
                    run.post(recv.message, recv.peer)
                case Transmit(send=send):
                    run.transmit(send.message, send.peer)
                case Await(recv=recv):
                    run.receive(recv.message, recv.peer)
                    event = Received(recv.message)
                case Run(instruction=instruction):
                    run.compute(instruction)
                    event = Ran(instruction.action)
                case Reduce():
                    self._tied.reduce(self._rank, self._transport, work.sequence)
                    event = Reduced()
                case Finish():
                    pass
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
        end = _Place(len(row), None, None, "none (between steps)")
        return cls(program, Interpreter(row), (*places, end))
