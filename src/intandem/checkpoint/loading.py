"""Reads checkpoints: into a model of any shape of pipeline, or as values.

Everything is looked at before anything is changed: files, names, shapes, kinds of numbers, tied
values, the optimizer's kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intandem.argument_types import require_type
from intandem.checkpoint.manifest import read_manifest
from intandem.checkpoint.optimizer_state import Plan, give, names_of, plan, tensors_in
from intandem.checkpoint.shards import check_content, check_presence, read_tensors
from intandem.checkpoint.tensors import registered
from intandem.checkpoint.trees import from_json
from intandem.checkpoint.weight_files import WeightFiles
from intandem.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from intandem.checkpoint.manifest import OptimizerState


@dataclass(frozen=True)
class CheckpointState:
    """A whole checkpoint as values.

    Attributes:
        num_steps: training steps that the pipeline had made.
        seed: of the pipeline's draws.
        model: parameters and buffers, by all of their names.
        optimizer: ``{"kind": class, "groups": [{"options", "names"}], "state": {name: {...}}}``;
            None if none was saved.
        scaler: state of the gradient scaler, if there was one.
        extra: what the user gave.
    """

    num_steps: int
    seed: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    scaler: dict[str, Any] | None
    extra: Any


class Checkpoint:
    """A checkpoint whose manifest is valid, and whose files are there and as long as they should.

    Args:
        folder: of the checkpoint.

    Raises:
        CheckpointError: naming what is not as it should be.
    """

    def __init__(self, folder: str | Path) -> None:
        require_type("directory", folder, (str, Path), "the path of a checkpoint")
        self.folder = Path(folder)
        self.manifest, self.digest = read_manifest(self.folder)
        self.files = self.manifest.files()
        check_presence(self.folder, self.files)
        try:
            self.extra = from_json(self.manifest.extra)
            self.scaler = from_json(self.manifest.scaler)
        except (CheckpointError, RecursionError) as error:
            msg = f"{self.folder / 'manifest.json'} cannot be read: {error}"
            raise CheckpointError(msg) from error

    def check_content(self, names: Iterable[str] | None = None) -> None:
        """Look whether files, by default all, have the content they were written with.

        Raises:
            CheckpointError: naming the first that has not.
        """
        check_content(self.folder, self.files, self.files if names is None else names)

    def weights_for(self, model: nn.Module) -> WeightFiles:
        """Return the files of ``model``'s tensors.

        Raises:
            CheckpointError: if their names are not the model's.
        """
        manifest = self.manifest
        file_of = {
            name: self.folder / file for file, one in manifest.model.items() for name in one.tensors
        }
        key_of: dict[str, str] = {}
        for one in registered(model).values():
            if not any(name in file_of for name in one.names):  # tied when saved, and no longer
                key_of.update((n, manifest.tied[n]) for n in one.names if n in manifest.tied)
        file_of.update({alias: file_of[name] for alias, name in key_of.items()})
        try:
            return WeightFiles(self.folder, model, file_of, key_of, what="checkpoint")
        except ValueError as error:
            raise CheckpointError(str(error)) from error

    def optimizer_tensors(self, state: OptimizerState, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the tensors in the state of the named parameters."""
        wanted = {key for name in names for key in tensors_in(state.state.get(name, {}))}
        return read_tensors(self.folder, state.files, wanted)


