"""How micro-batches' losses become the batch's.

A scalar is a mean over rows: micro-batch i weighs rows_i / rows. A ``LossSum`` weighs by its
count over all micro-batches, which is known only after the last forward; until then gradients are
scaled with what the first micro-batch suggests, and ``LossReport.correction`` puts that right.
Metrics are weighed alike, each by its own count.

Each rank that holds the last stage takes in the losses of its own micro-batches and tells the
others (``told``); a rank that has learned of all of them can report. Where there are several such
ranks, their gradients are added up before the count is known, so all begin with one ``foretold``.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intandem.errors import LossError
from intandem.runtime.loss_report import LossReport
from intandem.runtime.losses import LossTerm, summed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class LossTally:
    """Weighs the micro-batches of one step, on the last stage.

    Args:
        weights: what each micro-batch's scalar loss is multiplied by; a ``LossSum`` goes by its
            count instead.
        is_sum: whether every loss is a ``LossSum`` (true) or none is; None to do as the first.
        foretold: what the counts of all micro-batches add up to, as far as is known beforehand.
    """

    def __init__(
        self,
        weights: Sequence[float],
        *,
        is_sum: bool | None = None,
        foretold: float | None = None,
    ) -> None:
        self._weights = tuple(weights)
        self._is_sum = is_sum
        self._terms: dict[int, LossTerm] = {}
        self._metrics: dict[str, bool] | None = None
        self._provisional: float | Tensor | None = 1.0 / foretold if foretold else None
        self._reading: Callable[[], None] | None = None

    def add(self, microbatch: int, term: LossTerm) -> float | Tensor:
        """Take in one micro-batch's loss and return the gradient that its root is given.

        Raises:
            LossError: if it is a ``LossSum`` and others, or the example's, are not, or the reverse.
        """
        self._enter(microbatch, LossTerm(term.root.detach(), term.count, term.metrics))
        return self.weight(microbatch)

    def _enter(self, microbatch: int, term: LossTerm) -> None:
        is_sum = term.count is not None
        if self._is_sum is None:
            self._is_sum = is_sum
        if is_sum != self._is_sum:
            found, before = ("LossSum", "scalar") if is_sum else ("scalar", "LossSum")
            msg = (
                f"the loss of micro-batch {microbatch} is a {found}, and that of the example or "
                f"of a micro-batch before is a {before}; return the same kind for every batch"
            )
            raise LossError(msg)
        self._check_metrics(microbatch, term)
        self._terms[microbatch] = term

    def _check_metrics(self, microbatch: int, term: LossTerm) -> None:
        if not term.metrics and self._metrics == {}:
            return
        found = _kinds(term)
        if self._metrics is None:
            self._metrics = found
        before = self._metrics
        if found != before:
            msg = (
                f"the metrics of micro-batch {microbatch} are {_said(found)}, and those of a "
                f"micro-batch before are {_said(before)}; return the same for every micro-batch "
                "(what only some have: a LossSum with count 0 in the others)"
            )
            raise LossError(msg)

    def weighs(self, microbatch: int) -> bool:
        """Tell whether a micro-batch's scalar loss counts at all; a ``LossSum`` always does."""
        return microbatch >= len(self._weights) or self._weights[microbatch] != 0

    def weight(self, microbatch: int) -> float | Tensor:
        """Return the gradient that the loss of a micro-batch taken in before is given."""
        count = self._terms[microbatch].count
        if count is None:
            return self._weights[microbatch]
        if self._provisional is None:
            at_least = count.clamp(min=1.0) if isinstance(count, Tensor) else max(count, 1.0)
            self._provisional = 1.0 / (at_least * len(self._weights))
        return self._provisional

    def told(self) -> bytes:
        """Return what was taken in here, for ``learn`` elsewhere; floats survive exactly."""
        terms = {index: _numbers(term) for index, term in list(self._terms.items())}
        provisional = None if self._provisional is None else float(self._provisional)
        return json.dumps([provisional, terms]).encode()

    def begin_reading(self) -> Callable[[], None] | None:
        """Begin to fetch from a GPU what was taken in here; None where nothing is on one.

        What is returned waits for that and keeps the numbers, so that ``told`` waits for nothing;
        ``report`` calls it, from any thread. Asked directly, they would wait for all that the GPU
        has been given since.
        """
        terms, provisional = dict(self._terms), self._provisional
        numbers = [provisional] if isinstance(provisional, Tensor) else []
        for term in terms.values():
            numbers += _on_gpu(term)
        if not numbers:
            return None
        together = torch.stack([number.detach().reshape(()).double() for number in numbers])
        fetched = torch.empty(len(numbers), dtype=torch.float64, pin_memory=True)
        fetched.copy_(together, non_blocking=True)
        is_there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        is_there.record(torch.cuda.current_stream(together.device))

        def keep() -> None:
            is_there.synchronize()
            found = iter(fetched.tolist())
            if isinstance(provisional, Tensor):
                self._provisional = next(found)
            for index, term in terms.items():
                self._terms[index] = _off_gpu(term, found)

        self._reading = keep
        return keep

    def learn(self, told: bytes) -> None:
        """Take in what another rank was told.

        Raises:
            LossError: as ``add``, if losses or metrics there are of another kind than here.
        """
        self._provisional, terms = json.loads(told)
        for index, (value, count, metrics) in terms.items():
            known = {name: LossTerm(_scalar(v), c) for name, (v, c, _) in metrics.items()}
            self._enter(int(index), LossTerm(_scalar(value), count, known))

    def report(self) -> LossReport:
        """Return what every rank needs to know once the last micro-batch is in."""
        if self._reading is not None:
            self._reading()
        terms = [self._terms[index] for index in range(len(self._weights))]
        metrics = {
            name: self._whole([term.metrics[name] for term in terms])[0]
            for name in terms[0].metrics
        }
        value, losses = self._whole(terms)
        return LossReport(value, losses, self._correction(terms), metrics)

    def _whole(self, terms: Sequence[LossTerm]) -> tuple[float, tuple[float, ...]]:
        """Return the whole batch's value and each micro-batch's."""
        if terms[0].count is None:
            # A micro-batch of no weight has no loss: a mean over nothing is not a number.
            pairs = list(zip(self._weights, terms, strict=True))
            values = [float(term.root) if weight else 0.0 for weight, term in pairs]
            total = summed(w * v for w, v in zip(self._weights, values, strict=True))
            return total, tuple(values)
        sums = tuple(float(term.root) for term in terms)
        count = _count(terms)
        return (summed(sums) / count if count else 0.0), sums

    def _correction(self, terms: Sequence[LossTerm]) -> float:
        if terms[0].count is None:
            return 1.0
        count = _count(terms)
        if count == 0 or self._provisional is None:
            return 0.0
        scaled = float(self._provisional) * count
        factor = 1.0 / scaled if scaled else math.inf
        return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-15) else factor


