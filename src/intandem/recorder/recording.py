"""Run a model's own ``forward`` once and write down its calls."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from intandem.recorder import refusals
from intandem.recorder.block_state import AttributesOfBlocks
from intandem.recorder.blocks import Inside, Open, find_blocks
from intandem.recorder.carried import refuse_filling
from intandem.recorder.draws import Drawing
from intandem.recorder.functions import (
    function_name,
    is_effect,
    is_forbidden,
    is_getter,
    is_gradient_hook,
    is_metadata,
    is_random,
    looks_at_later_arguments,
    may_draw_or_count,
    may_look_at_numbers,
)
from intandem.recorder.graph import Attr, Call, CallKind, Guard, Ref, Site, draws
from intandem.recorder.guards import refuse_hidden_tensors, shape_guards
from intandem.recorder.hooks import (
    refuse_backward_hooks,
    refuse_late_hook,
    refuse_legacy_hooks,
)
from intandem.recorder.inner import MadeInside
from intandem.recorder.locations import user_location, user_place
from intandem.recorder.looking import Looking
from intandem.recorder.modes import ModesOfRun, autocast_state, saved_tensors_are_hooked
from intandem.recorder.modules import registered_in
from intandem.recorder.skeleton import (
    Activity,
    MadeWithDataError,
    RunWithoutDataError,
    Skeleton,
)
from intandem.recorder.target import Seen, Target
from intandem.recorder.trees import leaves, map_tree, sorted_leaves, tensors_in
from intandem.recorder.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from torch.autograd import Function

    from intandem.recorder.draws import Draws
    from intandem.recorder.graph import Graph
    from intandem.recorder.modules import Tree


class Recorder:
    """Listens to one run of ``forward`` and keeps its calls, values and guards."""

    def __init__(
        self,
        tree: Tree,
        inputs: Sequence[Tensor],
        blocks: Sequence[str | type[nn.Module] | Open] = (),
        without_data: Collection[int] = (),
        draws: Draws | None = None,
        *,
        draws_unseen: bool = False,
    ) -> None:
        self._model = tree.model
        self.blocks = find_blocks(tree.model, blocks)
        self._opened = [one.name for one in blocks if isinstance(one, Open)]
        self.calls: list[Call] = []
        self.guards: list[Guard] = []
        self.values = Values()
        self.checkpointed: list[str] = []
        self._kept: list[Any] = []
        self.drawing = Drawing(draws, every_call=draws_unseen)
        self._modes = ModesOfRun()
        self._calls_of: Counter[str] = Counter()
        self._inside: list[nn.Module] = []
        self.name_of = tree.name_of
        self.registered = registered_in(tree)
        named = [*self.registered.parameters, *self.registered.buffers]
        self._attr_of = {id(tensor): name for name, tensor in reversed(named)}
        self.parameters = {name for name, _ in self.registered.parameters}
        device = next((t.device for t in inputs), torch.device("cpu"))
        self._registered_in = Inside(tree.name_of, self._attr_of)
        self._made_inside = MadeInside(self.blocks, self._registered_in.modules)
        self.block_attributes = AttributesOfBlocks(self.blocks, self._registered_in.modules)
        self._skeleton = Skeleton(device, [tensor for _, tensor in named])
        self.looking = Looking(self._attr_of, self.values, self._made_inside, self._skeleton)
        self._without_data = frozenset(without_data)
        for tensor in inputs:
            self.values.add(tensor, producer=-1)

    # What the interception tells us.

    def on_module(
        self, module: nn.Module, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Keep a block whole; let other modules run, so that their glue is seen."""
        if self.looking.is_open:
            output = proceed(*args, **kwargs)
            self._made_inside.note_module(module, output)
            return output
        if module not in self.blocks:
            refuse_backward_hooks(module, self.name_of.get(module, ""))
            self._inside.append(module)
            try:
                return proceed(*args, **kwargs)
            finally:
                self._inside.pop()
        name = self.blocks[module]
        refuse_legacy_hooks(module, name)
        block = refuse_filling(name, proceed)
        return self._call(Target(CallKind.BLOCK, name, None, module, block), args, kwargs)

    def on_autograd_function(
        self,
        function: type[Function],
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
    ) -> Any:
        """Keep a function with its own autograd whole."""
        self.looking.own_backward |= function is not CheckpointFunction
        if self.looking.is_open:
            self.looking.recomputes |= function is CheckpointFunction
            return proceed(*args, **kwargs)
        apply = functools.partial(_apply, function)
        return self._call(
            Target(CallKind.OPAQUE, function.__name__, apply, None, proceed), args, kwargs
        )

    def on_torch_function(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Write glue down; inside a block, only look."""
        if self.looking.is_open:
            return self.looking.on_function(function, args, kwargs)
        if is_metadata(function):
            return function(*args, **kwargs)
        if is_forbidden(function):
            raise refusals.not_repeatable(function_name(function), user_place())
        if is_gradient_hook(function):
            self.looking.own_backward = True
            refuse_late_hook(self.values.find(args[0]) if args else None, self.calls)
        name = function_name(function)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise refusals.transformed(name, user_place())
        return self._call(Target(CallKind.GLUE, name, function, None, function), args, kwargs)

    # One call.

    def _call(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with torch._C.DisableTorchFunction():
            return self._record(target, args, kwargs)

    def _record(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._modes.check(target.name)
        given, others = sorted_leaves(*args, *kwargs.values())
        if others:
            refuse_hidden_tensors(target.name, others)
        template = map_tree(self.template, (args, kwargs))
        buffers = [] if target.module is None else self._registered_in.buffers(target.module)
        version_of = self._skeleton.version
        watched = {id(t): (t, version_of(t)) for t in [*given, *buffers]}
        autocast = autocast_state()
        self._expect(target, args, kwargs)
        may_draw = target.kind is not CallKind.GLUE or self.looking.drew
        self.drawing.before_call(may_draw=may_draw)
        output = self._run(target, args, kwargs, given)
        drew = self.drawing.after_call() or self.looking.drew
        drew_python = target.kind is CallKind.BLOCK and self.drawing.block_ends()
        written = {k: t for k, (t, before) in watched.items() if version_of(t) != before}
        if written and (names := self.parameters & {self._attr_of.get(k, "") for k in written}):
            raise refusals.parameter_written(min(names), f"at {user_place()}")
        results = tensors_in(output)
        if not written and self._is_nothing_new(target, given, output, results):
            return output
        if not results and not is_effect(target.function or target.proceed):
            self._guard(target, template, given, output)
            return output
        self._guard_shapes(target, given, (args, kwargs), template, output)
        seen = Seen(template, given, list(written.values()), autocast, drew, drew_python)
        self.calls.append(self._as_call(target, seen, output, results))
        self._made_inside.recorded(len(self.calls) - 1)
        self._kept.append((args, kwargs, output))
        return output

    def _as_call(self, target: Target, seen: Seen, output: Any, results: list[Tensor]) -> Call:
        """Make values of what a call returned and wrote to, and write the call down."""
        index = len(self.calls)
        returned = leaves(output)
        outputs = tuple(
            self.values.add(leaf, producer=index) if isinstance(leaf, Tensor) else None
            for leaf in returned
        )
        renewed, storages = self.values.renew(seen.written, results, index)
        parameters, buffers = self._registered_of(target, seen.given)
        of_what = "" if target.module is not None else f"({', '.join(parameters)})"
        anchor = target.name + of_what
        call = self._calls_of[anchor]
        self._calls_of[anchor] += 1
        return Call(
            kind=target.kind,
            name=target.name,
            target=target.function,
            args=seen.template[0],
            kwargs=seen.template[1],
            outputs=outputs,
            returned=tuple(None if isinstance(leaf, Tensor) else leaf for leaf in returned),
            renewed=renewed,
            written=storages,
            parameters=parameters,
            buffers=buffers,
            updates=(),
            grad_enabled=torch.is_grad_enabled(),
            autocast=seen.autocast,
            site=self._site(target, call, seen),
            anchor=anchor,
            call=call,
            location=user_location(),
            unread=self._unread(seen.given) if target.kind is CallKind.BLOCK else (),
        )

    def check_opened(self, graph: Graph) -> None:
        """Refuse draws where blocks are cut inside: they would be keyed by other names.

        Raises:
            CaptureError: naming the blocks.
        """
        if self._opened and draws(graph):
            raise refusals.opened(self._opened, "draws random numbers")

    def _unread(self, given: list[Tensor]) -> tuple[int, ...]:
        values = [self.values.find(t) for t in given if id(t) not in self.looking.read]
        return tuple(value for value in values if value is not None)

    def _expect(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        is_compiled = target.module is not None and self._registered_in.is_compiled(target.module)
        is_hooked = saved_tensors_are_hooked()
        if self._opened and (is_hooked or target.name == CheckpointFunction.__name__):
            raise refusals.opened(self._opened, "runs forwards again in backward")
        if target.kind is CallKind.BLOCK and is_hooked:
            self.checkpointed.append(target.name)
        may_draw = target.kind is CallKind.GLUE and may_draw_or_count(target.proceed)
        self.looking.expect(
            draws=may_draw and is_random(target.proceed, args, kwargs),
            recomputes=target.name == CheckpointFunction.__name__ or is_compiled,
        )

    def _run(
        self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]
    ) -> Any:
        self._made_inside.enter(target.module)
        if target.kind is not CallKind.GLUE:  # torch functions draw from torch's generators
            self.drawing.call_begins()
        if target.module is not None:
            self.block_attributes.call_begins(target.module)
        self.looking.open(given)
        try:
            is_forced = len(self.calls) in self._without_data
            if not is_forced and not self._skeleton.is_needed(target.module, given):
                with torch._C._EnableTorchFunction():
                    if self.looking.drew:
                        with self.drawing.of_glue(len(self.calls)):
                            return target.proceed(*args, **kwargs)
                    return target.proceed(*args, **kwargs)
            name = f"{target.name} at {user_location()}"
            inside = self._model if target.kind is CallKind.OPAQUE else target.module
            activity = Activity(
                name, target.proceed, inside, is_forced, is_block=target.kind is CallKind.BLOCK
            )
            return self._run_without_data(activity, args, kwargs)
        finally:
            self.looking.close()
            if target.module is not None:
                self.block_attributes.call_ends(target.module)

    def _run_without_data(
        self, activity: Activity, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """See [Note: skeleton]."""
        try:
            return self._skeleton.run(activity, args, kwargs)
        except MadeWithDataError as error:
            maker = self.values.first_producer(error.tensor)
            if maker is None or maker < 0 or maker in self._without_data:
                raise
            raise RunWithoutDataError(maker) from error

    def updated_without_data(self) -> set[str]:
        """Return the names of buffers that were written to where there was no data to show it."""
        names = {self._attr_of[id(tensor)] for tensor in self._skeleton.written()}
        return names - self.parameters

    # Values.

    def template(self, leaf: Any) -> Any:
        """Return what stands for ``leaf`` in a recording."""
        if not isinstance(leaf, Tensor):
            return leaf
        if self._skeleton.real_of:
            leaf = self._skeleton.real(leaf)
        if (value := self.values.find(leaf)) is not None:
            return Ref(value)
        if (name := self._attr_of.get(id(leaf))) is not None:
            return Attr(name)
        if self._made_inside.knows(leaf):
            return Ref(self._made_inside.adopt(leaf, self.calls, self.values))
        if leaf.requires_grad:
            raise refusals.not_registered(user_place())
        self._kept.append(leaf)
        return leaf

    def _is_nothing_new(
        self, target: Target, given: list[Tensor], output: Any, results: list[Tensor]
    ) -> bool:
        """A call that returns its argument as it is (``x.to(x.dtype)``), or that has no tensors."""
        if target.kind is not CallKind.GLUE or self.looking.drew:
            return False
        if isinstance(output, Tensor):
            known = self.values.find(output) is not None or id(output) in self._attr_of
            return known and any(output is tensor for tensor in given)
        return not results and (not given or is_getter(target.proceed))

    def _guard(
        self, target: Target, template: tuple[Any, Any], given: list[Tensor], outcome: Any
    ) -> None:
        if not given:
            return
        function = target.function or target.proceed
        self.guards.append(Guard(function, *template, outcome, user_place(), self._module()))

    def _module(self) -> str:
        """Return the name of the innermost module that is not a block; empty for the model."""
        return self.name_of.get(self._inside[-1], "") if self._inside else ""

    def _guard_shapes(
        self,
        target: Target,
        given: list[Tensor],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        template: tuple[Any, Any],
        output: Any,
    ) -> None:
        function = target.function
        if (
            function is None
            or target.kind is not CallKind.GLUE
            or not may_look_at_numbers(function)
        ):
            return
        if looks_at_later_arguments(function) and _is_first(given, arguments[0]):
            return
        found = shape_guards(function, arguments, template, self.template, output)
        self.guards += [dataclasses.replace(guard, module=self._module()) for guard in found]

    def _registered_of(
        self, target: Target, given: list[Tensor]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the parameters that a call uses, and of the buffers it may read."""
        names = {self._attr_of[id(t)] for t in given if id(t) in self._attr_of}
        used, read = names | self.looking.registered, names
        if target.module is not None:
            used |= {self._attr_of[id(p)] for p in self._registered_in.parameters(target.module)}
            read = names | self._registered_in.buffer_names(target.module)
        elif not used:
            return (), ()
        return tuple(sorted(used & self.parameters)), tuple(sorted(read - self.parameters))

    def _site(self, target: Target, call: int, seen: Seen) -> Site | None:
        if not (seen.drew or seen.drew_python):
            return None
        recomputed = self.looking.recomputes
        if target.module is not None:
            return Site(target.name, call, recomputed, seen.drew_python)
        return self.drawing.next_glue(recomputed=recomputed)


def _is_first(given: list[Tensor], args: tuple[Any, ...]) -> bool:
    """Tell whether the first argument is the only tensor that is given."""
    return len(given) == 1 and bool(args) and given[0] is args[0]


def _apply(function: type[Function], *args: Any, **kwargs: Any) -> Any:
    return function.apply(*args, **kwargs)  # type: ignore[no-untyped-call]
