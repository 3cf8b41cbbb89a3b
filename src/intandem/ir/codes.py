"""Actions as small integers: what passes over whole schedules count and look up with.

The code of an action is ``lane * num_microbatches + microbatch``; a lane is one kind of one
stage. What an action needs is of its own micro-batch, so within a lane every need lies at the
same distance, and ``predecessors`` is asked once per lane instead of once per action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.ir.action import Action, ActionKind
from intandem.ir.dependencies import predecessors

if TYPE_CHECKING:
    from collections.abc import Iterable

KINDS = tuple(ActionKind)
NUM_KINDS = len(KINDS)
KIND_INDEX = {kind: index for index, kind in enumerate(KINDS)}


@dataclass(frozen=True, slots=True)
class ActionCodes:
    """Numbers the actions of a pipeline. The actions given must be within its counts.

    Attributes:
        num_stages: length of the pipeline.
        num_microbatches: micro-batches per step.
    """

    num_stages: int
    num_microbatches: int

    @property
    def num_codes(self) -> int:
        """One more than the largest code."""
        return self.num_stages * NUM_KINDS * self.num_microbatches

    def of_stage(self, stage: int, kind: ActionKind) -> int:
        """Code of micro-batch 0 of a lane; the others follow it."""
        return (stage * NUM_KINDS + KIND_INDEX[kind]) * self.num_microbatches

    def of_actions(self, actions: Iterable[Action]) -> list[int]:
        """Code of each action, in the order given."""
        index, num_microbatches = KIND_INDEX, self.num_microbatches
        return [
            (a.stage * NUM_KINDS + index[a.kind]) * num_microbatches + a.microbatch for a in actions
        ]

    def action(self, code: int) -> Action:
        """The action that has ``code``."""
        lane, microbatch = divmod(code, self.num_microbatches)
        stage, kind = divmod(lane, NUM_KINDS)
        return Action(stage, KINDS[kind], microbatch)

    def needs(self) -> list[tuple[tuple[int, ...], ...]]:
        """Per lane, the groups of ``predecessors`` as distances from an action's own code."""
        return [self._needs_of(lane) for lane in range(self.num_stages * NUM_KINDS)]

    def _needs_of(self, lane: int) -> tuple[tuple[int, ...], ...]:
        own = lane * self.num_microbatches
        groups = predecessors(self.action(own), num_stages=self.num_stages)
        return tuple(tuple(code - own for code in self.of_actions(group)) for group in groups)
