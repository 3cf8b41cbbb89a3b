"""A timeline among others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intandem.ir import Timeline


@dataclass(frozen=True, slots=True)
class Panel:
    """One of several timelines: its name, and what is said of it beside the name."""

    name: str
    timeline: Timeline
    figures: str = ""
