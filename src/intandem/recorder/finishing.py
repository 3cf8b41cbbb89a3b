"""What has been heard of a run becomes a recording: derived values, updated buffers, guards."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from intandem.recorder import refusals
from intandem.recorder.graph import Call, CallKind, Graph, Guard, Value, attrs, reads_of, refs
from intandem.recorder.trees import map_tree

if TYPE_CHECKING:
    from intandem.recorder.recording import Recorder
    from intandem.recorder.values import Draft


def finished(
    recorder: Recorder,
    inputs: tuple[str, ...],
    output: Any,
    updated: set[str],
) -> Graph:
    """Return the recording of what a recorder has listened to.

    Args:
        recorder: when ``forward`` has returned.
        inputs: paths of the batch's tensors.
        output: what ``forward`` returned.
        updated: names of buffers that calls write to.

    Raises:
        CaptureError: if what ``forward`` does next hung on an activation.
    """
    output = map_tree(recorder.template, output)
    given = [refs(call.args, call.kwargs) for call in recorder.calls]
    calls = [
        _with_updates(call, updated)
        for call in _without_dead_renewals(recorder.calls, given, output)
    ]
    reads = [
        reads_of(call) if call.renewed else values
        for call, values in zip(calls, given, strict=True)
    ]
    derived_calls = _derived_calls(calls, reads, recorder, updated)
    values = tuple(_value(draft, derived_calls) for draft in recorder.values.drafts)
    _check_guards(recorder.guards, values, updated | recorder.parameters)
    used = {name for call in calls for name in call.parameters}
    used |= set(attrs(output))
    first_name: dict[int, str] = {}
    for name, parameter in recorder.registered.parameters:
        first_name.setdefault(id(parameter), name)
    unused = tuple(name for name in first_name.values() if name not in used)
    guards, draws_python = tuple(recorder.guards), recorder.drawing.python_between_blocks
    chances = draws_python or _by_chance(calls, reads, values, guards)
    return Graph(
        values, inputs, tuple(calls), guards, output, unused, draws_python, chances,
        recorder.looking.own_backward,
    )  # fmt: skip


def _by_chance(
    calls: list[Call],
    reads: list[list[int]],
    values: tuple[Value, ...],
    guards: tuple[Guard, ...],
) -> bool:
    """Tell whether a guard looks at what was drawn."""
    if not guards:
        return False
    drawn: list[bool] = []
    for call, values_read in zip(calls, reads, strict=True):
        read = [values[v].producer for v in values_read]
        drawn.append(call.site is not None or any(p >= 0 and drawn[p] for p in read))
    looked_at = (values[v].producer for guard in guards for v in refs(guard.args, guard.kwargs))
    return any(producer >= 0 and drawn[producer] for producer in looked_at)


def _with_updates(call: Call, updated: set[str]) -> Call:
    updates = tuple(name for name in call.buffers if name in updated)
    return dataclasses.replace(call, updates=updates) if updates else call


def _without_dead_renewals(calls: list[Call], given: list[list[int]], output: Any) -> list[Call]:
    """Drop (old, new) pairs whose new value nobody reads; ``given`` are the calls' arguments."""
    if not any(call.renewed for call in calls):
        return calls
    used = set(refs(output))
    kept: list[Call] = []
    for call, values in zip(reversed(calls), reversed(given), strict=True):
        pairs = tuple(pair for pair in call.renewed if pair[1] in used)
        used |= {old for old, _ in pairs} | set(values)
        kept.append(dataclasses.replace(call, renewed=pairs) if call.renewed else call)
    return kept[::-1]


def _derived_calls(
    calls: list[Call], reads: list[list[int]], recorder: Recorder, updated: set[str]
) -> list[bool]:
    """Tell which calls' results depend on the batch, constant buffers and keyed draws alone."""
    derived: list[bool] = []
    drafts = recorder.values.drafts

    def value_is_derived(value: int) -> bool:
        producer = drafts[value].producer
        return producer < 0 or derived[producer]

    for index, call in enumerate(calls):
        made = [*(v for v in call.outputs if v is not None), *(new for _, new in call.renewed)]
        made += [value for _, value in call.inner]
        derived.append(
            call.kind is CallKind.GLUE
            and (call.site is None or index in recorder.drawing.keyed)
            and not call.parameters
            and not set(call.buffers) & updated
            and all(map(value_is_derived, reads[index]))
            and not any(drafts[value].requires_grad for value in made)
        )
    return derived


def _value(draft: Draft, derived_calls: list[bool]) -> Value:
    tensor = draft.tensor
    return Value(
        producer=draft.producer,
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        num_bytes=tensor.numel() * tensor.element_size(),
        requires_grad=draft.requires_grad,
        derived=draft.producer < 0 or derived_calls[draft.producer],
        storage=draft.storage,
    )


def _check_guards(guards: list[Guard], values: tuple[Value, ...], changing: set[str]) -> None:
    for guard in guards:
        names = set(attrs(guard.args, guard.kwargs))
        fixed = all(values[value].derived for value in refs(guard.args, guard.kwargs))
        if fixed and not names & changing:
            continue
        raise refusals.depends_on_activation(guard)
