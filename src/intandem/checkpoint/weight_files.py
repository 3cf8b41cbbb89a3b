"""Weights in safetensors files: a Hugging Face folder, an index of shards, or one file."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from intandem.checkpoint.tensors import Registered, registered

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

_log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_LISTED = 16


class Amount(NamedTuple):
    """What was read: tensors, their bytes in the files, and the files opened for them."""

    num_tensors: int
    num_bytes: int
    files: tuple[str, ...]


class WeightFiles:
    """The files of one model's weights. Nothing but names is read until ``fill``.

    Args:
        path: folder, ``.index.json`` or ``.safetensors``.
        model: whose weights they are; may be on ``meta``.
        file_of: the file that each tensor is in, where it is known; else it is looked for.
        key_of: what tensors are called in their files, where that is another name.
        what: what the user calls the files, in errors.

    Raises:
        ValueError: if there are no such files, or their names are not the model's.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        file_of: Mapping[str, Path] | None = None,
        key_of: Mapping[str, str] | None = None,
        what: str = "weights",
    ) -> None:
        self._what = f"{what}={str(path)!r}"
        self._file_of = _files_by_name(path) if file_of is None else file_of
        self._key_of = key_of or {}
        everything = registered(model)
        self._names_in_files = _matched(self._what, self._file_of, everything, model)

    def fill(self, model: nn.Module, names: Collection[str]) -> Amount:
        """Copy the named tensors from the files, opening only those that hold them.

        Args:
            model: filled in place.
            names: first names of parameters and persistent buffers.

        Returns:
            What was read.

        Raises:
            ValueError: as ``refuse_others``, before anything is changed.
        """
        shards = self._wanted(model, names)
        _refuse_others(self._what, shards)
        amount, converted = _read(shards)
        if converted:
            _log.info("%s: converted %s", self._what, ", ".join(sorted(converted)))
        _log.info(
            "%s: read %d tensors, %d bytes, from %d of %d files",
            self._what, amount.num_tensors, amount.num_bytes, len(shards), self.num_files,
        )  # fmt: skip
        return amount

    def refuse_others(self, model: nn.Module, names: Collection[str]) -> None:
        """Refuse what ``fill`` would, and change nothing.

        Raises:
            ValueError: listing every tensor whose shape or kind is not the model's, or that is
                tied to one of other values.
        """
        _refuse_others(self._what, self._wanted(model, names))

    def files_of(self, names: Iterable[str]) -> set[Path]:
        """Return the files that ``fill`` would open for the named tensors."""
        return {self._file_of[found] for name in names for found in self._names_in_files[name]}

    def _wanted(
        self, model: nn.Module, names: Collection[str]
    ) -> dict[Path, list[tuple[str, Tensor]]]:
        everything = registered(model)
        shards: dict[Path, list[tuple[str, Tensor]]] = {}
        for name in names:
            for found in self._names_in_files[name]:
                target = everything[name].tensor
                key = self._key_of.get(found, found)
                shards.setdefault(self._file_of[found], []).append((key, target))
        return shards

    @property
    def num_files(self) -> int:
        """How many files there are in all."""
        return len(set(self._file_of.values()))


def _files_by_name(path: Path) -> dict[str, Path]:
    """Return the file that each tensor is in."""
    if path.is_dir():
        return _files_by_name(_in_folder(path))
    if not path.is_file():
        msg = (
            f"weights={str(path)!r}: there is no {path.resolve()}; give a folder with {INDEX} or "
            f"{SINGLE}, such a file, 'init', or a function"
        )
        raise ValueError(msg)
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            return dict.fromkeys(file.keys(), path)
    if path.suffix == ".json":
        return _from_index(path)
    msg = f"weights={str(path)!r} is no .safetensors and no .index.json; expected one of them"
    raise ValueError(msg)


