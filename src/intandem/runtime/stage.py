"""One stage of a recording, ready to run: its calls replayed on the user's own modules."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from intandem.errors import CaptureError
from intandem.recorder.cut import reads
from intandem.recorder.graph import Ref, Site, refs
from intandem.recorder.python_state import seed_python_generators
from intandem.recorder.templates import compile_template
from intandem.recorder.trees import leaves
from intandem.runtime.inner import WithInner, reading
from intandem.runtime.randomness import (
    KeyedRandom,
    default_generators_seeded,
    draw_key,
    python_generators_seeded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from intandem.recorder import Call, Graph, Guard
    from intandem.recorder.cut import StageGraph
    from intandem.recorder.graph import Autocast
    from intandem.runtime.weights import Weights

_NEED_GRADIENTS = frozenset(["register_hook", "retain_grad"])
_COMPARED = (int, float, complex, bool, str, bytes, type(None))

Environment = dict[int, Tensor]
"""Tensors of one micro-batch by value of the recording."""


class Draw(NamedTuple):
    """What keys the random draws of one micro-batch: seed of the run, step, micro-batch."""

    seed: int
    step: int
    microbatch: int

    def random(self, site: Site) -> AbstractContextManager[Any]:
        """Return the context under which ``site`` draws."""
        key = draw_key(self.seed, self.step, self.microbatch, site)
        torchs = default_generators_seeded(key) if site.recomputed else KeyedRandom(key)
        return _with_python(torchs, key) if site.python else torchs

    def seed_python(self, number: int) -> bool:
        """Seed Python's and NumPy's generators for what follows the block of that number."""
        site = Site("python", number)
        seed_python_generators(draw_key(self.seed, self.step, self.microbatch, site))
        return True


@contextmanager
def _with_python(torchs: AbstractContextManager[Any], key: int) -> Iterator[None]:
    with torchs, python_generators_seeded(key):
        yield


@dataclass(frozen=True, slots=True)
class _Replay:
    """One call, prepared.

    Attributes:
        call: which.
        function: finds what is called.
        args: makes its positional arguments.
        kwargs: makes the others.
        done_with: values that nothing reads after it.
        is_plain: whether it needs no context besides the stage's own.
        needs_gradients: whether it is left out where there are none.
        result: the value that it makes, where it makes one and does nothing else.
    """

    call: Call
    function: Callable[[], Callable[..., Any]]
    args: Callable[[Environment], Sequence[Any]]
    kwargs: Callable[[Environment], dict[str, Any]]
    done_with: tuple[int, ...]
    is_plain: bool
    needs_gradients: bool
    result: int | None


class Stage:
    """Runs the forward of one stage for one micro-batch at a time.

    Args:
        graph: the recording.
        cut: this stage's part of it.
        weights: finds the modules and parameters that calls use.
        replica: which one of the pipeline's this is a stage of.

    Attributes:
        leaves: received values that gradients flow back through.
        draws_in_backward: whether its backward draws random numbers again.
        updates: names of the buffers that it writes to.
    """

    def __init__(self, graph: Graph, cut: StageGraph, weights: Weights, replica: int = 0) -> None:
        self.graph = graph
        self.cut = cut
        self._weights = weights
        self._replica = replica
        last_use = self._last_uses()
        self._replays = tuple(
            self._prepare(index, tuple(v for v, last in last_use.items() if last == index))
            for index in cut.calls
        )
        sites = (graph.calls[index].site for index in cut.calls)
        self.draws_in_backward = any(site is not None and site.recomputed for site in sites)
        self._output = self._load(graph.output, None)
        received = {value for values in cut.received.values() for value in values}
        self.leaves = frozenset(v for v in received if graph.values[v].requires_grad)
        self.updates = tuple(sorted({n for i in cut.calls for n in graph.calls[i].updates}))

    def run(
        self,
        environment: Environment,
        draw: Draw,
        *,
        with_gradients: bool,
        observe: Callable[[Call, Any], None] | None = None,
    ) -> None:
        """Replay the calls; ``environment`` gains what they make and loses what is used up.

        Args:
            environment: the batch's and the received tensors of the stage, by value.
            draw: keys random draws.
            with_gradients: False computes without an autograd graph.
            observe: shown every call and what it returned.
        """
        with torch.set_grad_enabled(with_gradients):
            for replay in self._replays:
                if replay.needs_gradients and not with_gradients:
                    continue
                args, kwargs = replay.args(environment), replay.kwargs(environment)
                if replay.is_plain:
                    result = replay.function()(*args, **kwargs)
                else:
                    result = _run_in_context(replay, draw, args, kwargs)
                if replay.result is not None and isinstance(result, Tensor):
                    environment[replay.result] = result
                else:
                    result = _keep(replay.call, result, environment)
                if observe is not None:
                    observe(replay.call, result)
                for value in replay.done_with:
                    del environment[value]

    def call_again(self, guard: Guard, environment: Environment) -> object:
        """Return what ``guard`` gives on an environment."""
        args = self._load(guard.args, None)(environment)
        return guard.target(*args, **self._load(guard.kwargs, None)(environment))

    def parameters(self) -> list[Tensor]:
        """Return the leaves that this stage's calls use."""
        found: dict[int, Tensor] = {}
        for index in self.cut.calls:
            call = self.graph.calls[index]
            for name in call.parameters:
                leaf = self._weights.tensor(name, call, self._replica)()
                found[id(leaf)] = leaf
        return list(found.values())

    def output(self, environment: Environment) -> Any:
        """Return what the model returns, from the last stage's environment."""
        return self._output(environment)

    def _last_uses(self) -> dict[int, int]:
        """Return for each value that may be dropped the call that reads it last."""
        last: dict[int, int] = {}
        for index in self.cut.calls:
            for value in reads(self.graph, index):
                last[value] = index
        kept = {v for values in self.cut.sent.values() for v in values}
        if self.cut.returns_output:
            kept |= set(refs(self.graph.output))
        return {value: index for value, index in last.items() if value not in kept}

    def _prepare(self, index: int, done_with: tuple[int, ...]) -> _Replay:
        call = self.graph.calls[index]
        target = call.target
        if target is None:
            function = self._weights.block(call, self._replica)
            if call.inner:
                function = reading(function, call.name, [place for place, _ in call.inner])
        else:

            def function() -> Callable[..., Any]:
                return target

        makes_one = len(call.outputs) == 1 and not (call.renewed or call.inner)
        return _Replay(
            call=call,
            function=function,
            args=self._load_args(call),
            kwargs=self._load(call.kwargs, call) if call.kwargs else _no_kwargs,
            done_with=done_with,
            is_plain=call.grad_enabled and call.site is None and not call.autocast,
            needs_gradients=call.name in _NEED_GRADIENTS,
            result=call.outputs[0] if makes_one else None,
        )

    def _load_args(self, call: Call) -> Callable[[Environment], Sequence[Any]]:
        """Return what makes positional arguments; most calls have one, a tensor."""
        if len(call.args) == 1 and isinstance(only := call.args[0], Ref):
            value = only.value
            return lambda environment: (environment[value],)
        fill: Callable[[Environment], Sequence[Any]] = self._load(call.args, call)
        return fill

    def _load(self, template: Any, call: Call | None) -> Callable[[Environment], Any]:
        """Return what fills a template's Ref and Attr from an environment."""
        return compile_template(
            template, lambda name: self._weights.tensor(name, call, self._replica)
        )


