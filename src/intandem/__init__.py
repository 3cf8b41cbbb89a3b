"""Pipeline-parallel training for any nn.Module, with the numbers of one process.

Names are imported when they are first used, so that ``import intandem`` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.equality import Job, check
    from intandem.errors import PipelineError
    from intandem.ir import Action, ActionKind, Placement, Program, Schedule, Timeline
    from intandem.machine import Machine
    from intandem.pipeline import Options, Pipeline
    from intandem.planner import search
    from intandem.recorder import capture
    from intandem.rules import verify
    from intandem.runtime.launcher import launch
    from intandem.runtime.losses import LossSum, WholeBatchLoss
    from intandem.schedules import build_schedule
    from intandem.simulator import simulate

_HOME = {
    "Action": "ir",
    "ActionKind": "ir",
    "CostModel": "costs",
    "Job": "equality",
    "LossSum": "runtime.losses",
    "Machine": "machine",
    "Options": "pipeline",
    "Pipeline": "pipeline",
    "PipelineError": "errors",
    "Placement": "ir",
    "Program": "ir",
    "Schedule": "ir",
    "Timeline": "ir",
    "WholeBatchLoss": "runtime.losses",
    "build_schedule": "schedules",
    "capture": "recorder",
    "check": "equality",
    "launch": "runtime.launcher",
    "search": "planner",
    "simulate": "simulator",
    "verify": "rules",
}
"""Public names and the modules they live in."""

__all__ = [
    "Action",
    "ActionKind",
    "CostModel",
    "Job",
    "LossSum",
    "Machine",
    "Options",
    "Pipeline",
    "PipelineError",
    "Placement",
    "Program",
    "Schedule",
    "Timeline",
    "WholeBatchLoss",
    "build_schedule",
    "capture",
    "check",
    "launch",
    "search",
    "simulate",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        msg = f"module 'intandem' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"intandem.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
