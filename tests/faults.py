"""Faults that a pipeline could have, applied to the library while it runs.

Each function of FAULTS takes ``patch(owner, name, value)`` and breaks the pipeline's side alone:
the plain model, which is the witness, runs no code that they touch.
"""

from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from intandem.equality import shared, witness
from intandem.ir import ActionKind
from intandem.pipeline import Pipeline, study
from intandem.recorder import CallKind
from intandem.recorder.trees import map_tree
from intandem.runtime import huggingface, microbatch, passes, stage, tied
from intandem.runtime.losses import LossTerm
from intandem.runtime.passes import Pass
from intandem.runtime.ranks import LocalRanks
from intandem.runtime.stage import Draw, Stage

FAULTS = {}


def fault(function):
    """Enter a function in FAULTS."""
    FAULTS[function.__name__] = function
    return function


def instead(patch, owner, name):
    """Let a function that is given the original first take its place."""

    def enter(function):
        original = getattr(owner, name)
        patch(owner, name, lambda *args, **kwargs: function(original, *args, **kwargs))

    return enter


def calls_changed(patch, change):
    """Let ``change(stage, call, function)`` return what runs in place of a call's function."""

    @instead(patch, Stage, "_prepare")
    def prepare(original, self, index, done_with):
        replay = original(self, index, done_with)
        return replace(replay, function=lambda: change(self, replay.call, replay.function()))


@fault
def gradient_scale_missing(patch):
    patch(passes, "gradient_seed", lambda term, weight: torch.ones_like(term.root))


@fault
def mean_of_means(patch):
    for module in (passes, study):

        @instead(patch, module, "loss_term")
        def mean(original, *args):
            term = original(*args)
            if term.count is None:
                return term
            return LossTerm(term.root / max(term.count, 1.0), None)


@fault
def tied_copy_dropped(patch):
    @instead(patch, tied.TiedGradients, "_contribute")
    def contribute(original, self, index, parameter, transport, step):
        for use, _ in parameter.uses[1:]:
            self._weights.leaf(parameter.name, use).grad = None
        original(self, index, parameter, transport, step)


@fault
def second_use_lost(patch):
    patch(tied, "_take", lambda leaf: None)


@fault
def skip_gradient_lost(patch):
    @instead(patch, Pass, "_backward")
    def backward_of(original, self, action):
        for source, target, index in list(self._at_hand):
            if target == action.stage and source > target + 1:
                payload = self._at_hand[source, target, index]
                self._at_hand[source, target, index] = (None,) * len(payload)
        original(self, action)


@fault
def buffers_updated_again_by_recomputation(patch):
    @instead(patch, Pass, "_recompute")
    def recompute(original, self, action):
        key = (action.stage, action.microbatch)
        self._deferred[key] = replace(self._deferred[key], buffers={})
        original(self, action)


@fault
def buffer_update_lost(patch):
    @instead(patch, Pass, "_forward")
    def forward(original, self, action):
        updates = self._stage(action.stage, action.microbatch).updates
        before = self._weights.copy_buffers(updates)
        original(self, action)
        for name in updates if action.microbatch else ():
            self._weights._model.get_buffer(name).data.copy_(before[name])


@fault
def microbatch_dropped(patch):
    @instead(patch, Pass, "_finish_microbatch")
    def finish(original, self, stage, environment, microbatch, kept):
        original(self, stage, environment, microbatch, kept)
        if microbatch == 1:
            kept.ends.clear()


@fault
def microbatches_swapped(patch):
    @instead(patch, LocalRanks, "execute")
    def execute(original, self, work):
        return original(self, replace(work, microbatches=work.microbatches[::-1]))


@fault
def draws_anew_under_recomputation(patch):
    @instead(patch, Pass, "_recompute")
    def recompute(original, self, action):
        self._draw = lambda microbatch: Draw(self._work.seed + 1, self._work.step, microbatch)
        original(self, action)
        del self._draw


@fault
def draws_keyed_without_microbatch(patch):
    patch(Pass, "_draw", lambda self, microbatch: Draw(self._work.seed, self._work.step, 0))


