"""``check``: one step plain and one in tandem."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from intandem.argument_types import require_int, require_type
from intandem.equality.comparison import TOLERANCE, Equality, compare
from intandem.equality.job import Job, Setting
from intandem.equality.listening import Precision
from intandem.equality.shared import batch_errors
from intandem.equality.tandem import in_tandem, twin, where_it_runs
from intandem.equality.updates import described, slack_of, updated
from intandem.equality.witness import Splitting, one_process
from intandem.recorder.stage_chain import as_module
from intandem.runtime.ranks import default_threads_per_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Unpack

    from intandem.equality.updates import OptimizerFactory
    from intandem.ir import Schedule
    from intandem.recorder import Arguments
    from intandem.runtime.microbatch import Split


def check(  # noqa: PLR0913  (the public surface)
    model: nn.Module | Sequence[nn.Module],
    batch: Any,
    loss: Callable[[Any, Any], Any] | None = None,
    *,
    ranks: int = 2,
    replicas: int = 1,
    schedule: str | Schedule = "auto",
    microbatches: int = 4,
    recompute: str | bool = "auto",
    split: Split | None = None,
    count: Callable[[Any], float] | None = None,
    inputs: Callable[[Any], Arguments] | None = None,
    split_points: Sequence[str] | None = None,
    blocks: Sequence[str | type[nn.Module]] = (),
    optimizer: OptimizerFactory | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> Equality:
    """Run one step plain and one in tandem, on copies of ``model``, and compare.

    Outputs, loss, every gradient, every buffer, and the parameters after the optimizer.

    Args:
        model: left as it is. Use float64 (``model.double()``) to tell a mistake from rounding.
        batch: one batch.
        loss: as for ``Pipeline``.
        ranks: of the pipeline, all replicas together.
        replicas: as for ``Pipeline``.
        schedule: as for ``Pipeline``.
        microbatches: as for ``Pipeline``.
        recompute: as for ``Pipeline``.
        split: as for ``Pipeline``.
        count: as for ``Pipeline``.
        inputs: as for ``Pipeline``.
        split_points: as for ``Pipeline``.
        blocks: as for ``Pipeline``.
        optimizer: makes the optimizer of the parameters it is given; by default plain SGD.
        seed: keys random draws.
        tolerance: up to which numbers count as equal.
    """
    return check_job(
        *asked(
            model, batch, loss, ranks=ranks, replicas=replicas, schedule=schedule,
            microbatches=microbatches, recompute=recompute, split=split, count=count, inputs=inputs,
            split_points=split_points, blocks=blocks, optimizer=optimizer, seed=seed,
            tolerance=tolerance,
        )
    )  # fmt: skip


class Asked(TypedDict, total=False):
    """Keyword arguments of ``check`` and ``bisect``."""

    ranks: int
    replicas: int
    schedule: str | Schedule
    microbatches: int
    recompute: str | bool
    split: Split | None
    count: Callable[[Any], float] | None
    inputs: Callable[[Any], Arguments] | None
    split_points: Sequence[str] | None
    blocks: Sequence[str | type[nn.Module]]
    optimizer: OptimizerFactory | None
    seed: int
    tolerance: float


def asked(
    model: nn.Module | Sequence[nn.Module],
    batch: Any,
    loss: Callable[[Any, Any], Any] | None,
    **arguments: Unpack[Asked],
) -> tuple[Job, Setting]:
    """Return the arguments of ``check`` as values.

    Raises:
        TypeError: if the model is none, or ``ranks`` is no whole number.
        ValueError: if ``ranks`` is less than 1.
    """
    require_type("model", module := as_module(model), nn.Module, "an nn.Module")
    require_int("ranks", ranks := arguments.get("ranks", 2))
    if ranks < 1:
        msg = f"ranks={ranks}; a pipeline has 1 or more"
        raise ValueError(msg)
    splitting = Splitting(
        arguments.get("microbatches", 4),
        arguments.get("split"),
        arguments.get("count"),
        arguments.get("inputs"),
        tuple(arguments.get("blocks", ())),
    )
    setting = Setting(
        ranks=ranks,
        splitting=splitting,
        schedule=arguments.get("schedule", "auto"),
        recompute=arguments.get("recompute", "auto"),
        seed=arguments.get("seed", 0),
        tolerance=arguments.get("tolerance", TOLERANCE),
        more={
            "split_points": arguments.get("split_points"),
            "replicas": arguments.get("replicas", 1),
        },
    )
    return Job(module, batch, loss, arguments.get("optimizer")), setting


def check_job(job: Job, setting: Setting) -> Equality:
    """Do what ``check`` says for a job and a setting."""
    job = where_it_runs(job)
    plain, ours = twin(job.model), twin(job.model)
    with threads_of(setting.ranks):
        precision = Precision(plain)
        expected = one_process(
            plain, job.batch, job.loss, setting.splitting, seed=setting.seed, watcher=precision
        )
        found, sight = in_tandem(job, setting, ours)
        after = updated(plain, job.optimizer)
        slack = slack_of(
            twin(job.model), expected.gradients, after, job.optimizer, setting.tolerance
        )
        expected = replace(expected, parameters=after, slack=slack)
        found = replace(found, parameters=updated(ours, job.optimizer))
    equality = compare(found, expected, tolerance=setting.tolerance)
    return replace(
        equality,
        batch_errors=batch_errors(job, setting),
        optimizer=described(job.optimizer, plain),
        lowered=precision.lowered,
        lowest=precision.lowest,
        autocast=sight.autocast,
    )


@contextmanager
def threads_of(ranks: int) -> Iterator[None]:
    """Let torch use as many threads as each of ``ranks`` has, so that sums are in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(default_threads_per_rank(ranks))
    try:
        yield
    finally:
        torch.set_num_threads(before)
