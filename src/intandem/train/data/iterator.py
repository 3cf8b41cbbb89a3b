"""Batches in an order that (seed, epoch) decides, from a position that is a few numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from intandem.errors import BatchError, RunError

if TYPE_CHECKING:
    from torch import Tensor

    from intandem.train.data.dataset import Rows, Stateful

_PRIME = 1_000_003


class BatchIterator:
    """Yields batches without end; each epoch has an order of its own.

    Rows that are too few for a batch at the end of an epoch are left out of it; which ones they
    are differs from epoch to epoch.

    Args:
        rows: what batches are made of.
        batch_rows: rows of a batch.
        seed: of the order.

    Raises:
        BatchError: if there are fewer rows than a batch has.
    """

    def __init__(self, rows: Rows, *, batch_rows: int, seed: int) -> None:
        if len(rows) < batch_rows:
            msg = (
                f"there are {len(rows)} rows to train on, and a batch has {batch_rows}; give more "
                "data, or a smaller data.rows"
            )
            raise BatchError(msg)
        self._rows, self._batch_rows, self._seed = rows, batch_rows, seed
        self._epoch = self._index = 0
        self._order = self._order_of(0)

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Any:
        if self._index + self._batch_rows > len(self._rows):
            self._epoch, self._index = self._epoch + 1, 0
            self._order = self._order_of(self._epoch)
        rows = self._order[self._index : self._index + self._batch_rows]
        self._index += self._batch_rows
        return self._rows.batch(rows)

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch, rows of it that are behind, and what decides the rest."""
        return {
            "epoch": self._epoch,
            "index": self._index,
            "seed": self._seed,
            "num_rows": len(self._rows),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position that ``state_dict`` returned.

        Raises:
            BatchError: if it is one of other rows.
        """
        if state["num_rows"] != len(self._rows):
            msg = (
                f"the run was trained on {state['num_rows']} rows, and there are "
                f"{len(self._rows)} now; go on with the same data, or start a run of its own"
            )
            raise BatchError(msg)
        self._seed, self._epoch, self._index = state["seed"], state["epoch"], state["index"]
        self._order = self._order_of(self._epoch)

    def _order_of(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * _PRIME + epoch)
        return torch.randperm(len(self._rows), generator=generator)


def next_batch(batches: Stateful, *, step: int, num_steps: int) -> Any:
    """Return the next batch.

    Args:
        batches: may be an iterator of the user's.
        step: that it is for, counted from 0.
        num_steps: of the run.

    Raises:
        RunError: if there is none.
    """
    try:
        return next(batches)
    except StopIteration:
        msg = (
            f"the data ended early: {type(batches).__name__} has no batch for step {step + 1} of "
            f"{num_steps}; begin anew in its __next__, or take fewer steps"
        )
        raise RunError(msg) from None


def in_order(rows: Rows, *, batch_rows: int, num_batches: int) -> list[tuple[Any, int]]:
    """Return the first batches and how many rows each has: all alike, but for a single one."""
    num_full = min(len(rows) // batch_rows, num_batches)
    every = torch.arange(num_full * batch_rows or len(rows))
    return [(rows.batch(part), len(part)) for part in torch.split(every, batch_rows)]
