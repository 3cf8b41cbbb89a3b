"""One rank's row, executed: by hand, then by P interpreters under random interleavings."""

import random
from collections import defaultdict, deque

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from intandem.errors import RunError, ScheduleError
from intandem.ir import Action, Compute, Message, Recompute, Recv, ReduceGrads, Send
from intandem.lowering import lower
from intandem.runtime.interpreter import (
    MAX_POSTED,
    Await,
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
from intandem.schedules import build_schedule, schedule_names


def instruction(text):
    """Read the text of an instruction."""
    if text == "reduce":
        return ReduceGrads()
    verb, _, rest = text.rpartition(":")
    if verb == "recompute":
        return Recompute(Action.parse(rest))
    if verb:
        message, peer = rest.split("@")
        source, target = message.split(">")
        kind = {"send": Send, "recv": Recv}[verb]
        return kind(Message(Action.parse(source), int(target)), int(peer))
    return Compute(Action.parse(rest))


def row(text):
    return tuple(map(instruction, text.split()))


def show(commands):
    """Write commands as the module's docstring does."""
    return ", ".join(map(_show_one, commands))


def _show_one(command):
    match command:
        case Post(recv):
            return f"post {recv.message}"
        case Await(recv):
            return f"await {recv.message}"
        case Run(what):
            return f"run {what}"
        case Transmit(send):
            return f"transmit {send.message}"
        case Reduce():
            return "reduce"
        case Finish():
            return "finish"


def received(text):
    source, target = text.split(">")
    return Received(Message(Action.parse(source), int(target)))


def ran(text):
    return Ran(Action.parse(text))


LAST_OF_TWO = row(
    "recv:0F0>1@0 1F0 recv:0F1>1@0 1B0 send:1B0>0@0 recv:0F2>1@0 1F1 1B1 send:1B1>0@0 "
    "recompute:1F2 reduce"
)


def test_row_of_the_last_rank():
    """Receives are posted two ahead, sends are given out on the way, every end has its turn."""
    it = Interpreter(LAST_OF_TWO)

    said = [show(it.start())]
    for event in (
        received("0F0>1"),
        ran("1F0"),
        received("0F1>1"),
        ran("1B0"),
        received("0F2>1"),
        ran("1F1"),
        ran("1B1"),
        ran("1F2"),
        Reduced(),
    ):
        assert not it.finished
        said.append(show(it.handle(event)))

    assert said == [
        "post 0F0>1, post 0F1>1, await 0F0>1",
        "post 0F2>1, run 1F0",
        "await 0F1>1",
        "run 1B0",
        "transmit 1B0>0, await 0F2>1",
        "run 1F1",
        "run 1B1",
        "transmit 1B1>0, run recompute:1F2",
        "reduce",
        "finish",
    ]
    assert it.finished


def test_each_peer_has_its_own_window():
    """Two receives per peer are outstanding, not two in all."""
    it = Interpreter(row("recv:0F0>1@0 recv:2B0>1@2 recv:0F1>1@0 recv:0F2>1@0"))

    assert show(it.start()) == "post 0F0>1, post 0F1>1, post 2B0>1, await 0F0>1"
    assert show(it.handle(received("0F0>1"))) == "post 0F2>1, await 2B0>1"
    assert show(it.handle(received("2B0>1"))) == "await 0F1>1"


def test_slot_is_that_of_the_awaited_instruction():
    """Sends are passed; at the end the slot is the length of the row."""
    it = Interpreter(row("0F0 send:0F0>1@1 0F1 send:0F1>1@1"))
    assert it.slot == 0

    it.start()
    assert it.slot == 0
    it.handle(ran("0F0"))
    assert it.slot == 2
    it.handle(ran("0F1"))
    assert (it.slot, it.finished) == (4, True)


def test_empty_row_finishes_at_once():
    """A rank may have nothing to do."""
    it = Interpreter(())

    assert show(it.start()) == "finish"
    assert it.finished


def test_serves_one_step_after_another():
    """The same object begins again, also after a pass that failed half-way."""
    it = Interpreter(row("0F0 0F1"))
    it.start()
    it.handle(ran("0F0"))

    assert show(it.start()) == "run 0F0"
    it.handle(ran("0F0"))
    it.handle(ran("0F1"))
    assert show(it.start()) == "run 0F0"
    assert not it.finished


@pytest.mark.parametrize(
    ("text", "event", "message"),
    [
        ("0F0", ran("0F1"), "slot 0: expected ran 0F0, got ran 0F1"),
        ("0F0", Reduced(), "slot 0: expected ran 0F0, got reduced"),
        ("recv:0F0>1@0", ran("0F0"), "slot 0: expected received 0F0>1, got ran 0F0"),
        ("recv:0F0>1@0", received("0F0>2"), "expected received 0F0>1, got received 0F0>2"),
        ("reduce", ran("0F0"), "slot 0: expected reduced, got ran 0F0"),
        ("", ran("0F0"), "slot 0: expected no event, the row is finished, got ran 0F0"),
    ],
)
def test_event_out_of_turn_is_refused(text, event, message):
    """It says where, what was expected and what came; the state stays as it was."""
    it = Interpreter(row(text))
    it.start()

    for _ in range(2):
        with pytest.raises(RunError, match=message):
            it.handle(event)


def test_event_before_start_is_refused():
    """Nothing happens before the first command."""
    with pytest.raises(RunError, match="slot 0: expected start, got ran 0F0"):
        Interpreter(row("0F0")).handle(ran("0F0"))


class Simulation:
    """P interpreters on one thread with FIFO channels; ``seed`` decides who moves when."""

    def __init__(self, rows, seed):
        self.random = random.Random(seed)
        self.channels = defaultdict(deque)
        self.posted = defaultdict(deque)
        self.executed = [[] for _ in rows]
        self.ranks = [Interpreter(r) for r in rows]
        self.pending = {}
        self.rows = rows

    def run(self):
        for rank, it in enumerate(self.ranks):
            self.perform(rank, it.start())
        while ready := [rank for rank in self.pending if self.event(rank) is not None]:
            rank = self.random.choice(ready)
            event = self.event(rank)
            if isinstance(event, Received):
                peer = self.pending[rank].recv.peer
                self.channels[peer, rank].popleft()
                self.posted[peer, rank].popleft()
            self.perform(rank, self.ranks[rank].handle(event))

    def event(self, rank):
        """The event that would end the rank's last command, if it can end now."""
        match self.pending[rank]:
            case Await(recv):
                arrived = self.channels[recv.peer, rank]
                return Received(arrived[0]) if arrived else None
            case Run(what):
                return Ran(what.action)
            case Reduce():
                return Reduced()

    def perform(self, rank, commands):
        """Do all but wait for the last one."""
        *_, self.pending[rank] = commands
        for command in commands:
            match command:
                case Post(recv):
                    self.posted[recv.peer, rank].append(recv)
                    assert len(self.posted[recv.peer, rank]) <= MAX_POSTED
                case Transmit(send):
                    self.channels[rank, send.peer].append(send.message)
                    self.executed[rank].append(send)
                case Await(recv):
                    assert self.posted[recv.peer, rank][0] == recv
                    self.executed[rank].append(recv)
                case Run(what):
                    self.executed[rank].append(what)
                case Reduce():
                    self.executed[rank].append(ReduceGrads())
                case Finish():
                    del self.pending[rank]


@st.composite
def programs(draw):
    """Rows that cannot deadlock: cut from one global order of work and transfers."""
    num_ranks = draw(st.integers(1, 5))
    rows = [[] for _ in range(num_ranks)]
    for index in range(draw(st.integers(0, 40))):
        kind = draw(st.sampled_from(["F", "B", "I", "W", "recompute", "reduce", "message"]))
        source, target = (draw(st.integers(0, num_ranks - 1)) for _ in range(2))
        if kind == "message" and source != target:
            message = Message(Action.parse(f"{source}F{index}"), target)
            rows[source].append(Send(message, target))
            rows[target].append(Recv(message, source))
        elif kind == "reduce":
            rows[source].append(ReduceGrads())
        elif kind == "recompute":
            rows[source].append(Recompute(Action.parse(f"{source}F{index}")))
        elif kind != "message":
            rows[source].append(Compute(Action.parse(f"{source}{kind}{index}")))
    return tuple(map(tuple, rows))


@given(programs(), st.integers(0, 2**32))
def test_every_interleaving_executes_the_rows(rows, seed):
    """All ranks finish; each does its row in order, never more than two posts per edge."""
    simulation = Simulation(rows, seed)

    simulation.run()

    assert all(it.finished for it in simulation.ranks)
    assert tuple(map(tuple, simulation.executed)) == rows


@given(
    st.sampled_from(schedule_names()),
    st.integers(1, 6),
    st.integers(1, 12),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_every_interleaving_executes_a_lowered_schedule(name, num_ranks, num_mb, recompute, seed):
    """The same for what the schedules of the library become, with and without recomputation."""
    try:
        schedule = build_schedule(name, num_ranks=num_ranks, num_microbatches=num_mb)
    except ScheduleError:  # not for these numbers
        reject()
    again = frozenset(range(schedule.num_stages)) if recompute else frozenset()
    program = lower(schedule, recompute=again, reduce=True)
    simulation = Simulation(program.instructions, seed)

    simulation.run()

    assert all(it.finished for it in simulation.ranks)
    assert tuple(map(tuple, simulation.executed)) == program.instructions
