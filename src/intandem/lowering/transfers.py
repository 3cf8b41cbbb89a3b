"""Sends and receives between ranks.

A send comes directly after the compute that makes its message, a receive directly before the
compute that needs it. 1F1B of two ranks and two micro-batches::

    rank 0: 0F0 send:0F0>1@1 0F1 send:0F1>1@1 recv:1B0>0@1 0B0 recv:1B1>0@1 0B1
    rank 1: recv:0F0>1@0 1F0 1B0 send:1B0>0@0 recv:0F1>1@0 1F1 1B1 send:1B1>0@0

Stages of one rank hand values over in place.

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
    sending = [_with_sends(rank, row, routes) for rank, row in enumerate(schedule.actions)]
    rows = tuple(_with_receives(row, routes) for row in sending)
    return Program(schedule.name, schedule.placement, schedule.num_microbatches, links, rows)


_FORWARD = (ActionKind.F,)
_BACKWARD = (ActionKind.B, ActionKind.I)


@dataclass(slots=True)
class _Edge:
    """One directed pair of ranks.

    Attributes:
        sent: receives that match its sends, in the order of the sends.
        place: position in ``sent`` of (is it activations, source stage, target stage,
            micro-batch), written as one number.
        num_received: how many of ``sent`` the receiver has taken so far.
    """

    sent: list[Recv] = field(default_factory=list)
    place: dict[int, int] = field(default_factory=dict)
    num_received: int = 0


@dataclass(frozen=True, slots=True)
class _Routes:
    """Where an action's messages go to and come from.

    Attributes:
        to: per kind and stage of an action, (target stage, its rank, edge, key) of each message.
        of: per kind and stage of an action, (edge, key) of each message that it needs.
    """

    to: dict[tuple[ActionKind, int], list[tuple[int, int, _Edge, int]]]
    of: dict[tuple[ActionKind, int], list[tuple[_Edge, int]]]


def _routes(schedule: Schedule, links: StageLinks) -> _Routes:
    """Keys are link * num_microbatches; the micro-batch is added for each message."""
    rank_of = schedule.placement.rank_of
    edges: dict[tuple[int, int], _Edge] = {}
    routes = _Routes({}, {})
    num_forward = len(links.activations)
    for link, (source, target) in enumerate((*links.activations, *links.gradients)):
        kinds = _FORWARD if link < num_forward else _BACKWARD
        if rank_of[source] == rank_of[target]:
            continue
        edge = edges.setdefault((rank_of[source], rank_of[target]), _Edge())
        key = link * schedule.num_microbatches
        for kind in kinds:
            routes.to.setdefault((kind, source), []).append((target, rank_of[target], edge, key))
            routes.of.setdefault((kind, target), []).append((edge, key))
    return routes


def _with_sends(rank: int, row: tuple[Action, ...], routes: _Routes) -> list[Compute | Send]:
    out: list[Compute | Send] = []
    for action in row:
        out.append(Compute(action))
        for target, peer, edge, key in routes.to.get((action.kind, action.stage), ()):
            message = Message(action, target)
            out.append(Send(message, peer))
            edge.place[key + action.microbatch] = len(edge.sent)
            edge.sent.append(Recv(message, rank))
    return out


def _with_receives(row: list[Compute | Send], routes: _Routes) -> tuple[Instruction, ...]:
    out: list[Instruction] = []
    for instruction in row:
        if isinstance(instruction, Compute):
            action = instruction.action
            for edge, key in routes.of.get((action.kind, action.stage), ()):
                num_needed = edge.place[key + action.microbatch] + 1
                if num_needed > edge.num_received:  # see [Note: hoisted receives]
                    out += edge.sent[edge.num_received : num_needed]
                    edge.num_received = num_needed
        out.append(instruction)
    return tuple(out)
