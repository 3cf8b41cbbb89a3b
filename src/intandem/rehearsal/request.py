"""What ranks are to rehearse and what they bring back, and how processes tell each other (JSON)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

from intandem.costs import CostModel, costs_from_json
from intandem.ir import Action, Program, Span, format_program, parse_program
from intandem.rehearsal.emulation import Emulated, Traffic
from intandem.rehearsal.links import Transfer, sizes_between

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.rehearsal.links import Pair

NUM_WARMUP = 2
"""Steps that are run before those that count."""


@dataclass(frozen=True, slots=True)
class Part:
    """A program and the costs that its ranks emulate.

    Attributes:
        program: what all ranks execute.
        costs: of as many stages. Durations and bytes count; links are measured.
    """

    program: Program
    costs: CostModel


@dataclass(frozen=True, slots=True)
class Request:
    """What all ranks do, one part after another.

    Attributes:
        parts: of one number of ranks.
        num_steps: of each part, those that count.
        overlap: whether each part is run once more, without a barrier between its steps.
    """

    parts: tuple[Part, ...]
    num_steps: int
    overlap: bool = False

    @property
    def num_ranks(self) -> int:
        """Ranks of every part."""
        return self.parts[0].program.num_ranks

    @property
    def num_all_steps(self) -> int:
        """Steps of every part, warm-up included."""
        return (NUM_WARMUP + self.num_steps) * (2 if self.overlap else 1)

    @property
    def shortest_action_s(self) -> float:
        """The least that an action of any part takes, in seconds."""
        return shortest_action_s([part.costs for part in self.parts])

    def begins_together(self, step: int) -> bool:
        """Tell whether all ranks begin a step at once, or each when it has done the one before."""
        return step <= NUM_WARMUP + self.num_steps

    def sizes(self) -> dict[Pair, set[int]]:
        """Return the bytes of the messages that each pair of ranks exchanges, in any part."""
        sizes: dict[Pair, set[int]] = {}
        for part in self.parts:
            for pair, found in sizes_between(part.program, part.costs).items():
                sizes.setdefault(pair, set()).update(found)
        return sizes


def shortest_action_s(costs: Sequence[CostModel]) -> float:
    """Return the least that F, I or W of any stage takes, in seconds."""
    return min(
        seconds
        for one in costs
        for seconds in (*one.forward_s, *one.backward_input_s, *one.backward_weight_s)
    )


class RankReport(NamedTuple):
    """What one rank brings back.

    Attributes:
        transfers: what messages were found to take, before the first step.
        passes: of each part, what it did in each of ``Request.num_all_steps``.
    """

    transfers: tuple[Transfer, ...]
    passes: tuple[tuple[Emulated, ...], ...]


def encode_request(request: Request) -> str:
    """Write ``request`` for ``decode_request``."""
    parts = [[format_program(p.program), _costs_object(p.costs)] for p in request.parts]
    return json.dumps({"num_steps": request.num_steps, "overlap": request.overlap, "parts": parts})


def decode_request(text: str) -> Request:
    """Read what ``encode_request`` wrote."""
    content = json.loads(text)
    parts = []
    for program_text, costs in content["parts"]:
        program = parse_program(program_text)
        num_stages = program.placement.num_stages
        parts.append(Part(program, costs_from_json(json.dumps(costs), num_stages=num_stages)))
    return Request(tuple(parts), content["num_steps"], content["overlap"])


def encode_report(report: RankReport) -> str:
    """Write ``report`` for ``decode_report``; floats survive exactly."""
    passes = [[_pass_object(emulated) for emulated in steps] for steps in report.passes]
    return json.dumps([report.transfers, passes])


def decode_report(text: str) -> RankReport:
    """Read what ``encode_report`` wrote."""
    transfers, passes = json.loads(text)
    return RankReport(
        tuple(Transfer(*one) for one in transfers),
        tuple(tuple(_pass_of(*found) for found in steps) for steps in passes),
    )


def _costs_object(costs: CostModel) -> dict[str, object]:
    """What is not the default, which is all that JSON can say."""
    return {
        key: value
        for key, value in asdict(costs).items()
        if value != () and not (isinstance(value, float) and math.isinf(value))
    }


def _pass_object(emulated: Emulated) -> tuple[object, ...]:
    spans = [(span.rank, str(span.action), span.start_s, span.end_s) for span in emulated.spans]
    sent, received = emulated.sent, emulated.received
    counts = (sent.num_messages, sent.num_bytes, received.num_messages, received.num_bytes)
    return spans, counts


def _pass_of(spans: list[tuple[int, str, float, float]], counts: list[int]) -> Emulated:
    return Emulated(
        [Span(rank, Action.parse(text), start_s, end_s) for rank, text, start_s, end_s in spans],
        Traffic(*counts[:2]),
        Traffic(*counts[2:]),
    )