class Restoring:
    """What a model and optimizers are about to be given: ``verify`` it, then ``apply`` it.

    Args:
        checkpoint: to read from.
        model: filled in place.
        names: parameters and persistent buffers to fill, by first name.
        optimizers: to be given their parameters' state.

    Raises:
        CheckpointError: if the checkpoint is not the model's or the optimizers'.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: nn.Module,
        names: Collection[str],
        optimizers: Sequence[Optimizer] | None,
    ) -> None:
        self._checkpoint, self._model, self._names = checkpoint, model, names
        self._weights = checkpoint.weights_for(model)
        self._plans: list[Plan] = []
        saved = checkpoint.manifest.optimizer
        if optimizers is not None:
            if saved is None:
                msg = f"{checkpoint.folder} has no optimizer's state; load without optimizer="
                raise CheckpointError(msg)
            self._plans = plan(optimizers, names_of(model), saved, checkpoint.manifest.tied)

    def verify(self, names: Iterable[str]) -> None:
        """Look at the content of the named files, and only then into those that will be read.

        Raises:
            CheckpointError: if a file is damaged, or a tensor cannot become the model's.
        """
        self._checkpoint.check_content(sorted({*names, *self.files()}))
        try:
            self._weights.refuse_others(self._model, self._names)
        except ValueError as error:
            raise CheckpointError(str(error)) from error

    def files(self) -> set[str]:
        """Return the names of the files that will be read."""
        files = {path.name for path in self._weights.files_of(self._names)}
        if saved := self._checkpoint.manifest.optimizer:
            names = (name for planned in self._plans for name in planned.names())
            wanted = {key for name in names for key in tensors_in(saved.state.get(name, {}))}
            files |= {f for f, one in saved.files.items() if wanted.intersection(one.tensors)}
        return files

    @property
    def planned(self) -> set[str]:
        """Saved names of the parameters that optimizers have here."""
        return {name for planned in self._plans for name in planned.names()}

    def refuse_left_over(self, planned: Collection[str]) -> None:
        """Refuse optimizers that lack parameters of the checkpoint's.

        Args:
            planned: saved names of the parameters of all ranks' optimizers.

        Raises:
            CheckpointError: naming one.
        """
        saved = self._checkpoint.manifest.optimizer
        groups = saved.groups if saved else ()
        if left := sorted({name for group in groups for name in group.names} - set(planned)):
            msg = (
                f"the optimizer does not have {left[0]}, one of {len(left)} parameters of which "
                f"{self._checkpoint.folder} has an optimizer's state; give it the same parameters"
            )
            raise CheckpointError(msg)

    def apply(self) -> None:
        """Read and fill. What may be refused is read before anything is changed.

        Raises:
            CheckpointError: if a file cannot be read.
        """
        saved = self._checkpoint.manifest.optimizer
        given = [
            (planned, saved, self._checkpoint.optimizer_tensors(saved, planned.names()))
            for planned in self._plans
            if saved is not None
        ]
        try:
            self._weights.fill(self._model, self._names)
        except (ValueError, OSError) as error:
            raise CheckpointError(str(error)) from error
        for planned, state, tensors in given:
            give(planned, state, tensors)


def load_into(
    model: nn.Module, directory: str | Path, optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Load a checkpoint into a plain model, and its optimizer.

    Args:
        model: filled in place: parameters and persistent buffers.
        directory: of the checkpoint.
        optimizer: of the model's parameters, of the class that was saved.

    Returns:
        The ``extra`` that was saved.

    Raises:
        CheckpointError: if the checkpoint is not whole, or not this model's and optimizer's.
    """
    checkpoint = Checkpoint(directory)
    names = [name for name, one in registered(model).items() if one.persistent]
    restoring = Restoring(checkpoint, model, names, None if optimizer is None else [optimizer])
    if optimizer is not None:
        restoring.refuse_left_over(restoring.planned)
    restoring.verify(checkpoint.files)
    restoring.apply()
    return dict(checkpoint.extra)


def read_state(directory: str | Path) -> CheckpointState:
    """Return everything that is in a checkpoint.

    Raises:
        CheckpointError: if it is not whole.
    """
    checkpoint = Checkpoint(directory)
    checkpoint.check_content()
    manifest, folder = checkpoint.manifest, checkpoint.folder
    every = {name for file in manifest.model.values() for name in file.tensors}
    model = read_tensors(folder, manifest.model, every)
    model |= {alias: model[name] for alias, name in manifest.tied.items()}
    return CheckpointState(
        manifest.num_steps,
        manifest.seed,
        model,
        None if manifest.optimizer is None else _optimizer(checkpoint, manifest.optimizer),
        checkpoint.scaler,
        checkpoint.extra,
    )


def _optimizer(checkpoint: Checkpoint, saved: OptimizerState) -> dict[str, Any]:
    tensors = checkpoint.optimizer_tensors(saved, saved.state)
    return {
        "kind": saved.kind,
        "groups": [
            {"options": from_json(group.options), "names": list(group.names)}
            for group in saved.groups
        ],
        "state": {
            name: {key: from_json(value, tensors.__getitem__) for key, value in tree.items()}
            for name, tree in saved.state.items()
        },
    }
