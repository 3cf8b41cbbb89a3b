"""The search for a schedule: start from many, improve the best, unroll, and say how good it is."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Literal, get_args

from intandem.argument_types import require_int, require_number
from intandem.planner import exact
from intandem.planner.finishing import finished
from intandem.planner.improvement import Effort, Improvement
from intandem.planner.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intandem.costs import CostModel
    from intandem.ir import Placement
    from intandem.planner.found import Found, Progress
    from intandem.planner.problem import Objective

Solver = Literal["auto", "none", "cp-sat"]


def search(  # noqa: PLR0913  (each is one question about the schedule that is wanted)
    costs: CostModel,
    *,
    num_ranks: int,
    num_microbatches: int,
    memory_cap: int | Sequence[int] | None = None,
    memory_cap_bytes: int | Sequence[int] | None = None,
    placement: Placement | None = None,
    objective: Objective = "global",
    split_backward: bool | None = None,
    recompute: bool = False,
    weight_copies: int = 1,
    start_from_builtins: bool = True,
    solver: Solver = "auto",
    seed: int = 0,
    effort: float = 1.0,
    time_limit_s: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Found:
    """Search for the shortest schedule for given costs and memory.

    The result depends on the arguments alone: work is counted, not timed, as long as
    ``time_limit_s`` is not reached.

    Args:
        costs: of all stages: ``num_ranks`` times the stages per rank, unless a placement is given.
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.
        memory_cap: stage activations that a rank may hold, one number or one per rank.
        memory_cap_bytes: bytes of activations and of pending weight gradients that a rank may
            hold, likewise; needs ``activation_bytes`` in the costs. Not counted: messages
            (``boundary_bytes``), weights, and what the runtime itself takes.
        placement: stage to rank; by default loop and wave are tried.
        objective: ``global`` for the makespan, ``rank`` for the longest rank's span.
        split_backward: True for I and W, False for B, None for whichever is shorter.
        recompute: whether stages may run forwards again to fit ``memory_cap_bytes``.
        weight_copies: how often a stage may be held; with 2, two-way built-in schedules compete,
            as they are.
        start_from_builtins: start from every built-in schedule that fits, so that the result is
            never longer than one of them.
        solver: ``cp-sat`` to improve and prove with OR-Tools (``pip install intandem[solve]``),
            ``none`` not to, ``auto`` if it is installed and the problem is small.
        seed: of all draws.
        effort: how much work, relative to the default.
        time_limit_s: end early after so many seconds, with the best so far.
        on_progress: called whenever something better is found.

    Raises:
        ScheduleError: if nothing fits the cap; names the smallest that would do.
        ValueError: if an argument is out of range, or two do not go together.
        TypeError: if an argument is of another type.
        ModuleNotFoundError: if ``solver`` is ``cp-sat`` and OR-Tools is not installed.
    """
    _check_solver(solver)
    require_number("effort", effort)
    require_number("time_limit_s", time_limit_s)
    request = Request(
        costs,
        num_ranks,
        num_microbatches,
        _frozen("memory_cap", memory_cap),
        _frozen("memory_cap_bytes", memory_cap_bytes),
        placement,
        objective,
        split_backward,
        recompute,
        weight_copies,
    )
    improvement = Improvement(request, Effort(effort, time_limit_s), Random(seed), on_progress)
    if start_from_builtins:
        improvement.begin_with_builtins()
    improvement.begin_with_rules()
    improvement.improve()
    if _solves(solver, improvement):
        improvement.solve(seed)
    return finished(request, improvement)


def _check_solver(solver: str) -> None:
    if solver not in get_args(Solver):
        msg = f"solver is {solver!r}; expected 'auto', 'none' or 'cp-sat'"
        raise ValueError(msg)
    if solver == "cp-sat" and not exact.is_installed():
        msg = "solver 'cp-sat' needs OR-Tools: pip install 'intandem[solve]'"
        raise ModuleNotFoundError(msg)


def _solves(solver: Solver, improvement: Improvement) -> bool:
    if solver == "auto":
        return improvement.is_solvable and exact.is_installed()
    return solver == "cp-sat"


def _frozen(name: str, cap: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    for number in cap if isinstance(cap, list | tuple) else (cap,):
        require_int(name, number)
    return cap if cap is None or isinstance(cap, int) else tuple(cap)
