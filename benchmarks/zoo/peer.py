"""One architecture of the zoo through ``torch.distributed.pipelining.pipeline()``."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.distributed.pipelining import SplitPoint, pipeline
from torch.utils import _pytree as pytree

from intandem.equality import Numbers, compare, numbers_of
from intandem.recorder.capture import record, without_cache
from intandem.recorder.cut import segments
from intandem.recorder.trees import map_tree
from intandem.runtime.losses import loss_term
from zoo.catalogue import ROWS
from zoo.examine import first_microbatch

NUM_CUTS = 2
"""Places at which it is let try to cut, before it counts as not captured."""
NOT_EXPORTED = "not exported: "


@dataclass
class Verdict:
    """What became of one entry.

    Attributes:
        captured: whether there are two stages that both hold parameters.
        exact: whether loss, gradients and buffers are within 1e-12 of the plain model's.
        error: the largest relative error, or None if nothing ran.
        reason: why it failed, or an empty text.
    """

    captured: bool = False
    exact: bool = False
    error: float | None = None
    reason: str = ""


def judge(entry: Any) -> Verdict:
    """Trace, split in two, run both stages in one process, compare with the plain model."""
    warnings.simplefilter("ignore")
    best = Verdict(reason="no module begins where a second stage could")
    for name in cuts(entry)[:NUM_CUTS]:
        found = _attempt(entry, name)
        if (found.captured, found.exact) >= (best.captured, best.exact):
            best = found
        if best.exact or found.reason.startswith(NOT_EXPORTED):
            break
    return best


def cuts(entry: Any) -> list[str]:
    """Return modules at which the second stage may begin, nearest to ours first."""
    sample = entry.build()
    try:
        graph = record(sample.model, *first_microbatch(entry, sample)).graph
        found = [s.name for s in segments(graph) if s.call == 0]
    except Exception:  # what we refuse, the other may still take
        found = []
    modules = dict(sample.model.named_modules())
    lists = [m for m in modules.items() if isinstance(m[1], nn.ModuleList) and len(m[1]) > 1]
    halves = [f"{name}.{len(items) // 2}" for name, items in lists]
    middle = len(found) // 2
    near = sorted(range(len(found)), key=lambda place: abs(place - middle))
    names = [found[place] for place in near if place > 0]
    return list(dict.fromkeys(n for n in [*names[:1], *halves, *names[1:]] if n in modules))


def _attempt(entry: Any, name: str) -> Verdict:
    verdict = Verdict()
    try:
        sample = entry.build()
        part, bind = first_microbatch(entry, sample)
        arguments = bind(part)
        with without_cache(sample.model):
            made = pipeline(
                sample.model,
                arguments.args,
                arguments.kwargs,
                split_spec={name: SplitPoint.BEGINNING},
            )
        stages = [made.get_stage_module(index) for index in range(made.num_stages)]
        holding = [stage for stage in stages if any(True for _ in stage.parameters())]
        verdict.captured = len(holding) >= 2
        if not verdict.captured:
            verdict.reason = f"{len(holding)} stages with parameters after a cut at {name}"
            return verdict
        verdict.error = max(_error(entry, made, which) for which in (0, 1))
        verdict.exact = verdict.error <= 1e-12
        if not verdict.exact:
            verdict.reason = f"an error of {verdict.error:.1e}, without a message"
    except Exception as error:
        verdict.reason = _reason(error)
    return verdict


def _reason(error: Exception) -> str:
    """Return the first line of what went wrong; for an export that failed, of its cause."""
    not_exported = "cannot capture your model as a full graph" in str(error)
    root = error.__cause__ if not_exported and error.__cause__ else error
    lines = str(root).strip().splitlines() or [""]
    text = without_folders(lines[0])
    return f"{NOT_EXPORTED if not_exported else ''}{type(root).__name__}: {text}"[:200]


def without_folders(text: str) -> str:
    """Return ``text`` without the folders of this machine."""
    return re.sub(r"/\S*?/(?:site-packages|tests|src)/", "", text)


def _error(entry: Any, made: Any, which: int) -> float:
    """Return the largest error on a micro-batch: the one it was traced on, or another like it."""
    sample = entry.build()
    part, bind = first_microbatch(entry, sample)
    if which == 1:
        part = _other_rows(entry, sample.batch, part)
    expected, nesting = _plain(sample, part, bind(part))
    before = {name: buffer.clone() for name, buffer in made.split_gm.named_buffers()}
    found = _piped(entry.build(), made, part, bind(part), nesting)
    for name, buffer in made.split_gm.named_buffers():
        buffer.data.copy_(before[name])
    for name, buffer in expected.buffers.items():  # a table that forward makes anew, in its size
        if found.buffers[name].shape != buffer.shape:
            found.buffers[name] = buffer
    equality = compare(found, expected)
    return max(equality.loss_error, equality.max_gradient_error, equality.max_buffer_error)


def _other_rows(entry: Any, batch: Any, part: Any) -> Any:
    """Return the last rows of the batch, as many as a micro-batch has."""
    if entry.options.get("split"):
        return part
    rows = -(-ROWS // 2)

    def last(leaf: Any) -> Any:
        is_rows = isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == ROWS
        return leaf[ROWS - rows :] if is_rows else leaf

    return map_tree(last, batch)


def _plain(sample: Any, part: Any, arguments: Any) -> tuple[Numbers, Any]:
    """Return the plain model's numbers, and how its output is nested."""
    torch.manual_seed(1)
    with without_cache(sample.model):
        output = sample.model(*arguments.args, **arguments.kwargs)
    term = loss_term(output, part, sample.loss)
    term.root.backward()
    nesting = pytree.tree_flatten(output)[1]
    return numbers_of(sample.model, float(term.root.detach())), nesting