def _in_folder(folder: Path) -> Path:
    for name in (INDEX, SINGLE):
        if (folder / name).is_file():
            return folder / name
    others = sorted(p.name for p in folder.glob("*.safetensors*"))
    if len(others) == 1:
        return folder / others[0]
    kept = ", ".join(others or sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    msg = (
        f"weights={str(folder)!r} has neither {INDEX} nor {SINGLE}, but {kept}; save with "
        "save_pretrained(folder), which writes them, or name the file"
    )
    raise ValueError(msg)


def _from_index(path: Path) -> dict[str, Path]:
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        found = {str(name): path.parent / str(file) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"weights={str(path)!r} is no index of shards (weight_map: name to file): {error!r}"
        raise ValueError(msg) from error
    if absent := sorted({file.name for file in found.values() if not file.is_file()}):
        msg = f"weights={str(path)!r} names files that are not there: {', '.join(absent)}"
        raise ValueError(msg)
    return found


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except SafetensorError as error:
        msg = f"{path} cannot be read as safetensors: {error}"
        raise ValueError(msg) from error


def _matched(
    what: str,
    files: Mapping[str, Path],
    everything: Mapping[str, Registered],
    model: nn.Module,
) -> dict[str, tuple[str, ...]]:
    """Return for each tensor of the model's state the names it has in the files.

    Raises:
        ValueError: listing what is missing, and what the model does not have.
    """
    stated = {name: one for name, one in everything.items() if one.persistent}
    known = {alias for one in everything.values() for alias in one.names}
    prefix = _prefix(files, known, model)
    in_files = {prefix + name: name for name in files}
    found = {
        name: tuple(in_files[alias] for alias in one.names if alias in in_files)
        for name, one in stated.items()
    }
    missing = [name for name, names in found.items() if not names]
    unknown = [name for name in in_files if name not in known and not _ignored(name, model)]
    if missing or unknown:
        parts = _listed("missing", missing, unknown) + _listed("unknown", unknown, missing)
        msg = f"{what} is not this model's: {'; '.join(parts)}"
        raise ValueError(msg)
    return found


def _prefix(files: Mapping[str, Path], known: Collection[str], model: nn.Module) -> str:
    """Return what a Hugging Face model puts before the names of a folder of its base model."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    is_base = prefix != "." and not any(name in known for name in files)
    return prefix if is_base and any(prefix + name in known for name in files) else ""


def _ignored(name: str, model: nn.Module) -> bool:
    """Tell whether Hugging Face's model says that a file may have the name."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _listed(what: str, names: list[str], others: Iterable[str]) -> list[str]:
    if not names:
        return []
    candidates = list(others)
    shown = []
    for name in names[:_MAX_LISTED]:
        near = get_close_matches(name, candidates, n=1)
        shown.append(f"{name} (near: {near[0]})" if near else name)
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return [f"{what} {', '.join(shown)}{more}"]


def _refuse_others(what: str, shards: Mapping[Path, list[tuple[str, Tensor]]]) -> None:
    wrong: list[str] = []
    read_as: dict[int, tuple[str, Tensor]] = {}
    num_names = Counter(id(target) for wanted in shards.values() for _, target in wanted)
    for file, wanted in shards.items():
        with _opened(file) as opened:
            inside = set(opened.keys())
            for name, target in wanted:
                if name not in inside:
                    wrong.append(f"{name} is not in {file.name}, where the index has it")
                elif said := _unlike(name, opened.get_slice(name), target):
                    wrong.append(said)
                elif num_names[id(target)] > 1:
                    own = name, opened.get_tensor(name)
                    earlier = read_as.setdefault(id(target), own)
                    wrong += _other_values(earlier, own, target)
    if wrong:
        more = f" and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        msg = f"{what} is not this model's: {'; '.join(wrong[:_MAX_LISTED])}{more}"
        raise ValueError(msg)


def _unlike(name: str, found: Any, target: Tensor) -> str | None:
    """Say how a tensor in a file cannot become ``target``, if so."""
    if (shape := tuple(found.get_shape())) != tuple(target.shape):
        return f"{name} is {shape}, expected {tuple(target.shape)}"
    if _is_floating(kind := found.get_dtype()) != target.is_floating_point():
        return f"{name} is {kind} in the file and {target.dtype} in the model"
    return None


def _is_floating(kind: str) -> bool:
    """Tell of the name that safetensors has for a dtype: F32, BF16, F8_E4M3, I64, BOOL, C64."""
    return kind.startswith(("F", "BF"))


def _other_values(
    earlier: tuple[str, Tensor], own: tuple[str, Tensor], target: Tensor
) -> list[str]:
    """Say that two tensors in files, which are one in the model, are not equal, if so."""
    (name, tensor), (other_name, other) = earlier, own
    if torch.equal(tensor.to(target.dtype), other.to(target.dtype)):
        return []
    return [
        f"{name} and {other_name} are tied in the model and differ in the file; untie them "
        "(tie_word_embeddings=False), or remove one from the file"
    ]


def _read(shards: Mapping[Path, list[tuple[str, Tensor]]]) -> tuple[Amount, set[str]]:
    """Copy tensor by tensor, so that the host never holds a second one."""
    num_bytes, num_tensors, converted = 0, 0, set()
    for file, wanted in shards.items():
        with _opened(file) as opened, torch.no_grad():
            for name, target in wanted:
                read = opened.get_tensor(name)
                num_bytes += read.numel() * read.element_size()
                num_tensors += 1
                if read.dtype != target.dtype:
                    converted.add(f"{read.dtype} to {target.dtype}")
                target.copy_(read)
    return Amount(num_tensors, num_bytes, tuple(sorted(file.name for file in shards))), converted
