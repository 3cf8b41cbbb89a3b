from intandem.ir.action import Action, ActionKind
from intandem.ir.compute_csv import format_compute_csv, parse_compute_csv
from intandem.ir.dependencies import predecessors
from intandem.ir.handover import Handover, handovers
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
from intandem.ir.text import format_program, format_schedule, parse_program, parse_schedule
from intandem.ir.timeline import Arrival, Span, Timeline

__all__ = [
    "Action",
    "ActionKind",
    "Arrival",
    "Compute",
    "Handover",
    "Instruction",
    "Message",
    "Placement",
    "Program",
    "Recompute",
    "Recv",
    "ReduceGrads",
    "Schedule",
    "Send",
    "Span",
    "StageLinks",
    "Timeline",
    "format_compute_csv",
    "format_program",
    "format_schedule",
    "handovers",
    "parse_compute_csv",
    "parse_program",
    "parse_schedule",
    "predecessors",
]
