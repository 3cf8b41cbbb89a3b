"""What can be trained on: rows by number, and what comes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from intandem.errors import BatchError
from intandem.recorder.trees import leaves, map_tree

if TYPE_CHECKING:
    from collections.abc import Callable


@runtime_checkable
class Rows(Protocol):
    """Rows that can be taken in any order."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def batch(self, rows: Tensor) -> Any:
        """Return a batch of the rows with these numbers, int64 ``(rows,)``."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """An iterator over batches that knows where it is, in values that JSON can hold."""

    def __next__(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Data:
    """What a run is trained on; what a function of your own for ``data.source`` returns.

    Attributes:
        training: tensors whose dim 0 is rows (one, or a tuple or dictionary of them), a data set
            with ``len`` and ``[number]``, ``Rows``, or a ``Stateful`` iterator over batches.
        validation: the same, but for the iterator; None where nothing is held out.
        loss: of the model's output and a batch; None where the output carries ``loss``.
        unit: what throughput counts.
        units_per_row: how many of them a row has.
        facts: what a model has to know: ``vocab`` and ``seq``, or ``size``, ``channels`` and
            ``classes``.
        fingerprint: tells other data from this; a run is not gone on with on other data. By
            default, it is made of some rows.
        about: the same for reading.
    """

    training: Any
    validation: Any = None
    loss: Callable[[Any, Any], Any] | None = None
    unit: str = "rows"
    units_per_row: int = 1
    facts: Mapping[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    about: str = ""


class TensorRows:
    """Rows of tensors that have as many.

    Args:
        tree: a tensor, or a dictionary, tuple or list of them.

    Raises:
        BatchError: if a leaf is no tensor, or they have different numbers of rows.
    """

    def __init__(self, tree: Any) -> None:
        found = leaves(tree)
        counts = {len(leaf) for leaf in found if isinstance(leaf, Tensor) and leaf.ndim}
        if len(counts) != 1 or not all(isinstance(leaf, Tensor) for leaf in found):
            kinds = ", ".join(
                str(tuple(leaf.shape)) if isinstance(leaf, Tensor) else type(leaf).__name__
                for leaf in found
            )
            msg = f"the data are {kinds or 'empty'}; expected tensors with the same number of rows"
            raise BatchError(msg)
        self._tree = tree
        self._num_rows = counts.pop()

    def __len__(self) -> int:
        return self._num_rows

    def batch(self, rows: Tensor) -> Any:
        """See ``Rows``."""
        return map_tree(lambda leaf: leaf[rows], self._tree)


class CollatedRows:
    """Rows of a data set with ``len`` and ``[number]``, put together as torch's loaders do.

    Args:
        items: the data set.
    """

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def batch(self, rows: Tensor) -> Any:
        """See ``Rows``."""
        from torch.utils.data import default_collate

        return default_collate([self._items[row] for row in rows.tolist()])


def as_rows(given: Any, what: str) -> Rows:
    """Return ``given`` as rows; see ``Data.training``.

    Raises:
        TypeError: if it cannot be.
    """
    if isinstance(given, Rows):
        return given
    is_tree = isinstance(given, Tensor | Mapping | tuple)
    if is_tree or (isinstance(given, list) and given and isinstance(given[0], Tensor)):
        return TensorRows(given)
    if hasattr(given, "__len__") and hasattr(given, "__getitem__"):
        return CollatedRows(given)
    msg = (
        f"{what} is a {type(given).__name__}; expected tensors with rows, or a data set with len() "
        "and [number]; of what is trained on also an iterator with state_dict() and "
        "load_state_dict(), so that a resumed run goes on where it was"
    )
    raise TypeError(msg)
