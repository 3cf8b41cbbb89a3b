"""Saving and loading what a pipeline trains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from torch.optim import Optimizer

from intandem.argument_types import require_type
from intandem.checkpoint.commit import begin
from intandem.checkpoint.disk import Disk, RealDisk
from intandem.checkpoint.loading import Checkpoint, Restoring
from intandem.checkpoint.manifest import Manifest
from intandem.checkpoint.optimizer_state import names_of, take
from intandem.checkpoint.shards import MAX_SHARD_BYTES, snapshot, split, write_shards
from intandem.checkpoint.tensors import registered
from intandem.checkpoint.trees import to_json
from intandem.errors import CheckpointError
from intandem.pipeline import pretrained
from intandem.pipeline.meeting import Meeting
from intandem.pipeline.optimizer import PipelineOptimizer
from intandem.pipeline.passing import Position
from intandem.pipeline.saved import SavedCheckpoint
from intandem.pipeline.saving import (
    Content,
    Place,
    Report,
    answered_for,
    in_words,
    last_files,
    tied_names,
    write_own,
    write_together,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn
    from torch.amp.grad_scaler import GradScaler

    from intandem.pipeline.assembly import Assembly
    from intandem.pipeline.exchange import Exchange
    from intandem.pipeline.passing import Passes


Done = TypeVar("Done")
P = ParamSpec("P")


def _named(
    what: str,
) -> Callable[[Callable[Concatenate[Checkpoints, P], Done]], Callable[..., Done]]:
    """Have the other processes told ``what`` this one does while it does it."""

    def named(method: Callable[Concatenate[Checkpoints, P], Done]) -> Callable[..., Done]:
        @wraps(method)
        def told(self: Checkpoints, *args: P.args, **kwargs: P.kwargs) -> Done:
            with self._assembly.home.doing(what):
                return method(self, *args, **kwargs)

        return told

    return named


class Checkpoints:
    """Saves and loads for one pipeline. Every call is collective.

    Args:
        model: the user's.
        assembly: the pipeline's parts.
        exchange: with the other processes.
        passes: know the step.

    Attributes:
        disk: does what is done to the file system.
        max_shard_bytes: size of the files of a checkpoint.
    """

    def __init__(
        self, model: nn.Module, assembly: Assembly, exchange: Exchange, passes: Passes
    ) -> None:
        self.disk: Disk = RealDisk()
        self.max_shard_bytes = MAX_SHARD_BYTES
        self._model = model
        self._assembly = assembly
        self._exchange = exchange
        self._passes = passes
        self._num_saves = 0
        self._pending: SavedCheckpoint | None = None

    def settle(self) -> None:
        """Wait for a save in the background, before this process closes.

        Raises:
            CheckpointError: if it has failed, and this process has not been told.
        """
        pending, self._pending = self._pending, None
        if pending is not None and (error := pending.failure()) and not pending.was_waited_for:
            raise error

    def _settle_together(self, what: str) -> None:
        """Wait for a save in the background, before a call that is collective.

        Raises:
            CheckpointError: on every rank, if it has failed and any has not been told: all of them
                make the same call next.
        """
        pending, self._pending = self._pending, None
        error = None if pending is None else pending.failure()
        if pending is None or error is None:
            return
        own = b"told" if pending.was_waited_for else b""
        if not isinstance(error, CheckpointError) or not all(self._exchange.gather(what, own)):
            raise error

    @_named("save()")
    def save(
        self,
        directory: str | Path,
        optimizer: Optimizer | None,
        extra: Mapping[str, Any] | None,
        scaler: GradScaler | None,
        *,
        wait: bool,
    ) -> SavedCheckpoint:
        """Save; see ``Pipeline.save``."""
        self._settle_together("save()")

        def prepare() -> tuple[Manifest, Content]:
            require_type("directory", directory, (str, Path), "the path of a folder to make")
            return self._manifest(extra or {}, scaler), self._content(optimizer, copied=not wait)

        def fact(prepared: tuple[Manifest, Content]) -> dict[str, Any]:
            state = prepared[1].state
            return {"directory": str(directory), "optimizer": "none" if state is None else "one"}

        (manifest, content), facts = self._agree("save()", prepare, fact)
        _refuse_other("save()", facts)
        place = self._begin("save()", Path(directory))
        stem = f"rank{self._exchange.rank}"
        expected = {name for name, one in registered(self._model).items() if one.persistent}
        return self._write(
            place,
            lambda: write_own(self.disk, place.partial, content, stem, self.max_shard_bytes),
            last_files(manifest, expected),
            wait=wait,
        )

    @_named("save_pretrained()")
    def save_pretrained(self, directory: str | Path, max_shard_bytes: int) -> Path:
        """Save for ``transformers``; see ``Pipeline.save_pretrained``."""
        self._settle_together("save_pretrained()")
        model = self._model

        def prepare() -> tuple[dict[str, Tensor], list[list[str]]]:
            require_type("directory", directory, (str, Path), "the path of a folder to make")
            pretrained.refuse_without_config(model)
            own = pretrained.under_their_names(model, answered_for(model, self._assembly))
            return own, split(own, max_shard_bytes)

        what = "save_pretrained()"
        (own, shards), facts = self._agree(
            what, prepare, lambda p: {"directory": str(directory), "count": len(p[1])}
        )
        counts = [fact.pop("count") for fact in facts]
        _refuse_other(what, facts)
        place = self._begin(what, Path(directory))
        names = pretrained.shard_names(counts, self._exchange.rank)
        files = dict(zip(names, shards, strict=True))

        def write() -> Report:
            written = write_shards(self.disk, place.partial, files, own, is_snapshot=False)
            return Report(model=written)

        saved = self._write(
            place, write, lambda reports: pretrained.last_files(model, reports), wait=True
        )
        return saved.wait()

    @_named("load()")
    def load(
        self, directory: str | Path, optimizer: Optimizer | None, scaler: GradScaler | None
    ) -> dict[str, Any]:
        """Load; see ``Pipeline.load``."""
        self._settle_together("load()")

        def prepare() -> tuple[Checkpoint, Restoring]:
            checkpoint = Checkpoint(directory)
            parts = None if optimizer is None else _parts_of(optimizer)
            restoring = Restoring(checkpoint, self._model, self._held(), parts)
            if optimizer is not None and checkpoint.scaler and scaler is None:
                msg = (
                    f"{checkpoint.folder} has a gradient scaler's state; call "
                    "pipe.grad_scaler() before load()"
                )
                raise CheckpointError(msg)
            restoring.verify(sorted(checkpoint.files)[self._exchange.rank :: self._num_processes])
            return checkpoint, restoring

        def fact(prepared: tuple[Checkpoint, Restoring]) -> dict[str, Any]:
            given = "none" if optimizer is None else "one"
            names = sorted(prepared[1].planned)
            return {"sha256 of it": prepared[0].digest, "optimizer": given, "names": names}

        (checkpoint, restoring), facts = self._agree("load()", prepare, fact)
        planned = {name for fact in facts for name in fact.pop("names")}
        _refuse_other("load()", facts)
        if optimizer is not None:
            restoring.refuse_left_over(planned)
        self._agree("load()", restoring.apply, lambda _: {})
        if isinstance(optimizer, PipelineOptimizer):
            optimizer.take_options()
        if scaler is not None and checkpoint.scaler and scaler.is_enabled():
            scaler.load_state_dict(checkpoint.scaler)
        self._passes.position = Position(checkpoint.manifest.seed, checkpoint.manifest.num_steps)
        return dict(checkpoint.extra)

    @property
    def _num_processes(self) -> int:
        home = self._assembly.home
        return 1 if home.membership is None else home.num_ranks

    def _held(self) -> list[str]:
        """Return the first names of what this process has: its parameters, and all buffers."""
        own = set(self._assembly.home.own_ranks)
        holders = self._assembly.holders_of
        return [
            name
            for name, one in registered(self._model).items()
            if one.persistent and (not one.is_parameter or own & set(holders.get(name, (0,))))
        ]

    def _manifest(self, extra: Mapping[str, Any], scaler: GradScaler | None) -> Manifest:
        require_type("extra", extra, Mapping, "a dictionary")
        state = scaler.state_dict() if scaler is not None else {}
        position = self._passes.position
        return Manifest(
            format="intandem checkpoint",
            version=1,
            num_steps=position.num_steps,
            seed=position.seed,
            num_ranks=self._assembly.home.num_ranks,
            model={},
            tied=tied_names(self._model),
            optimizer=None,
            scaler=to_json(state, "scaler") if state else None,
            extra=to_json(extra, "extra"),
        )

    def _content(self, optimizer: Optimizer | None, *, copied: bool) -> Content:
        model = answered_for(self._model, self._assembly)
        state, tensors = None, dict[str, "Tensor"]()
        if optimizer is not None:
            state, tensors = take(_parts_of(optimizer), names_of(self._model), model)
        if copied:
            model = {name: snapshot(tensor) for name, tensor in model.items()}
            tensors = {name: snapshot(tensor) for name, tensor in tensors.items()}
        return Content(model, state, tensors, is_snapshot=copied)

    def _agree(
        self, what: str, work: Callable[[], Done], fact: Callable[[Done], dict[str, Any]]
    ) -> tuple[Done, list[dict[str, Any]]]:
        """Do some work that may fail, and return what it returned, and facts of all processes.

        Raises:
            CheckpointError: if it failed on another process. What failed here is raised as it is.
        """
        failed: Exception | None = None
        try:
            done = work()
            own = fact(done)
        except Exception as error:  # any: the others wait for a fact
            failed, own = error, {"error": in_words(error)}
        found = [json.loads(f) for f in self._exchange.gather(what, json.dumps(own).encode())]
        if failed is not None:
            raise failed
        errors = [
            f"rank {rank}: {one['error']}" for rank, one in enumerate(found) if "error" in one
        ]
        if errors:
            msg = f"{what} failed: {'; '.join(errors)}"
            raise CheckpointError(msg)
        return done, found

    def _begin(self, what: str, target: Path) -> Place:
        """Have rank 0 make the folder to write into, and return where it is."""
        target, failed, name, told = target.absolute(), None, "", ""
        if self._exchange.rank == 0:
            try:
                name = begin(self.disk, target).name
            except (CheckpointError, OSError) as error:
                failed, told = error, in_words(error)
        told, name = json.loads(self._exchange.first(what, json.dumps([told, name]).encode()))
        if failed is not None or told:
            raise CheckpointError(told) from failed
        at = f"after {self._passes.position.num_steps} steps, in {what}"
        return Place(self.disk, target.with_name(name), target, at)

    def _write(
        self,
        place: Place,
        write: Callable[[], Report],
        last: Callable[[Sequence[Report]], Mapping[str, bytes]],
        *,
        wait: bool,
    ) -> SavedCheckpoint:
        self._num_saves += 1
        number, meeting = self._num_saves, Meeting(self._assembly.home, patient=not wait)
        saved = SavedCheckpoint(place.target)

        def work() -> Path:
            return write_together(meeting, number, place, write, last)

        if wait:
            saved.run(work)
            saved.wait()
        else:
            saved.run_in_background(work)
            self._pending = saved
        return saved


def _parts_of(optimizer: Optimizer) -> Sequence[Optimizer]:
    """Return the optimizers that have state: of each rank, or the one that was given."""
    require_type("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer")
    return optimizer.parts() if isinstance(optimizer, PipelineOptimizer) else [optimizer]


def _refuse_other(what: str, facts: Sequence[Mapping[str, Any]]) -> None:
    """Raise where ranks do not ask for the same.

    Raises:
        CheckpointError: naming a rank, and what it asks for.
    """
    for rank, fact in enumerate(facts):
        for key, value in fact.items():
            if value != facts[0][key]:
                msg = (
                    f"{what}: rank 0 has {key} {facts[0][key]!r} and rank {rank} {value!r}; give "
                    "the same on every rank"
                )
                raise CheckpointError(msg)
