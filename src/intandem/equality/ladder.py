"""``bisect``: a ladder of runs from the plain model to the pipeline as asked for.

Each run is held against one process's numbers; the first that differs names the cause, since the
run before it differs from it in one thing only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from intandem.equality.checking import asked, check_job, threads_of
from intandem.equality.comparison import Equality, compare, tolerance_of
from intandem.equality.explaining import (
    Run,
    difference_of,
    explained,
    explained_microbatching,
    is_weighed_wrong,
    place_of,
    worst_of,
)
from intandem.equality.findings import KEYED_REMEDY, REMEDY, Bisection, Cause, Finding, Rung
from intandem.equality.listening import PlainTrace
from intandem.equality.tandem import in_tandem, twin, where_it_runs
from intandem.equality.trace import TandemTrace
from intandem.equality.witness import one_process
from intandem.ir import Action, ActionKind, Placement, Schedule
from intandem.recorder.stage_chain import StageChain
from intandem.runtime.losses import WholeBatchLoss
from intandem.runtime.microbatch import split_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Unpack

    from torch import nn

    from intandem.equality.checking import Asked
    from intandem.equality.differences import Difference
    from intandem.equality.job import Job, Setting
    from intandem.equality.trace import Key

_PLAIN = "plain micro-batches"


def bisect(
    model: nn.Module | Sequence[nn.Module],
    batch: Any,
    loss: Callable[[Any, Any], Any] | None = None,
    **arguments: Unpack[Asked],
) -> Bisection:
    """Find what makes a pipeline's numbers differ from one process's, and where it shows first.

    Args:
        model: as for ``check``.
        batch: as for ``check``.
        loss: as for ``check``.
        **arguments: as for ``check``.
    """
    return bisect_job(*asked(model, batch, loss, **arguments))


def bisect_job(
    job: Job, setting: Setting, notify: Callable[[str], None] = lambda text: None
) -> Bisection:
    """Find the first thing on the way from the plain model to the pipeline that changes numbers.

    Args:
        job: what is trained; left as it is.
        setting: how it is run in tandem.
        notify: told what is run next.

    Raises:
        PipelineError: if the model cannot be run in tandem at all.
    """
    ladder = _Ladder(job, setting, notify)
    with threads_of(setting.ranks):
        plain, finding, repeated = ladder.twice()
        if finding is not None:
            return Bisection(repeated, tuple(ladder.rungs), finding)
    notify("one process against the pipeline")
    equality = check_job(job, setting)
    with threads_of(setting.ranks):
        finding = ladder.climb(plain)
    if finding is None and not equality.equal:
        finding = _unexplained(equality)
    return Bisection(equality, tuple(ladder.rungs), finding, ladder.information)


def whole_batch_difference(job: Job, setting: Setting) -> Finding | None:
    """Say how micro-batches differ from one call on the whole batch, in one process as in tandem.

    Returns:
        None if they do not, or cannot be compared.
    """
    with threads_of(setting.ranks):
        ladder = _Ladder(job, setting, lambda text: None)
        ladder.look_at_whole_batch()
    return ladder.information


@dataclass(frozen=True, slots=True)
class _Step:
    """One run in tandem: what it is called, what a difference means, how it is set up."""

    name: str
    cause: Cause
    setting: Setting


class _Ladder:
    """Climbs from run to run and keeps what was found."""

    def __init__(self, job: Job, setting: Setting, notify: Callable[[str], None]) -> None:
        self.rungs: list[Rung] = []
        self.information: Finding | None = None
        self._job = job = where_it_runs(job)
        self._setting = setting
        self._notify = notify
        parts = split_batch(job.batch, setting.splitting.microbatches, setting.splitting.split)
        self._num_microbatches = len(parts.parts)

    def look_at_whole_batch(self) -> None:
        """Make this one comparison."""
        self._whole(self._plain(self._job, twin(self._job.model)))

    def climb(self, plain: Run) -> Finding | None:
        """Run until something differs from the plain model in micro-batches."""
        whole = self._whole(plain)
        if whole is not None:
            one = self._step(
                "recorded, as one stage, on the whole batch", Cause.CAPTURE, microbatches=1
            )
            job, run = whole
            if (finding := self._try(one, job, run, "plain, whole batch")) is not None:
                return finding
        for step in self._steps():
            if (finding := self._try(step, self._job, plain, _PLAIN)) is not None:
                return finding
        return None

    def _steps(self) -> Iterator[_Step]:
        setting, count = self._setting, self._num_microbatches
        yield self._step(f"one stage, {count} micro-batches", Cause.MICROBATCHING)
        plain = replace(self._one_stage_per_rank(), schedule=self._plain_schedule)
        how = "all forwards first" if self._is_whole_batch else "one micro-batch at a time"
        yield _Step(f"{plain.ranks} stages, {how}", Cause.CUTTING, plain)
        asked = replace(setting, recompute="none")
        name = setting.schedule_name(self._job.loss)
        yield _Step(f"{setting.ranks} ranks, schedule {name}", Cause.SCHEDULE, asked)
        if setting.recompute in {"all", True}:
            yield _Step("the same with recomputation", Cause.RECOMPUTATION, setting)

    def _one_stage_per_rank(self) -> Setting:
        """Return the setting without replicas, cuts of more stages, and recomputation."""
        setting = self._setting
        ranks = setting.ranks // setting.more.get("replicas", 1)
        more = {key: value for key, value in setting.more.items() if key != "replicas"}
        for key in ("split_points", "stages"):
            if isinstance(more.get(key), list | tuple) and len(more[key]) + 1 != ranks:
                del more[key]
        return replace(setting, ranks=ranks, recompute="none", more=more)

    def _step(self, name: str, cause: Cause, microbatches: int | None = None) -> _Step:
        """Return a run on one rank."""
        splitting = self._setting.splitting
        if microbatches is not None:
            splitting = replace(splitting, microbatches=microbatches)
        own = {"split_points", "stages", "replicas"}
        more = {k: v for k, v in self._setting.more.items() if k not in own}
        num_stages = self._job.model.num_stages if isinstance(self._job.model, StageChain) else 1
        schedule = _on_one_rank(
            int(num_stages), splitting.microbatches, forwards_first=self._is_whole_batch
        )
        setting = replace(
            self._setting, ranks=1, splitting=splitting, schedule=schedule, recompute="none",
            more=more,
        )  # fmt: skip
        return _Step(name, cause, setting)

    @property
    def _is_whole_batch(self) -> bool:
        return isinstance(self._job.loss, WholeBatchLoss)

    @property
    def _plain_schedule(self) -> str:
        """The simplest one; a loss of the whole batch wants every forward first."""
        return "gpipe" if self._is_whole_batch else "naive"

    # Plain runs.

    def twice(self) -> tuple[Run, Finding | None, Equality]:
        """Run the plain model twice; what then differs is drawn by others than torch."""
        self._notify("the plain model, twice")
        model = twin(self._job.model)
        tables = [module._buffers for module in model.modules()]
        buffers = [{k: None if b is None else b.clone() for k, b in t.items()} for t in tables]
        first = self._plain(self._job, model)
        model.zero_grad(set_to_none=True)
        for table, before in zip(tables, buffers, strict=True):
            table.update(before)
        second = self._plain(self._job, model)
        equality = self._note("plain, a second time", _PLAIN, second, first)
        if equality.equal:
            return first, None, equality
        difference = difference_of(second, first, equality)
        finding = explained(Cause.RANDOMNESS, second, first, equality, difference)
        return first, finding, equality

    def _whole(self, plain: Run) -> tuple[Job, Run] | None:
        """Hold micro-batches against one call on the whole batch; return that call's run."""
        self._notify("the whole batch in one plain call")
        job, name = self._job, "plain, whole batch in one call"
        if isinstance(job.batch, list) and job.batch and not isinstance(job.batch[0], Tensor):
            reason = "the batch comes in micro-batches already"
            self.rungs.append(Rung(name, _PLAIN, None, same=True, worst=reason))
            job = replace(job, batch=job.batch[:1])
            return job, self._plain(job, twin(job.model), microbatches=1)
        try:
            whole = self._plain(job, twin(job.model), microbatches=1)
        except Exception as error:  # the batch may be too large for one call
            reason = f"it raised {type(error).__name__}: {str(error).splitlines()[0]:.80}"
            self.rungs.append(Rung(name, _PLAIN, None, same=True, worst=reason))
            return None
        self._compare_rows(name, plain, whole)
        return job, whole

    def _compare_rows(self, name: str, plain: Run, whole: Run) -> None:
        parts, one = plain, whole
        if plain.trace.drawing:
            job = replace(self._job, model=_quiet(self._job.model, plain.numbers.buffers))
            parts = self._plain(job, twin(job.model))
            one = self._plain(job, twin(job.model), microbatches=1)
            if left := parts.trace.drawing:
                reason = f"{_names(left)} draws random numbers even in evaluation mode"
                self.rungs.append(Rung(name, _PLAIN, None, same=True, worst=reason))
                return
        tolerance = max(self._tolerance, tolerance_of(parts.trace.dtypes))
        equality = compare(_without_outputs(parts), _without_outputs(one), tolerance=tolerance)
        if equality.equal:
            worst = ""
            if equality.max_error > self._tolerance:
                lowest = max(parts.trace.dtypes, key=lambda dtype: tolerance_of([dtype]))
                worst = f"same, to the rounding of {str(lowest).removeprefix('torch.')}"
            self.rungs.append(Rung(name, _PLAIN, equality.max_error, same=True, worst=worst))
            return
        finding = explained_microbatching(parts, one, equality, self._num_microbatches)
        self.information = finding
        self.rungs.append(Rung(name, _PLAIN, finding.error, same=False, worst=finding.place))

    def _plain(
        self,
        job: Job,
        model: nn.Module,
        *,
        microbatches: int | None = None,
    ) -> Run:
        splitting = self._setting.splitting
        if microbatches is not None:
            splitting = replace(splitting, microbatches=microbatches)
        trace = PlainTrace(splitting.blocks)
        numbers = one_process(
            model, job.batch, job.loss, splitting, seed=self._setting.seed, watcher=trace
        )
        return Run(numbers, trace, model)

    # Runs in tandem.

    def _try(self, step: _Step, job: Job, expected: Run, against: str) -> Finding | None:
        self._notify(step.name)
        found = _tandem(job, step.setting)
        equality = self._note(step.name, against, found, expected)
        if equality.equal:
            return None
        difference = difference_of(found, expected, equality)
        if is_weighed_wrong(found, expected, equality):
            return explained(Cause.MICROBATCHING, found, expected, equality, difference)
        if difference is not None and self._is_random(difference, step, job, expected):
            place = place_of(difference, found)
            why = f"its draws differ from one process's, and with them {worst_of(equality)}"
            return Finding(Cause.RANDOMNESS, equality.max_error, place, why, KEYED_REMEDY)
        return explained(step.cause, found, expected, equality, difference)

    def _is_random(self, difference: Difference, step: _Step, job: Job, expected: Run) -> bool:
        """Tell whether a difference goes away when nothing draws."""
        if not difference.draws:
            return False
        quiet = replace(job, model=_quiet(job.model, expected.numbers.buffers))
        found = _tandem(quiet, step.setting)
        splitting = step.setting.splitting
        plain = self._plain(quiet, twin(quiet.model), microbatches=splitting.microbatches)
        return compare(found.numbers, plain.numbers, tolerance=self._tolerance).equal

    def _note(self, name: str, against: str, found: Run, expected: Run) -> Equality:
        equality = compare(found.numbers, expected.numbers, tolerance=self._tolerance)
        worst = "" if equality.equal else worst_of(equality)
        self.rungs.append(Rung(name, against, equality.max_error, equality.equal, worst))
        return equality

    @property
    def _tolerance(self) -> float:
        return self._setting.tolerance


