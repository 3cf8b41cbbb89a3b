"""A folder as ``transformers`` writes it, from a model whose tensors are on several ranks."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from intandem.checkpoint.tensors import registered
from intandem.checkpoint.weight_files import INDEX, SINGLE
from intandem.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from intandem.pipeline.saving import Report

MAX_SHARD_BYTES = 5_000_000_000
"""As in ``transformers``."""

_CONFIG = "config.json"
_GENERATION = "generation_config.json"


def refuse_without_config(model: nn.Module) -> None:
    """Refuse a model that ``transformers`` could not make again.

    Raises:
        CheckpointError: if it has no configuration that can be written.
    """
    if not callable(getattr(getattr(model, "config", None), "to_json_string", None)):
        msg = (
            f"{type(model).__name__} has no config of transformers', so no config.json can be "
            "written; use save(directory)"
        )
        raise CheckpointError(msg)


def under_their_names(model: nn.Module, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names that ``transformers`` looks for.

    Args:
        model: says which name of tied weights is made from the other, and what is not saved.
        own: tensors by first name.
    """
    everything = registered(model)
    derived = [*(getattr(model, "_tied_weights_keys", None) or ())]
    ignored = getattr(model, "_keys_to_ignore_on_save", None) or ()
    found = {}
    for name, tensor in own.items():
        names = everything[name].names
        kept = next((n for n in names if not _any(derived, n)), name)
        if not _any(ignored, kept):
            found[kept] = tensor
    return found


def shard_names(counts: Sequence[int], rank: int) -> list[str]:
    """Return the names of one rank's files.

    Args:
        counts: how many files each rank writes.
        rank: which one.
    """
    total, first = sum(counts), sum(counts[:rank]) + 1
    if total == 1:
        return [SINGLE] * counts[rank]
    return [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(first, first + counts[rank])]


def last_files(model: nn.Module, reports: Sequence[Report]) -> dict[str, bytes]:
    """Return the configuration, and the index if there are several files."""
    files = {_CONFIG: _config(model)}
    generation: Any = getattr(model, "generation_config", None)
    if generation is not None and callable(getattr(model, "can_generate", None)):
        files[_GENERATION] = generation.to_json_string().encode()
    shards = {name: file for report in reports for name, file in report.model.items()}
    if set(shards) != {SINGLE}:
        weight_map = {name: file for file, one in shards.items() for name in one.tensors}
        size = sum(one.num_bytes for one in shards.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        files[INDEX] = (json.dumps(index, indent=2) + "\n").encode()
    return files


def _config(model: nn.Module) -> bytes:
    """Return the configuration with what ``save_pretrained`` adds: the class, and the dtype."""
    config: Any = model.config
    content = json.loads(config.to_json_string())
    content["architectures"] = [type(model).__name__]
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if dtype is not None:
        content["dtype"] = str(dtype).removeprefix("torch.")
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _any(patterns: Sequence[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