@fault
def write_in_place_lost(patch):
    def change(stage, call, function):
        if call.kind is not CallKind.GLUE or not call.written:
            return function
        return lambda first, *args, **kwargs: function(first.clone(), *args, **kwargs)

    calls_changed(patch, change)


@fault
def derived_value_wrong_on_a_stage(patch):
    def change(stage, call, function):
        made = [stage.graph.values[v] for v in call.outputs if v is not None]
        if stage.cut.stage == 0 or not made or not all(value.derived for value in made):
            return function
        return lambda *args, **kwargs: map_tree(_slightly_larger, function(*args, **kwargs))

    calls_changed(patch, change)


@fault
def autocast_dropped(patch):
    patch(stage, "in_autocast", lambda states: nullcontext())


@fault
def blocks_in_evaluation_mode(patch):
    def change(stage, call, function):
        return function.eval() if call.kind is CallKind.BLOCK else function

    calls_changed(patch, change)


@fault
def labels_counted_unshifted(patch):
    patch(huggingface, "count_labels", lambda model, batch: int((batch["labels"] != -100).sum()))


@fault
def padding_counted(patch):
    patch(huggingface, "count_labels", lambda model, batch: batch["labels"][..., 1:].numel())


@fault
def rounded_on_the_wire(patch):
    @instead(patch, Pass, "_hand_over")
    def hand_over(original, self, action, target, payload):
        original(self, action, target, map_tree(_rounded, payload))


@fault
def boundary_off_by_one(patch):
    def change(stage, call, function):
        first = next(i for i in stage.cut.calls if stage.graph.calls[i].kind is CallKind.BLOCK)
        if stage.cut.stage == 0 or call is not stage.graph.calls[first]:
            return function
        before = stage._weights._model.get_submodule(stage.graph.calls[first - 1].name)
        return lambda x: function(before(x))

    calls_changed(patch, change)


@fault
def gradients_added_twice(patch):
    @instead(patch, Pipeline, "step")
    def step(original, self, batch):
        loss = original(self, batch)
        last = list(self.parameters())[-1]
        if self.num_ranks > 1:
            last.grad = last.grad * 2
        return loss


@fault
def gradient_of_another_microbatch(patch):
    """Only where several micro-batches are in flight, so one at a time does not show it."""

    @instead(patch, Pass, "_backward")
    def backward_of(original, self, action):
        waiting = [k for k in self._kept if k[0] == action.stage and k[1] != action.microbatch]
        if waiting and action.kind is ActionKind.B:
            own = (action.stage, action.microbatch)
            self._kept[own], self._kept[waiting[0]] = self._kept[waiting[0]], self._kept[own]
        original(self, action)


@fault
def loss_value_of_the_first_microbatch(patch):
    @instead(patch, Pass, "_finish_microbatch")
    def finish(original, self, stage, environment, microbatch, kept):
        original(self, stage, environment, microbatch, kept)
        terms = self._work.tally._terms
        terms[microbatch] = terms[min(terms)]


@fault
def rows_given_twice(patch):
    """In the split that the witness shares."""

    @instead(patch, microbatch, "_part")
    def part(original, batch, names, columns, index):
        return original(batch, names, columns, 1 if index == 2 else index)


@fault
def labels_counted_unshifted_everywhere(patch):
    """In the count that the witness shares."""
    for module in (huggingface, witness, shared):
        labels_counted_unshifted(lambda owner, name, value, own=module: patch(own, name, value))


@contextmanager
def broken(name):
    """Break the library in this process, and mend it afterwards."""
    with ExitStack() as mending:

        def patch(owner, attribute, value):
            mending.callback(setattr, owner, attribute, getattr(owner, attribute))
            setattr(owner, attribute, value)

        FAULTS[name](patch)
        yield


def _slightly_larger(leaf):
    return leaf * 1.01 if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _rounded(leaf):
    return leaf.bfloat16().to(leaf.dtype) if isinstance(leaf, Tensor) else leaf
