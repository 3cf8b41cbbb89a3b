"""What the plain model and the pipeline share, looked at on its own: parts, rows, label counts.

A mistake there is the same on both sides, so that holding one against the other does not show it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.equality.comparison import tolerance_of
from intandem.equality.tandem import twin
from intandem.recorder import bind_by_signature
from intandem.recorder.capture import left_as_it_was
from intandem.recorder.trees import named_leaves
from intandem.runtime.huggingface import COUNT_NAME, count_labels, takes_token_count
from intandem.runtime.losses import loss_term
from intandem.runtime.microbatch import plain_batch, split_batch
from intandem.testing import keyed_randomness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.equality.job import Job, Setting
    from intandem.runtime.microbatch import Microbatches


def batch_errors(job: Job, setting: Setting) -> dict[str, float]:
    """Return what is wrong with the micro-batches of ``job``, by leaf; empty if nothing is."""
    splitting = setting.splitting
    parts = split_batch(job.batch, splitting.microbatches, splitting.split)
    is_presplit = isinstance(job.batch, list) and not isinstance(job.batch[0], Tensor)
    errors = {} if is_presplit else _torn_leaves(plain_batch(job.batch), parts)
    if job.loss is None and takes_token_count(job.model, job.batch):
        errors |= _miscounted(replace(job, model=twin(job.model)), setting, parts.parts)
    return errors


def _torn_leaves(batch: Any, parts: Microbatches) -> dict[str, float]:
    """Return leaves that the parts, joined again, do not give."""
    columns = [dict(named_leaves(part)) for part in parts.parts]
    torn = {}
    for name, leaf in named_leaves(batch):
        if not isinstance(leaf, Tensor):
            continue
        pieces = [column[name] for column in columns]
        if not (_are_whole(pieces, leaf) or _add_up(pieces, leaf, parts.rows)):
            torn[name] = math.inf
    return torn


def _are_whole(pieces: Sequence[Tensor], leaf: Tensor) -> bool:
    return all(_same(piece, leaf) for piece in pieces)


def _add_up(pieces: Sequence[Tensor], leaf: Tensor, rows: Sequence[int]) -> bool:
    """Tell whether the pieces are the leaf in order, as long as they are said to be."""
    for dim in range(leaf.dim()):
        sizes = [piece.shape[dim] for piece in pieces]
        if sizes == list(rows) and sum(sizes) == leaf.shape[dim]:
            joined = torch.cat(list(pieces), dim)
            if _same(joined, leaf):
                return True
    return False


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    if torch.equal(found, expected):
        return True
    is_number = found.is_floating_point() or found.is_complex()
    return is_number and torch.allclose(found, expected, rtol=0.0, atol=0.0, equal_nan=True)


def _miscounted(job: Job, setting: Setting, parts: Sequence[Any]) -> dict[str, float]:
    """Return by how much the number of labels is off, by micro-batch, as the model's loss has it.

    loss(count) = sum / count + rest, and without a count the model divides by its own.
    """
    errors = {}
    for index, part in enumerate(parts):
        own = _loss(job, setting, part, None)
        one, two = _loss(job, setting, part, 1), _loss(job, setting, part, 2)
        total, rest = 2 * (one - two), 2 * two - one
        counted = count_labels(job.model, part)
        if total == 0 or not math.isfinite(own) or own == rest:
            continue  # its loss does not look at the count, or there is no label
        error = abs(total / (own - rest) - counted) / max(counted, 1)
        if error > tolerance_of([torch.float32]):
            errors[f"number of labels, micro-batch {index}"] = error
    return errors


def _loss(job: Job, setting: Setting, part: Any, count: int | None) -> float:
    given = part if count is None else {**part, COUNT_NAME: count}
    bind = setting.splitting.inputs or bind_by_signature(job.model, loss_is_separate=False)
    arguments = bind(given)
    random = keyed_randomness(job.model, seed=setting.seed, blocks=setting.splitting.blocks)
    with left_as_it_was(job.model), torch.no_grad(), random:
        output = job.model(*arguments.args, **arguments.kwargs)
    return float(loss_term(output, part, None).root)
