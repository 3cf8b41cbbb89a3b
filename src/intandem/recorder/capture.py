"""Record a model on a batch: the entry to this package."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn

from intandem.argument_types import require_type
from intandem.errors import CaptureError, PipelineError
from intandem.recorder import refusals
from intandem.recorder.binding import Arguments, bind_by_signature, missing_arguments
from intandem.recorder.carried import (
    SharedObjects,
    refuse_counting,
    refuse_overlapping_buffers,
)
from intandem.recorder.draws import AnyDraws, PythonDrawnError, UnseenDrawsError
from intandem.recorder.finishing import finished
from intandem.recorder.interception import intercepted
from intandem.recorder.modules import registered_in, tree_of
from intandem.recorder.python_state import (
    AttributesWatched,
    Changed,
    attributes_kept,
    let_stand,
    python_generators_kept,
)
from intandem.recorder.recording import Recorder
from intandem.recorder.sameness import same_calls
from intandem.recorder.skeleton import RunWithoutDataError
from intandem.recorder.trees import map_tree, named_leaves
from intandem.recorder.values import version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager

    from intandem.recorder.blocks import Open
    from intandem.recorder.draws import Draws
    from intandem.recorder.graph import Call, Graph
    from intandem.recorder.modules import Tree
    from intandem.recorder.python_state import Kept

_log = logging.getLogger(__name__)
_DRAW_FROM_PYTHON: WeakSet[nn.Module] = WeakSet()
_DRAW_UNSEEN: WeakSet[nn.Module] = WeakSet()
"""Models known to: their next recording need not find it out."""


def capture(
    model: nn.Module,
    batch: Any,
    *,
    bind: Callable[[Any], Arguments] | None = None,
    blocks: Sequence[str | type[nn.Module]] = (),
) -> Graph:
    """Run ``model`` once on ``batch`` and return its recorded calls.

    The model is left as it was: buffers, random state and configuration are put back, no gradient
    is computed. It runs in its own training or evaluation mode and in the caller's gradient mode.

    Args:
        model: any module, unchanged. Parameters may be on ``meta``.
        batch: what one call of the model is given: a tensor, or a dictionary, tuple or list.
        bind: how a batch becomes arguments; by default a dictionary is keyword arguments, a tuple
            positional ones.
        blocks: modules to keep whole besides those found, as for ``Pipeline``.

    Raises:
        CaptureError: if the model cannot be recorded; says where and what to do.
        ValueError: if there is no module that ``blocks`` names.
        TypeError: if ``model`` is no module.
    """
    require_type("model", model, nn.Module, "an nn.Module")
    bind = bind or bind_by_signature(model, loss_is_separate=False)
    return record(model, batch, bind, blocks=blocks).graph


class Run(NamedTuple):
    """A recording, what the model returned while it was made, and the tensor of every value.

    ``seconds`` is what it took, with what had to be run again.
    """

    graph: Graph
    output: Any
    tensors: tuple[Tensor, ...]
    seconds: float = 0.0

    def detached(self) -> Run:
        """Return the same without what autograd keeps."""
        output = map_tree(lambda x: x.detach() if isinstance(x, Tensor) else x, self.output)
        tensors = tuple(tensor.detach() for tensor in self.tensors)
        return Run(self.graph, output, tensors, self.seconds)


class Meter(Protocol):
    """Looks on while a model is recorded."""

    def during(self, calls: Sequence[Call]) -> AbstractContextManager[None]:
        """Look on while the context is open; ``calls`` grows as calls are recorded."""
        ...


def record(  # noqa: PLR0913  (used by two modules)
    model: nn.Module,
    batch: Any,
    bind: Callable[[Any], Arguments],
    updated: Collection[str] = (),
    blocks: Sequence[str | type[nn.Module] | Open] = (),
    meter: Meter | None = None,
    *,
    keeps_attributes: bool = True,
    draws: Draws | None = None,
) -> Run:
    """Do what ``capture`` says, and return the output as well.

    Args:
        model: as for ``capture``.
        batch: as for ``capture``.
        bind: as for ``capture``.
        updated: buffers known to be updated, even where this run has no data to show it.
        blocks: as for ``capture``.
        meter: looks on.
        keeps_attributes: put attributes that forward sets back afterwards.
        draws: that the micro-batch will be given; None for whatever the generators give.
    """
    began_s = time.perf_counter()
    with attributes_kept(model, on_success=False) as kept:
        manner = _Manner(updated, blocks, meter, set(), keeps_attributes, draws, kept)
        run, changed = _record_with_data_known(model, batch, bind, manner)
        if changed:  # [Note: set once]
            first, manner = run, manner._replace(kept=None)
            run, changed_again = _record_with_data_known(model, batch, bind, manner)
            is_only_filled_in = all(change.is_filled_in for change in changed)
            if changed_again or not (is_only_filled_in or same_calls(first.graph, run.graph)):
                raise changed[0].refusal()
    let_stand(changed)
    return run._replace(seconds=time.perf_counter() - began_s)


class _Manner(NamedTuple):
    """How to record: as for ``record``; and the calls that are to run without data.

    ``kept`` are the model's attributes, if it has not run since or they have been put back.
    """

    updated: Collection[str]
    blocks: Sequence[str | type[nn.Module] | Open]
    meter: Meter | None
    without_data: set[int]
    keeps_attributes: bool
    draws: Draws | None
    kept: Kept | None


def _record_with_data_known(
    model: nn.Module, batch: Any, bind: Callable[[Any], Arguments], manner: _Manner
) -> tuple[Run, list[Changed]]:
    """Do what ``_record_once`` does; find out what it needs to be told about the run."""
    while True:
        if manner.draws is None and model in _DRAW_FROM_PYTHON:
            manner = manner._replace(draws=AnyDraws())
        try:
            return _record_once(model, batch, bind, manner)
        except RunWithoutDataError as error:
            manner.without_data.add(error.call)
        except PythonDrawnError:
            _DRAW_FROM_PYTHON.add(model)
        except UnseenDrawsError:
            _DRAW_UNSEEN.add(model)


def _record_once(
    model: nn.Module, batch: Any, bind: Callable[[Any], Arguments], manner: _Manner
) -> tuple[Run, list[Changed]]:
    """Return a recording, and the attributes between blocks that making it has changed."""
    own = map_tree(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, batch)
    named = [(name, leaf) for name, leaf in named_leaves(own) if isinstance(leaf, Tensor)]
    arguments = bind(own)
    inputs = [leaf for _, leaf in named]
    tree = tree_of(model)
    keeping = attributes_kept(model, manner.kept, on_success=manner.keeps_attributes)
    with _tree_left_as_it_was(tree) as saved, keeping as kept, _unwritten(inputs):
        recorder = Recorder(
            tree, inputs, manner.blocks, manner.without_data, manner.draws,
            draws_unseen=model in _DRAW_UNSEEN,
        )  # fmt: skip
        versions = recorder.registered.versions()
        attributes = AttributesWatched(tree, recorder.blocks)
        shared = SharedObjects(recorder.blocks, kept.before)
        metered = manner.meter.during(recorder.calls) if manner.meter else nullcontext()
        listening = intercepted(recorder.blocks, recorder, recorder.name_of)
        with listening, without_nested_tensors(), metered:
            output = map_tree(_used, call_forward(model, arguments))
            recorder.drawing.run_ends()
            recorder.block_attributes.run_ends()
        tree = tree_of(model)
        attributes.look(tree)
        shared.check()
        registered = registered_in(tree)
        _refuse_replaced(recorder.registered.identities(), registered.identities(), recorder)
        _refuse_written(registered.versions(), versions)
        written = {buffer.name for buffer in saved if buffer.differs()}
        written |= {*manner.updated, *recorder.updated_without_data()}
        names = tuple(name for name, _ in named)
        graph = finished(recorder, names, output, written)
        recorder.check_opened(graph)
        refuse_overlapping_buffers({b.name: b.tensor for b in saved}, written)
        refuse_counting(model, graph, kept.before)

        def is_derived(tensor: Tensor) -> bool:
            value = recorder.values.find(tensor)
            return value is not None and graph.values[value].derived

        recorder.block_attributes.settle(is_derived)
        changed = attributes.changed(is_derived)
        kept.let_stand(changed)
    if recorder.checkpointed:
        _log.warning(
            "forward calls %s under torch.utils.checkpoint(use_reentrant=False) between blocks, "
            "which a pipeline does not repeat: the numbers are the same, the memory is not; use "
            'Pipeline(..., recompute="all"), or checkpoint inside the blocks',
            recorder.checkpointed[0],
        )
    return Run(graph, output, tuple(draft.tensor for draft in recorder.values.drafts)), changed


def _used(leaf: Any) -> Any:
    """Make a parameter that is returned as it is a use of it, which some stage then holds."""
    return leaf.view_as(leaf) if isinstance(leaf, nn.Parameter) else leaf


@contextmanager
def _unwritten(batch: Sequence[Tensor]) -> Iterator[None]:
    """Put tensors of a batch back that ``forward`` writes to: it is yet to be trained on."""
    before = [(leaf, version_of(leaf), leaf.clone()) for leaf in batch if not leaf.is_meta]
    try:
        yield
    finally:
        with torch.no_grad():
            for leaf, version, content in before:
                if version_of(leaf) != version:
                    leaf.copy_(content)


def call_forward(model: nn.Module, arguments: Arguments) -> Any:
    """Call the model while it is recorded; frames beyond this one are not the model's."""
    try:
        return model(*arguments.args, **arguments.kwargs)
    except PipelineError:
        raise
    except Exception as error:
        given = [f"{len(arguments.args)} positional arguments"] if arguments.args else []
        given += sorted(arguments.kwargs)
        msg = (
            f"{type(model).__name__}.forward raised {type(error).__name__} when called with "
            f"{', '.join(given)}: {error}"
        )
        if isinstance(error, TypeError) and (remedy := missing_arguments(model, arguments)):
            msg += f"; {remedy}"
        raise CaptureError(msg) from error