def _tandem(job: Job, setting: Setting) -> Run:
    model, trace = twin(job.model), TandemTrace()
    numbers, _ = in_tandem(job, setting, model, trace)
    return Run(numbers, trace, model)


def _on_one_rank(num_stages: int, num_microbatches: int, *, forwards_first: bool) -> Schedule:
    """Return the order that runs micro-batches through all stages and back on rank 0.

    Args:
        num_stages: all on rank 0.
        num_microbatches: of the schedule.
        forwards_first: whether every forward comes before any backward, or one micro-batch goes
            through and back before the next.
    """
    size = num_microbatches if forwards_first else 1
    groups = [range(first, first + size) for first in range(0, num_microbatches, size)]
    row = tuple(
        Action(stage, kind, microbatch)
        for group in groups
        for kind, order in ((ActionKind.F, 1), (ActionKind.B, -1))
        for microbatch in group
        for stage in range(num_stages)[::order]
    )
    return Schedule("one rank", Placement((0,) * num_stages), num_microbatches, (row,))


def _quiet(model: nn.Module, after: dict[str, Tensor]) -> nn.Module:
    """Return a copy in evaluation mode, but for modules whose buffers a step changes."""
    before = dict(model.named_buffers())
    changed = {n for n, b in after.items() if n in before and not b.equal(before[n])}
    quiet = twin(model)
    for name, module in quiet.named_modules():
        prefix = f"{name}." if name else ""
        own = (prefix + key for key, _ in module.named_buffers(recurse=False))
        module.training &= any(buffer in changed for buffer in own)
    return quiet


