"""The part of the program rules that is about messages: P001 to P006."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.errors import Diagnostic
from intandem.ir import Action, ActionKind, Compute, Message, Program, Recv, Send
from intandem.ir.codes import KIND_INDEX, ActionCodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.ir import Placement, StageLinks

F, B, I = ActionKind.F, ActionKind.B, ActionKind.I  # noqa: E741  (the field's letters)


def check_links(placement: Placement, links: StageLinks) -> tuple[Diagnostic, ...]:
    """P001. A link has no rank: its finding is put on the rank of its source, or on 0."""
    return tuple(sorted(_broken_links(placement.rank_of, links), key=lambda d: d.rank))


def _broken_links(rank_of: tuple[int, ...], links: StageLinks) -> Iterator[Diagnostic]:
    kinds = (("activations", links.activations), ("gradients", links.gradients))
    for name, pairs in kinds:
        seen = set()
        for source, target in pairs:
            what = f"{name} link {source}>{target}"
            rank = rank_of[source] if 0 <= source < len(rank_of) else 0
            if not (0 <= source < len(rank_of) and 0 <= target < len(rank_of)):
                yield Diagnostic("P001", rank, None, f"{what}: stages end at {len(rank_of) - 1}")
            elif source == target or (source < target) != (name == "activations"):
                way = "down" if name == "activations" else "back up"
                yield Diagnostic("P001", rank, None, f"{what} does not lead {way} the pipeline")
            if (source, target) in seen:
                yield Diagnostic("P001", rank, None, f"{what} is listed twice")
            seen.add((source, target))


def check_messages(program: Program) -> list[Diagnostic]:
    """P002 to P006 of a program whose compute actions and links are clean."""
    ledger = _Ledger(program)
    for rank in range(program.num_ranks):
        ledger.enter(rank)
    found = [*ledger.findings, *ledger.uncounted(), *ledger.unmade()]
    found = found or list(ledger.reordered())
    return found or list(ledger.deadlocked())


class _Ledger:
    """Who sends and receives what.

    Messages are numbers: lane * num_microbatches + microbatch. A lane is a link in one replica,
    where its two stages are on different ranks.
    """

    def __init__(self, program: Program) -> None:
        placement, links = program.placement, program.links
        self.findings: list[Diagnostic] = []
        self._program = program
        self._codes = ActionCodes(placement.num_stages, program.num_microbatches)
        count = program.num_microbatches
        self._replica_of = [placement.replica_of(mb, count) for mb in range(count)]
        self._lanes = [
            (forward, s, t, replica)
            for forward, pairs in ((True, links.activations), (False, links.gradients))
            for s, t in pairs
            for replica, rank_of in enumerate(placement.rows)
            if rank_of[s] != rank_of[t]
        ]
        self._lane_of = {facts: lane for lane, facts in enumerate(self._lanes)}
        num_messages = len(self._lanes) * program.num_microbatches
        self._num_sends = [0] * num_messages
        self._num_recvs = [0] * num_messages
        self._sent_kind = bytearray(num_messages)
        self._received_kind = bytearray(num_messages)
        rows = placement.rows
        self._edges = [(rows[r][s], rows[r][t]) for _, s, t, r in self._lanes]
        """Of each lane: its directed pair of ranks."""
        self._sent: dict[tuple[int, int], list[int]] = {edge: [] for edge in self._edges}
        self._received: dict[tuple[int, int], list[int]] = {edge: [] for edge in self._edges}
        """Messages of each directed pair of ranks, in order."""
        self._done = bytearray(self._codes.num_codes)
        self._start = {
            kind: [self._codes.of_stage(s, kind) for s in range(placement.num_stages)]
            for kind in ActionKind
        }
        """Code of micro-batch 0, per kind and stage."""
        self._rows: list[list[tuple[int, bool, int]]] = []
        """Per rank, each transfer's (slot, is it a send, message)."""

    def enter(self, rank: int) -> None:
        """Walk through one rank's row: counts, peers, and order against its own computes."""
        row: list[tuple[int, bool, int]] = []
        done, start = self._done, self._start
        for slot, instruction in enumerate(self._program.instructions[rank]):
            if isinstance(instruction, Compute):
                a = instruction.action
                done[start[a.kind][a.stage] + a.microbatch] = 1
            elif isinstance(instruction, (Send, Recv)):
                message = self._number(instruction.message)
                if message is None:
                    text = f"{instruction} is of no link between two ranks"
                    self.findings.append(Diagnostic("P002", rank, slot, text))
                else:
                    self._enter_transfer(rank, slot, instruction, message)
                    row.append((slot, isinstance(instruction, Send), message))
        self._rows.append(row)

    def _number(self, message: Message) -> int | None:
        """The message's number, or None if no link asks for it."""
        a = message.source
        count = self._codes.num_microbatches
        if a.kind is ActionKind.W or not 0 <= a.microbatch < count:
            return None
        replica = self._replica_of[a.microbatch]
        lane = self._lane_of.get((a.kind is F, a.stage, message.target_stage, replica))
        return None if lane is None else lane * count + a.microbatch

    def _enter_transfer(self, rank: int, slot: int, transfer: Send | Recv, number: int) -> None:
        message = transfer.message
        source = message.source
        edge = self._edges[number // self._codes.num_microbatches]
        if type(transfer) is Send:
            self._num_sends[number] += 1
            self._sent_kind[number] = KIND_INDEX[source.kind]
            self._sent[edge].append(number)
            place, peer = edge
        else:
            self._num_recvs[number] += 1
            self._received_kind[number] = KIND_INDEX[source.kind]
            self._received[edge].append(number)
            peer, place = edge
        if rank != place or transfer.peer != peer:
            text = f"{transfer} belongs on rank {place} with peer {peer}"
            self.findings.append(Diagnostic("P003", rank, slot, text))
        elif type(transfer) is Send:
            if not self._is_done(source):
                text = f"{transfer} comes before {source}; expected it after"
                self.findings.append(Diagnostic("P004", rank, slot, text))
        elif (consumer := self._consumed(message)) is not None:
            text = f"{transfer} comes after {consumer}, which needs it"
            self.findings.append(Diagnostic("P004", rank, slot, text))

    def _is_done(self, action: Action) -> bool:
        return bool(self._done[self._start[action.kind][action.stage] + action.microbatch])

    def _consumed(self, message: Message) -> Action | None:
        """The action that needs ``message``, if it has run."""
        stage, mb = message.target_stage, message.source.microbatch
        for kind in (F,) if message.source.kind is F else (B, I):
            if self._done[self._start[kind][stage] + mb]:
                return Action(stage, kind, mb)
        return None

    def uncounted(self) -> Iterator[Diagnostic]:
        """P002: messages that are not sent once and received once."""
        for number, (sends, recvs) in enumerate(zip(self._num_sends, self._num_recvs, strict=True)):
            if sends == recvs == 1:
                continue
            lane, mb = divmod(number, self._codes.num_microbatches)
            forward, source, target, replica = self._lanes[lane]
            if replica != self._replica_of[mb]:
                continue
            source_rank, target_rank = self._edge(number)
            kind = F if forward else B if self._is_done(Action(source, B, mb)) else I
            what = Message(Action(source, kind, mb), target)
            if sends != 1:
                text = f"{what} is sent {_times(sends)}; expected once"
                yield Diagnostic("P002", source_rank, None, text)
            if recvs != 1:
                text = f"{what} is received {_times(recvs)}; expected once"
                yield Diagnostic("P002", target_rank, None, text)

    def unmade(self) -> Iterator[Diagnostic]:
        """P002: receives that name an action which no rank does, such as B where there is I."""
        if self._sent_kind == self._received_kind:
            return
        for rank, row in enumerate(self._program.instructions):
            for slot, i in enumerate(row):
                if (
                    isinstance(i, Recv)
                    and self._number(i.message) is not None
                    and not self._is_done(i.message.source)
                ):
                    text = f"{i} is of {i.message.source}, which no rank does"
                    yield Diagnostic("P002", rank, slot, text)

    def reordered(self) -> Iterator[Diagnostic]:
        """P005: the first receive of each directed pair of ranks that is out of order."""
        for (source, target), received in self._received.items():
            sent = self._sent[source, target]
            if received != sent:
                pairs = zip(sent, received, strict=True)
                wanted, got = next((w, g) for w, g in pairs if w != g)
                slot = self._slot(target, got)
                want = self._at(source, self._slot(source, wanted))
                text = f"{self._at(target, slot)} is in the place of {want} on rank {source}"
                yield Diagnostic("P005", target, slot, text)

    def _slot(self, rank: int, number: int) -> int:
        """Slot at which ``rank`` sends or receives a message."""
        return next(slot for slot, _, found in self._rows[rank] if found == number)

    def _edge(self, number: int) -> tuple[int, int]:
        return self._edges[number // self._codes.num_microbatches]

    def _at(self, rank: int, slot: int) -> str:
        return str(self._program.instructions[rank][slot])

    def deadlocked(self) -> Iterator[Diagnostic]:
        """P006, by the rendezvous rule: see [Note: rendezvous] in ``program_rules``."""
        next_transfer = self._run()
        for rank, row in enumerate(self._rows):
            if (position := next_transfer[rank]) < len(row):
                slot, _, number = row[position]
                peer = self._edge(number)[0]
                peer_slot = self._rows[peer][next_transfer[peer]][0]
                stands = f"rank {peer} stands at slot {peer_slot}, {self._at(peer, peer_slot)}"
                text = f"{self._at(rank, slot)} waits forever: {stands}"
                yield Diagnostic("P006", rank, slot, text)

    def _run(self) -> list[int]:
        """Run each rank as far as it goes; return the position of its next transfer."""
        sent = bytearray(len(self._num_sends))
        next_transfer = [0] * len(self._rows)
        waiting: dict[int, int] = {}
        ready = list(range(len(self._rows)))
        while ready:
            rank = ready.pop()
            row, position = self._rows[rank], next_transfer[rank]
            while position < len(row):
                _, is_send, number = row[position]
                if is_send:
                    sent[number] = 1
                    if number in waiting:
                        ready.append(waiting.pop(number))
                elif not sent[number]:
                    waiting[number] = rank
                    break
                position += 1
            next_transfer[rank] = position
        return next_transfer


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")
