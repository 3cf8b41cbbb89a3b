from intandem.ir.action import Action, ActionKind
from intandem.ir.dependencies import predecessors
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
from intandem.ir.timeline import Span, Timeline

__all__ = [
    "Action",
    "ActionKind",
    "Compute",
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
    "predecessors",
]