def _count(terms: Sequence[LossTerm]) -> float:
    return summed(0.0 if term.count is None else float(term.count) for term in terms)


def _numbers(term: LossTerm) -> tuple[float, float | None, dict[str, object]]:
    metrics: dict[str, object] = {name: _numbers(m) for name, m in term.metrics.items()}
    return float(term.root), None if term.count is None else float(term.count), metrics


def _on_gpu(term: LossTerm) -> list[Tensor]:
    """Return the numbers of a term that are on a GPU."""
    own = [n for n in (term.root, term.count) if isinstance(n, Tensor) and n.is_cuda]
    return own + [number for metric in term.metrics.values() for number in _on_gpu(metric)]


def _off_gpu(term: LossTerm, found: Iterator[float]) -> LossTerm:
    """Return a term with what ``_on_gpu`` returned as found."""
    root = _scalar(next(found)) if term.root.is_cuda else term.root
    is_count_there = isinstance(term.count, Tensor) and term.count.is_cuda
    count = next(found) if is_count_there else term.count
    return LossTerm(root, count, {n: _off_gpu(m, found) for n, m in term.metrics.items()})


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _kinds(term: LossTerm) -> dict[str, bool]:
    return {name: metric.count is not None for name, metric in sorted(term.metrics.items())}


def _said(kinds: dict[str, bool]) -> str:
    named = (f"{name} ({'LossSum' if kind else 'scalar'})" for name, kind in kinds.items())
    return ", ".join(named) or "none"