class _Stages(fx.Interpreter):
    """Runs the stages one after the other under one autograd.

    Values are handed to a stage in the order of its graph. The first stage has a wrapper that takes
    what the model takes; it is passed by, as it mixes up arguments of some models.
    """

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        del kwargs
        stage = self.fetch_attr(target)
        if getattr(stage.graph._codegen, "pytree_info", None) is None:
            return stage(*args)
        return fx.Interpreter(stage).run(*args, enable_io_processing=False)


def _in_order(made: Any, arguments: Any) -> list[Any]:
    """Return the leaves of the arguments in the order in which the traced graph takes them."""
    names = [node.target for node in made.split_gm.graph.nodes if node.op == "placeholder"]
    keyed = pytree.tree_flatten_with_path(arguments.kwargs)[0]
    by_name = {"_".join(_key(part) for part in path): leaf for path, leaf in keyed}
    first = pytree.tree_leaves(arguments.args)
    rest = names[len(first) :]
    if set(rest) == set(by_name):
        return [*first, *(by_name[name] for name in rest)]
    return [*first, *by_name.values()]


def _key(part: Any) -> str:
    return str(getattr(part, "key", getattr(part, "idx", part)))


def _piped(sample: Any, made: Any, part: Any, arguments: Any, nesting: Any) -> Numbers:
    """Return the numbers of both stages, with copies of a parameter added up."""
    torch.manual_seed(1)
    results = _Stages(made.split_gm).run(*_in_order(made, arguments))
    output = pytree.tree_unflatten(pytree.tree_leaves(results), nesting)
    term = loss_term(output, part, sample.loss)
    term.root.backward()
    first_name: dict[int, str] = {}  # tied weights are compared under the first of their names
    named = list(sample.model.named_parameters(remove_duplicate=False))
    first = {name: first_name.setdefault(id(tensor), name) for name, tensor in named}
    gradients: dict[str, Tensor | None] = {}
    before = dict(sample.model.named_buffers(remove_duplicate=False))
    buffers = dict(before)  # one that no stage has is as it was
    seen: set[int] = set()
    for index in range(made.num_stages):
        stage = made.get_stage_module(index)
        for name, parameter in stage.named_parameters(remove_duplicate=False):
            if parameter.grad is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                key = first[_original(name)]
                earlier = gradients.get(key)
                gradients[key] = parameter.grad if earlier is None else earlier + parameter.grad
        for name, buffer in stage.named_buffers(remove_duplicate=False):
            key = _original(name)  # constants of the trace are buffers there, and not of the model
            if key in before and not torch.equal(buffer, before[key]):
                buffers[key] = buffer.clone()
    made.split_gm.zero_grad()
    return Numbers(float(term.root.detach()), gradients, buffers)


def _original(name: str) -> str:
    """Return the user's name: a module called twice is ``name@1`` the second time."""
    return re.sub(r"@\d+", "", name)
