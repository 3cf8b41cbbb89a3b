"""Sends and receives between ranks.

A send comes directly after the compute that makes its message, a receive directly before the
compute that needs it. 1F1B of two ranks and two micro-batches::

    rank 0: 0F0 send:0F0>1@1 0F1 send:0F1>1@1 recv:1B0>0@1 0B0 recv:1B1>0@1 0B1
    rank 1: recv:0F0>1@0 1F0 1B0 send:1B0>0@0 recv:0F1>1@0 1F1 1B1 send:1B1>0@0

Stages of one rank hand values over in place. Of two actions that overlap, both have received before
the first begins, and both send after the second::

    rank 0: recv:1B0>0@1 0F1& 0B0 send:0F1>1@1

[Note: hoisted receives] Messages of one directed pair of ranks arrive in the order they were
sent. If a rank needs a later one first, it receives the earlier ones before it. That costs no
time: an earlier message has arrived when a later one has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intandem.ir import ActionKind, Compute, Message, Program, Recv, Send

if TYPE_CHECKING:
    from intandem.ir import Action, Instruction, Schedule, StageLinks


def add_transfers(schedule: Schedule, links: StageLinks) -> Program:
    """Lower a valid ``schedule`` to a program that moves every message of ``links``.

    Each rank's row keeps its computes in the schedule's order.
    """
    routes = _routes(schedule, links)
    sending = [_with_sends(rank, schedule, routes) for rank in range(schedule.num_ranks)]
    rows = tuple(_with_receives(row, routes) for row in sending)
    return Program(schedule.name, schedule.placement, schedule.num_microbatches, links, rows)


_FORWARD = (ActionKind.F,)
_BACKWARD = (ActionKind.B, ActionKind.I)


@dataclass(slots=True)
class _Edge:
    """One directed pair of ranks.

    Attributes:
        sent: receives that match its sends, in the order of the sends.
        place: position in ``sent`` of (link, micro-batch), written as one number.
        num_received: how many of ``sent`` the receiver has taken so far.
    """

    sent: list[Recv] = field(default_factory=list)
    place: dict[int, int] = field(default_factory=dict)
    num_received: int = 0


@dataclass(frozen=True, slots=True)
class _Routes:
    """Where an action's messages go to and come from.

    Attributes:
        replica_of: per micro-batch, the replica it passes through.
        to: per kind, stage and replica of an action, (target stage, its rank, edge, key) of each
            message.
        of: per kind, stage and replica of an action, (edge, key) of each message that it needs.
    """

    replica_of: tuple[int, ...]
    to: dict[tuple[ActionKind, int, int], list[tuple[int, int, _Edge, int]]]
    of: dict[tuple[ActionKind, int, int], list[tuple[_Edge, int]]]


def _routes(schedule: Schedule, links: StageLinks) -> _Routes:
    """Keys are link * num_microbatches; the micro-batch is added for each message."""
    placement, count = schedule.placement, schedule.num_microbatches
    edges: dict[tuple[int, int], _Edge] = {}
    routes = _Routes(tuple(placement.replica_of(mb, count) for mb in range(count)), {}, {})
    num_forward = len(links.activations)
    for link, (source, target) in enumerate((*links.activations, *links.gradients)):
        kinds = _FORWARD if link < num_forward else _BACKWARD
        for replica, rank_of in enumerate(placement.rows):
            if rank_of[source] == rank_of[target]:
                continue
            edge = edges.setdefault((rank_of[source], rank_of[target]), _Edge())
            way = (target, rank_of[target], edge, link * count)
            for kind in kinds:
                routes.to.setdefault((kind, source, replica), []).append(way)
                routes.of.setdefault((kind, target, replica), []).append((edge, link * count))
    return routes


def _with_sends(rank: int, schedule: Schedule, routes: _Routes) -> list[Compute | Send]:
    out: list[Compute | Send] = []
    held_back: list[Compute | Send] = []
    for slot, action in enumerate(schedule.actions[rank]):
        overlaps = (rank, slot) in schedule.overlaps
        out.append(Compute(action, overlaps))
        sends = held_back if overlaps else out
        if not overlaps and held_back:
            out += held_back
            held_back.clear()
        where = (action.kind, action.stage, routes.replica_of[action.microbatch])
        for target, peer, edge, key in routes.to.get(where, ()):
            message = Message(action, target)
            sends.append(Send(message, peer))
            edge.place[key + action.microbatch] = len(edge.sent)
            edge.sent.append(Recv(message, rank))
    return out


def _with_receives(row: list[Compute | Send], routes: _Routes) -> tuple[Instruction, ...]:
    out: list[Instruction] = []
    for slot, instruction in enumerate(row):
        if isinstance(instruction, Compute):
            out += _receives(instruction.action, routes)
            if instruction.overlaps and isinstance(second := row[slot + 1], Compute):
                out += _receives(second.action, routes)
        out.append(instruction)
    return tuple(out)


def _receives(action: Action, routes: _Routes) -> list[Recv]:
    """Return what is still to be received before ``action``; see [Note: hoisted receives]."""
    out: list[Recv] = []
    where = (action.kind, action.stage, routes.replica_of[action.microbatch])
    for edge, key in routes.of.get(where, ()):
        num_needed = edge.place[key + action.microbatch] + 1
        if num_needed > edge.num_received:
            out += edge.sent[edge.num_received : num_needed]
            edge.num_received = num_needed
    return out