def _without_outputs(run: Run) -> Any:
    """Outputs of a whole batch may have their rows anywhere; loss and gradients tell enough."""
    return replace(run.numbers, outputs=None)


def _names(keys: Iterable[Key]) -> str:
    names = (f"{k.name} at {k.location}" if k.location != k.name else k.name for k in keys)
    return ", ".join(sorted({name.removesuffix(" at ") for name in names}))


def _unexplained(equality: Equality) -> Finding:
    """Say what can be said when every run on the way was the same."""
    if equality.batch_errors:
        name, error = max(equality.batch_errors.items(), key=lambda item: item[1])
        why = "the micro-batches, put together again, are not the batch"
        remedy = REMEDY[Cause.MICROBATCHING]
        return Finding(Cause.MICROBATCHING, error, f"{name} of the batch", why, remedy)
    others = [equality.loss_error, equality.max_gradient_error, equality.max_buffer_error]
    if max(*others, equality.max_output_error) <= equality.tolerance:
        why = "gradients are the same, parameters after the optimizer are not"
        return Finding(
            Cause.OPTIMIZER, equality.max_error, worst_of(equality), why, REMEDY[Cause.OPTIMIZER]
        )
    why = "the pipeline differed once and not when it was run again, so it depends on time"
    return Finding(
        Cause.SCHEDULE, equality.max_error, worst_of(equality), why, REMEDY[Cause.SCHEDULE]
    )
