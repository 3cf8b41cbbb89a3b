"""What one rank holds and does during one pass: messages at hand, and what forwards keep."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.errors import RunError
from intandem.ir import Action, ActionKind, Arrival, Compute, Recompute, Span
from intandem.recorder.graph import Site
from intandem.runtime import backward
from intandem.runtime.loss_guard import Origin
from intandem.runtime.losses import LossTerm, draws_nothing, gradient_seed, loss_term
from intandem.runtime.observer import Where
from intandem.runtime.stage import Draw, in_autocast
from intandem.runtime.transport.protocol import Label
from intandem.runtime.whole_batch import WholeBatch
from intandem.runtime.work import Mode, RankResult

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from intandem.recorder import Call
    from intandem.runtime.backward import Kept
    from intandem.runtime.interpreter import Transit
    from intandem.runtime.stage import Environment, Stage
    from intandem.runtime.transport.protocol import Contract, Payload, Seen, Transport
    from intandem.runtime.weight_gradients import Pending
    from intandem.runtime.weights import Weights
    from intandem.runtime.work import StepWork


_LOSS = Site("loss", 0)


@dataclass(frozen=True, slots=True)
class _Deferred:
    """What a forward that is to be run again keeps: what it was given, and buffers as they were."""

    given: dict[int, Tensor]
    buffers: dict[str, Tensor]


class Pass:
    """State of one pass on one rank.

    Args:
        rank: which.
        transport: its end of the transport.
        weights: the model's parameters and buffers.
        work: what all ranks do together.
    """

    def __init__(
        self,
        rank: int,
        transport: Transport,
        weights: Weights,
        work: StepWork,
    ) -> None:
        self.result = RankResult(rank)
        self._rank = rank
        self._transport = transport
        self._weights = weights
        self._work = work
        placement, num_microbatches = work.program.placement, len(work.microbatches)
        self._replica_of = [
            placement.replica_of(m, num_microbatches) for m in range(num_microbatches)
        ]
        self._num_untold = Counter(self._replica_of)
        self._telling: list[Thread] = []
        self._rank_of = placement.rows
        self._last_stage = work.program.placement.num_stages - 1
        self._training = work.mode is Mode.TRAIN
        self._at_hand: dict[tuple[int, int, int], Payload] = {}
        self._to_send: dict[tuple[int, int, int], Payload] = {}
        self._kept: dict[tuple[int, int], Kept] = {}
        self._pending: dict[tuple[int, int], Pending] = {}
        self._deferred: dict[tuple[int, int], _Deferred] = {}
        self._recomputed_last: tuple[Action, float] | None = None
        self._whole = self._whole_batch()
        self._outputs: dict[int, Any] = {}
        self._recomputed = {
            i.action.stage for i in work.program.instructions[rank] if isinstance(i, Recompute)
        }

    # Messages.

    def post(self, transit: Transit) -> None:
        """Make ready to receive."""
        label = Label(self._work.sequence, transit.tag)
        self._transport.post(transit.peer, label, self._contract(transit))

    def transmit(self, transit: Transit) -> None:
        """Send what an action left."""
        payload = self._to_send.pop(transit.key, ())  # what another micro-batch sends
        label = Label(self._work.sequence, transit.tag)
        self._transport.send(transit.peer, label, payload, self._contract(transit))

    def receive(self, transit: Transit) -> None:
        """Wait for a message and put it at hand."""
        label = Label(self._work.sequence, transit.tag)
        like = self._like(transit)
        self._at_hand[transit.key] = self._transport.wait(transit.peer, label, like=like)
        self.result.arrivals.append(Arrival(self._rank, transit.message, time.perf_counter()))

    def _like(self, transit: Transit) -> Seen | None:
        """Return what messages of this recording have in common; see ``Transport.wait``."""
        _, _, microbatch = transit.key
        seen = self._work.microbatches[microbatch].recorded.seen
        return seen[self._work.tally.weighs(microbatch)]

    def finish(self) -> None:
        """Make sure that what was received is what it should be."""
        self._transport.verify()

    def _hand_over(self, action: Action, target: int, payload: Payload) -> None:
        key = (action.stage, target, action.microbatch)
        replica = self._replica_of[action.microbatch]
        if self._rank_of[replica][target] == self._rank:
            self._at_hand[key] = payload
        else:
            self._to_send[key] = payload

    def _contract(self, transit: Transit) -> Contract:
        source, target, microbatch = transit.key
        return self._work.microbatches[microbatch].recorded.contracts.get((source, target), ())

    # Computing.

    def compute(self, instruction: Compute | Recompute) -> None:
        """Run one action and note when: from its recomputation on, if that came right before."""
        action = instruction.action
        before, self._recomputed_last = self._recomputed_last, None
        start_s = time.perf_counter()
        if isinstance(instruction, Recompute):
            self._recompute(action)
            self._recomputed_last = (action, start_s)
            return
        if action.kind is ActionKind.F:
            self._forward(action)
        else:
            self._backward(action)
            if before is not None and _slot(before[0]) == _slot(action):
                start_s = before[1]
        self.result.spans.append(Span(self._rank, action, start_s, time.perf_counter()))

    def _forward(self, action: Action) -> None:
        stage = self._stage(action.stage, action.microbatch)
        given = self._given(stage, action)
        is_deferred = action.stage in self._recomputed
        if is_deferred:
            buffers = self._weights.copy_buffers(stage.updates)
            self._deferred[action.stage, action.microbatch] = _Deferred(given, buffers)
        keep = self._training and not is_deferred
        environment, kept = self._run(stage, given, action, with_gradients=keep)
        if keep:
            self._kept[action.stage, action.microbatch] = kept
        if action.stage == self._last_stage:
            self._finish_microbatch(stage, environment, action.microbatch, kept)
        for target, values in stage.cut.sent.items():
            payload = tuple([environment[value].detach() for value in values])
            self._hand_over(action, target, payload)

    def _recompute(self, action: Action) -> None:
        """Run a forward again, with buffers as they were, and leave them as they are."""
        stage = self._stage(action.stage, action.microbatch)
        deferred = self._deferred.pop((action.stage, action.microbatch))
        with self._weights.buffers_as(deferred.buffers):
            environment, kept = self._run(stage, deferred.given, action, with_gradients=True)
            if action.stage == self._last_stage:
                self._find_ends_again(stage.output(environment), action.microbatch, kept)
        self._kept[action.stage, action.microbatch] = kept

    def _run(
        self, stage: Stage, given: dict[int, Tensor], action: Action, *, with_gradients: bool
    ) -> tuple[Environment, Kept]:
        recomputed = with_gradients and action.stage in self._recomputed
        environment, kept = backward.enter(stage, given, with_gradients=with_gradients)
        stage.run(
            environment,
            self._draw(action.microbatch),
            with_gradients=with_gradients,
            observe=self._observe(stage, action, recomputed=recomputed),
        )
        if with_gradients:
            backward.leave(stage, environment, kept)
        return environment, kept

    def _finish_microbatch(
        self, stage: Stage, environment: Environment, microbatch: int, kept: Kept
    ) -> None:
        output = stage.output(environment)
        if self._work.observer is not None:
            self._work.observer.on_output(microbatch, output)
        if self._work.mode is Mode.PREDICT:
            self.result.outputs[microbatch] = output
        else:
            self._take_in(output, microbatch, kept)
        self._tell(microbatch)

    def _take_in(self, output: Any, microbatch: int, kept: Kept) -> None:
        """Compute the loss of a micro-batch, or of all of them once they are there."""
        keep = self._training and self._last_stage not in self._recomputed
        if self._whole is not None:
            if keep:
                self._outputs[microbatch] = output
            self._join(self._whole, microbatch, output)
            return
        term = self._loss(output, microbatch, keep=keep)
        weight = self._work.tally.add(microbatch, term)
        self._keep_loss(kept, term, weight)

    def _tell(self, microbatch: int) -> None:
        """With the last micro-batch of a replica, tell every rank the losses known here.

        They are told before the backwards, so that no rank waits for the end of another's.
        """
        replica = self._replica_of[microbatch]
        self._num_untold[replica] -= 1
        if self._num_untold[replica]:
            return
        if not self._work.is_told:
            self._work.tally.begin_reading()  # so that reports wait for nothing more
            return
        key, tally = self._work.end_of_forwards(replica), self._work.tally
        if self._work.mode is Mode.PREDICT:
            self._transport.publish(key, b"")
        elif (keep := tally.begin_reading()) is None:
            self._transport.publish(key, tally.told())
        else:
            tell = partial(self._tell_once_read, key, keep)
            self._telling.append(Thread(target=tell, name=f"tell {key}", daemon=True))
            self._telling[-1].start()

    def end(self) -> None:
        """Wait until all losses have been told."""
        for thread in self._telling:
            thread.join()

    def _tell_once_read(self, key: str, keep: Callable[[], None]) -> None:
        keep()
        with suppress(RunError):  # who computes meets the same one
            self._transport.publish(key, self._work.tally.told())

    def _find_ends_again(self, output: Any, microbatch: int, kept: Kept) -> None:
        if self._whole is not None:
            self._outputs[microbatch] = output
            return
        term = self._loss(output, microbatch, keep=True)
        self._keep_loss(kept, term, self._work.tally.weight(microbatch))

    def _keep_loss(self, kept: Kept, term: LossTerm, weight: float | Tensor) -> None:
        if term.count is not None or weight != 0:
            kept.ends.append((term.root, gradient_seed(term, weight * self._work.scale)))

    def _loss(self, output: Any, microbatch: int, *, keep: bool) -> LossTerm:
        batch = self._work.microbatches[microbatch].batch
        return self._term(output, batch, microbatch, keep=keep)

    def _term(self, output: Any, batch: Any, microbatch: int, *, keep: bool) -> LossTerm:
        origin = Origin(output) if keep and microbatch == 0 and self._work.loss else None
        with torch.set_grad_enabled(keep), in_autocast(self._work.autocast):
            term = loss_term(output, batch, self._work.loss, self._random_of_loss(microbatch))
        if origin is not None:
            origin.check(term.root, self._weights.name_of)
        return term

    def _random_of_loss(self, microbatch: int) -> AbstractContextManager[Any]:
        if self._work.loss is None or draws_nothing(self._work.loss):
            return nullcontext()
        return self._draw(microbatch).random(_LOSS)

    # A loss of the whole batch.

    def _whole_batch(self) -> WholeBatch | None:
        work = self._work
        if work.joining is None or work.mode is Mode.PREDICT:
            return None
        return WholeBatch(work.joining, len(work.microbatches), training=self._training)

    def _join(self, whole: WholeBatch, microbatch: int, output: Any) -> None:
        """Take in an output; with the last one, compute the loss and the outputs' gradients."""
        whole.add(microbatch, output)
        if self._work.joining is None or not whole.is_complete:
            return
        batch = self._work.joining.batch([part.batch for part in self._work.microbatches])
        with torch.set_grad_enabled(self._training):
            joined = whole.output()
        term = self._term(joined, batch, 0, keep=self._training)
        weight = self._work.tally.add(0, term)
        if self._training and term.root.requires_grad:
            torch.autograd.backward(term.root, gradient_seed(term, weight * self._work.scale))

    def _backward(self, action: Action) -> None:
        stage = self._stage(action.stage, action.microbatch)
        key = (action.stage, action.microbatch)
        if action.kind is ActionKind.W:
            backward.backward_weights(self._pending.pop(key))
            return
        if self._whole is not None and action.stage == self._last_stage:
            output = self._outputs.pop(action.microbatch)
            self._kept[key].ends += self._whole.ends(action.microbatch, output)
        gradients: dict[int, Tensor | None] = {}
        for source, values in stage.cut.gradients_received.items():
            arrived = self._at_hand.pop((source, *key))
            gradients.update(zip(values, arrived, strict=True))
        kept = self._kept.pop(key)
        if action.kind is ActionKind.B:
            backward.backward(kept, gradients)
        else:
            self._pending[key] = backward.backward_inputs(kept, gradients)
        for target, values in stage.cut.gradients_sent.items():
            payload = tuple([backward.gradient_to_send(kept, value) for value in values])
            self._hand_over(action, target, payload)

    # Facts.

    def _observe(
        self, stage: Stage, action: Action, *, recomputed: bool
    ) -> Callable[[Call, Any], None] | None:
        if (observer := self._work.observer) is None:
            return None
        where = Where(action.stage, action.microbatch, recomputed)
        return lambda call, result: observer.on_call(stage, call, result, where)

    def _given(self, stage: Stage, action: Action) -> dict[int, Tensor]:
        tensors = self._work.microbatches[action.microbatch].tensors
        given = {value: tensors[value] for value in stage.cut.batch}
        for source, values in stage.cut.received.items():
            arrived = self._at_hand.pop((source, action.stage, action.microbatch))
            for value, tensor in zip(values, arrived, strict=True):
                if tensor is not None:
                    given[value] = tensor
        return given

    def _stage(self, stage: int, microbatch: int) -> Stage:
        stages = self._work.microbatches[microbatch].recorded.stages
        return stages[stage, self._replica_of[microbatch]]

    def _draw(self, microbatch: int) -> Draw:
        return Draw(self._work.seed, self._work.step, microbatch)


def _slot(action: Action) -> tuple[int, int]:
    return action.stage, action.microbatch