def _refuse_replaced(before: dict[str, int], after: dict[str, int], recorder: Recorder) -> None:
    inside = tuple(f"{name}." for name in recorder.blocks.values())
    for name, identity in after.items():
        if before.get(name) != identity and not name.startswith(inside):
            msg = (
                f"forward replaces {name} between blocks, which a recording cannot repeat; "
                f"write to it in place ({name}.copy_(...))"
            )
            raise CaptureError(msg)


def _refuse_written(after: dict[str, int], before: dict[str, int]) -> None:
    for name, version in after.items():
        if version != before.get(name, version):
            raise refusals.parameter_written(name, "inside the block that has it")


class _Buffer(NamedTuple):
    """A buffer with data: its name, the table it is registered in, its key there, its value."""

    name: str
    table: dict[str, Tensor | None]
    key: str
    tensor: Tensor
    value: Tensor

    def differs(self) -> bool:
        """Tell whether what is registered now has another value."""
        now = self.table[self.key]
        return now is not None and not now.is_meta and not torch.equal(now.detach(), self.value)

    def put_back(self) -> None:
        """Register the tensor again, which a block may have replaced, with its value."""
        self.table[self.key] = self.tensor
        self.tensor.copy_(self.value)


def left_as_it_was(model: nn.Module) -> AbstractContextManager[list[_Buffer]]:
    """Put buffers, random state and ``use_cache`` back afterwards; yields the buffers."""
    return _tree_left_as_it_was(tree_of(model))


