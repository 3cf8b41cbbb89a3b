"""Python values as JSON and back, equal: what ``json`` itself turns into something else is marked.

(1, 2)               {"$tuple": [1, 2]}
{3: "x"}             {"$dict": [[3, "x"]]}
inf                  {"$float": "inf"}
a tensor elsewhere   {"$tensor": "its key"}
a tensor in place    {"$value": ["float32", [], [0.001]]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    Put = Callable[[str, Tensor], Any]
    """Given where a tensor is and the tensor, returns its JSON form."""

    Get = Callable[[str], Tensor]
    """Given the key of a tensor, returns it."""

_KEYS = (str, int, float, type(None))
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64,
                  torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
}  # fmt: skip


def refuse_tensor(where: str, tensor: Tensor) -> Any:
    """Raise: tensors have no place there.

    Raises:
        CheckpointError: saying where.
    """
    msg = f"{where} is a tensor of shape {tuple(tensor.shape)}; give its numbers: .tolist()"
    raise CheckpointError(msg)


def tensor_in_place(where: str, tensor: Tensor) -> Any:
    """Return a small tensor's numbers as JSON.

    Raises:
        CheckpointError: if it is no small tensor of numbers.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES or tensor.numel() > 64:
        msg = f"{where} is a tensor of {tensor.numel()} {dtype}; expected 64 numbers at most"
        raise CheckpointError(msg)
    numbers = [to_json(number, where) for number in tensor.flatten().tolist()]
    return {"$value": [dtype, list(tensor.shape), numbers]}


def to_json(value: Any, where: str, put: Put = refuse_tensor) -> Any:
    """Return ``value`` as JSON.

    Args:
        value: None, numbers, text, and lists, tuples and dictionaries of them; tensors for ``put``.
        where: what it is called, in errors: ``extra['scheduler']``.
        put: turns a tensor into JSON.

    Raises:
        CheckpointError: if it holds anything else; says where.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, Tensor):
        return put(where, value)
    if type(value) in (list, tuple):
        items = [to_json(item, f"{where}[{i}]", put) for i, item in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    if isinstance(value, Mapping):
        return _dictionary(value, where, put)
    msg = (
        f"{where} is a {type(value).__name__}, which a checkpoint does not hold; give numbers, "
        "text, and lists and dictionaries of them"
    )
    raise CheckpointError(msg)


def _dictionary(value: Mapping[Any, Any], where: str, put: Put) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, _KEYS):
            msg = f"{where} has a key {key!r}, a {type(key).__name__}; expected text or numbers"
            raise CheckpointError(msg)
    items = {key: to_json(item, f"{where}[{key!r}]", put) for key, item in value.items()}
    if all(isinstance(key, str) and not key.startswith("$") for key in items):
        return items
    return {"$dict": [[to_json(key, where), item] for key, item in items.items()]}


def _no_tensors(key: str) -> Tensor:
    msg = f"a tensor {key!r} has no place there"
    raise CheckpointError(msg)


def from_json(tree: Any, get: Get = _no_tensors) -> Any:
    """Return the value that ``to_json`` was given. Dictionaries of any kind come back plain.

    Raises:
        CheckpointError: if ``tree`` is not what ``to_json`` returns.
    """
    if isinstance(tree, list):
        return [from_json(item, get) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if not any(key.startswith("$") for key in tree):
        return {key: from_json(item, get) for key, item in tree.items()}
    try:
        ((mark, content),) = tree.items()
        return _marked(mark, content, get)
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        msg = f"{str(tree)[:100]} is no value: {error}"
        raise CheckpointError(msg) from error


def _marked(mark: str, content: Any, get: Get) -> Any:
    if mark == "$tuple":
        return tuple([from_json(item, get) for item in content])
    if mark == "$dict":
        return {from_json(key): from_json(item, get) for key, item in content}
    if mark == "$float":
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content]
    if mark == "$tensor":
        return get(content)
    if mark == "$value":
        dtype, shape, numbers = content
        return torch.tensor(from_json(numbers), dtype=_DTYPES[dtype]).reshape(shape)
    raise ValueError(mark)
