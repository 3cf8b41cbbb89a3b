"""What ``intandem check`` prints."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intandem.runtime.microbatch import split_batch

if TYPE_CHECKING:
    from intandem.equality import Bisection, Equality, Finding, Job, Rung, Setting

_WIDTH = 96


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found.

    Attributes:
        target: what was checked.
        job: as it was run.
        setting: how it was run.
        equality: of one process and the pipeline.
        bisection: if it was asked for.
        information: how micro-batches differ from one call on the whole batch.
        why_own: why it was not run in float64, though it was to be.
        why_tolerance: why more than a float64's rounding is allowed for.
        in_own_dtype: a second check in the model's own dtype, where autocast does something.
    """

    target: str
    job: Job
    setting: Setting
    equality: Equality
    bisection: Bisection | None = None
    information: Finding | None = None
    why_own: str = ""
    why_tolerance: str = ""
    in_own_dtype: Outcome | None = None

    @property
    def equal(self) -> bool:
        """Whether all numbers are one process's."""
        found = self.equality.equal if self.bisection is None else self.bisection.equal
        return found and (self.in_own_dtype is None or self.in_own_dtype.equal)

    @property
    def about_whole_batch(self) -> Finding | None:
        """How micro-batches differ from one call on the whole batch, if they do."""
        return self.information if self.bisection is None else self.bisection.information

    @property
    def num_microbatches(self) -> int:
        """How many ran: not more than the batch has rows, or as many as it lists."""
        splitting = self.setting.splitting
        return len(split_batch(self.job.batch, splitting.microbatches, splitting.split).parts)

    @property
    def dtype(self) -> str:
        """Of the model's parameters."""
        found = {str(p.dtype).removeprefix("torch.") for p in self.job.model.parameters()}
        return ", ".join(sorted(found)) or "float64"


def as_lines(outcome: Outcome, num_worst: int) -> list[str]:
    """Return what is printed for people."""
    setting, equality = outcome.setting, outcome.equality
    lines = [
        f"run         {outcome.dtype}, {setting.ranks} ranks, "
        f"schedule {setting.schedule_name(outcome.job.loss)}, "
        f"{_microbatches(outcome)}",
        *_wrapped("", outcome.why_own),
        *_wrapped("", outcome.why_tolerance),
    ]
    if equality.optimizer:  # else the plain model does not even agree with itself
        lines += _kinds(equality)
        lines += _worst(equality, num_worst)
    if outcome.bisection is not None:
        lines += _bisection(outcome.bisection)
    lines += _verdict(outcome)
    if outcome.in_own_dtype is not None:
        lines += ["", "autocast does nothing in float64, so once more in the model's own dtype:"]
        lines += as_lines(outcome.in_own_dtype, num_worst)
    return lines


def _microbatches(outcome: Outcome) -> str:
    ran, asked = outcome.num_microbatches, outcome.setting.splitting.microbatches
    return f"{ran} micro-batches" + (f" ({asked} asked for)" if ran != asked else "")


def _worst(equality: Equality, count: int) -> list[str]:
    if equality.max_error == 0:
        return ["all of them the same to the last digit"]
    worst = [f"  {w.error:.1e}  {w.kind} {w.name}" for w in equality.ranked(count) if w.error]
    return ["worst:", *worst] if worst else []


def _kinds(equality: Equality) -> list[str]:
    batch = [_kind("batch", equality.batch_errors)] if equality.batch_errors else []
    return [
        *batch,
        f"loss        {equality.loss:.6g}, relative error {equality.loss_error:.1e}",
        _kind("outputs", equality.output_errors),
        _kind("gradients", equality.gradient_errors),
        _kind("buffers", equality.buffer_errors),
        _kind("parameters", equality.parameter_errors, f" after {equality.optimizer}"),
    ]


def _kind(name: str, errors: dict[str, float], more: str = "") -> str:
    if not errors:
        return f"{name:<12}none"
    return f"{name:<12}{len(errors)}{more}, max relative error {max(errors.values()):.1e}"