@contextmanager
def _tree_left_as_it_was(tree: Tree) -> Iterator[list[_Buffer]]:
    buffers = [
        _Buffer(f"{path}.{key}" if path else key, module._buffers, key, tensor, _copy(tensor))
        for path, module in tree.all_named
        for key, tensor in module._buffers.items()
        if tensor is not None and not tensor.is_meta
    ]
    devices = range(torch.cuda.device_count())
    try:
        with (
            torch.random.fork_rng(devices=devices),
            _without_cache(tree),
            python_generators_kept(),
        ):
            yield buffers
    finally:
        with torch.no_grad():
            for buffer in buffers:
                buffer.put_back()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def without_cache(model: nn.Module) -> AbstractContextManager[None]:
    """Switch Hugging Face's ``use_cache`` off while the context is open: training has no use."""
    return _without_cache(tree_of(model))


@contextmanager
def _without_cache(tree: Tree) -> Iterator[None]:
    cached = [c for c in _configurations(tree) if getattr(c, "use_cache", False)]
    if cached:
        _log.info("running %s with use_cache=False", type(tree.model).__name__)
    for configuration in cached:
        configuration.use_cache = False
    try:
        yield
    finally:
        for configuration in cached:
            configuration.use_cache = True


@contextmanager
def without_nested_tensors() -> Iterator[None]:
    """Keep ``nn.TransformerEncoder`` from packing padded rows between blocks while this is open.

    In evaluation it may, after it has looked at an activation together with the mask, turn a padded
    batch into a nested tensor, which no message can carry; the plain way gives the same numbers
    where there is no padding.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _configurations(tree: Tree) -> list[Any]:
    """Return the configuration objects (Hugging Face) that modules carry."""
    with_one = {kind for kind in set(map(type, tree.name_of)) if hasattr(kind, "config")}
    holders = (m for m in tree.name_of if "config" in vars(m) or type(m) in with_one)
    found = {id(holder.config): holder.config for holder in holders}
    return list(found.values())
