"""What tells a user's own data from others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from intandem.errors import BatchError
from intandem.runtime.microbatch import fingerprint
from intandem.train.data.dataset import Stateful, as_rows

if TYPE_CHECKING:
    from collections.abc import Callable

_NUM_ROWS = 16


def fingerprint_of(training: Any) -> str:
    """Return a text that other data are likely not to have: of some rows, or of the next batch.

    Rows that differ when they are asked for twice, as augmented images do, are not looked at.

    Raises:
        TypeError: if it is nothing that can be trained on.
    """
    if isinstance(training, Stateful):
        return _repeated(lambda: _peek(training))
    rows = as_rows(training, "what is trained on")
    some = torch.linspace(0, len(rows) - 1, min(_NUM_ROWS, len(rows))).long()
    return f"{len(rows)} rows {_repeated(lambda: rows.batch(some))}".rstrip()


def _repeated(batch: Callable[[], Any]) -> str:
    """Return the fingerprint of a batch; nothing if it has none, or another one each time."""
    try:
        one, two = fingerprint(batch()), fingerprint(batch())
    except (BatchError, StopIteration):
        return ""
    return one if one == two else ""


def _peek(batches: Stateful) -> Any:
    position = batches.state_dict()
    batch = next(batches)
    batches.load_state_dict(position)
    return batch