def _verdict(outcome: Outcome) -> list[str]:
    equality, bisection = outcome.equality, outcome.bisection
    information = outcome.about_whole_batch
    found = equality.equal if bisection is None else bisection.equal
    if found:
        lines = [f"EQUAL: one process's numbers, to {equality.tolerance:.0e}"]
        if information is not None:
            lines += _wrapped("note", _about_microbatches(information))
            lines += _wrapped("", information.remedy)
        return lines
    lines = [f"DIFFERENT: more than {equality.tolerance:.0e} from one process's numbers"]
    if equality.equal:
        lines = ["DIFFERENT: equal as asked for, but not on the way there"]
    if bisection is None:
        lines.append("to find out why: the same command with --bisect")
    return lines


def _about_microbatches(finding: Finding) -> str:
    return (
        f"micro-batches differ from one call on the whole batch by {finding.error:.1e}, in one "
        f"process as in tandem, from {finding.place} on: {finding.why}"
    )


def _bisection(bisection: Bisection) -> list[str]:
    lines = ["bisect, each run against one process:"]
    lines += [_rung(rung) for rung in bisection.rungs]
    finding = bisection.finding
    if finding is None:
        return lines
    lines.append(f"cause       {finding.cause.value}")
    for name, text in (("place", finding.place), ("why", finding.why), ("remedy", finding.remedy)):
        lines += _wrapped(name, text)
    return lines


def _rung(rung: Rung) -> str:
    if rung.error is None:
        return f"  skipped           {rung.name}: {rung.worst}"
    found = "same   " if rung.same else "differs"
    worst = f": {rung.worst}" if rung.worst else ""
    return f"  {found}  {rung.error:.1e}  {rung.name}{worst}"


def _wrapped(name: str, text: str) -> list[str]:
    if not text:
        return []
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{name:<12}", subsequent_indent=" " * 12,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def as_object(outcome: Outcome, num_worst: int) -> dict[str, Any]:
    """Return what is printed as JSON; infinite errors are texts."""
    equality, bisection = outcome.equality, outcome.bisection
    found: dict[str, Any] = {
        "equal": outcome.equal,
        "tolerance": equality.tolerance,
        "dtype": outcome.dtype,
        "why_own_dtype": outcome.why_own or None,
        "why_tolerance": outcome.why_tolerance or None,
        "ranks": outcome.setting.ranks,
        "schedule": outcome.setting.schedule_name(outcome.job.loss),
        "num_microbatches": outcome.num_microbatches,
        "optimizer": equality.optimizer,
        "loss": equality.loss,
        "loss_error": equality.loss_error,
        "max_output_error": equality.max_output_error,
        "max_gradient_error": equality.max_gradient_error,
        "max_buffer_error": equality.max_buffer_error,
        "max_parameter_error": equality.max_parameter_error,
        "worst": [worst._asdict() for worst in equality.ranked(num_worst)],
        "num_outputs": len(equality.output_errors),
        "num_gradients": len(equality.gradient_errors),
        "num_buffers": len(equality.buffer_errors),
        "num_parameters": len(equality.parameter_errors),
        "batch_errors": equality.batch_errors,
        "output_errors": equality.output_errors,
        "gradient_errors": equality.gradient_errors,
        "buffer_errors": equality.buffer_errors,
        "parameter_errors": equality.parameter_errors,
        "lowered": equality.lowered or None,
        "whole_batch": _finding(outcome.about_whole_batch),
    }
    if bisection is not None:
        found["rungs"] = [dataclasses.asdict(rung) for rung in bisection.rungs]
        found["finding"] = _finding(bisection.finding)
    if outcome.in_own_dtype is not None:
        found["in_own_dtype"] = as_object(outcome.in_own_dtype, num_worst)
    plain: dict[str, Any] = _plain(found)
    return plain


def _finding(finding: Finding | None) -> dict[str, Any] | None:
    if finding is None:
        return None
    return {**dataclasses.asdict(finding), "cause": finding.cause.value}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