def in_autocast(states: Sequence[Autocast]) -> AbstractContextManager[None]:
    """Return the mixed-precision states that something was recorded or asked for under."""
    return _in_autocast(states) if states else nullcontext()


@contextmanager
def _in_autocast(states: Sequence[Autocast]) -> Iterator[None]:
    with ExitStack() as contexts:
        for state in states:
            contexts.enter_context(torch.autocast(state.device_type, state.dtype, state.enabled))
        yield


def _run_in_context(
    replay: _Replay, draw: Draw, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    call = replay.call
    grad = nullcontext() if call.grad_enabled else torch.no_grad()
    random = nullcontext() if call.site is None else draw.random(call.site)
    with grad, in_autocast(call.autocast), random:
        return replay.function()(*args, **kwargs)


def _refuse_other_result(call: Call, found: str, recorded: str) -> NoReturn:
    msg = (
        f"{call.name} returned {found} where it returned {recorded} when it was recorded, at "
        f"{call.location}, and what follows may depend on it; return it as a tensor"
    )
    raise CaptureError(msg)


def _no_kwargs(environment: Environment) -> dict[str, Any]:
    del environment
    return {}


def _keep_inner(call: Call, result: WithInner, environment: Environment) -> Any:
    for (_, value), tensor in zip(call.inner, result.tensors, strict=True):
        environment[value] = tensor
    return result.output


def _keep(call: Call, result: Any, environment: Environment) -> Any:
    """Put into an environment what a call made, and return what it returned."""
    if call.inner:
        result = _keep_inner(call, result, environment)
    if isinstance(result, Tensor):
        (value,) = call.outputs
        if value is not None:
            environment[value] = result
    elif call.outputs:
        found = leaves(result)
        if len(found) != len(call.outputs):
            _refuse_other_result(call, f"{len(found)} leaves", f"{len(call.outputs)}")
        for value, leaf, recorded in zip(call.outputs, found, call.returned, strict=True):
            if value is not None:
                environment[value] = leaf
            elif isinstance(leaf, _COMPARED) and leaf != recorded:
                _refuse_other_result(call, repr(leaf), repr(recorded))
    for old, new in call.renewed:
        environment[new] = environment[old]
    return result
