"""Schedules move between here and ``torch.distributed.pipelining`` as compute-order CSV.

Their classes are built on stand-ins for stages, so that one process is enough; that our orders
train there is in ``tests/multiprocess/test_torch_schedules_processes.py``.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.pipelining import schedules as theirs
from torch.distributed.pipelining.schedules import (
    _Action,
    _PipelineScheduleRuntime,
    _simulate_comms_compute,
)

from harness import in_tandem, max_stages, plain, repeatable_cuts
from intandem.costs import CostModel
from intandem.equality import compare
from intandem.ir import format_compute_csv, parse_compute_csv
from intandem.ir.action import ActionKind
from intandem.lowering import lower
from intandem.rules import verify
from intandem.schedules import build_schedule, schedule_names
from intandem.simulator import peak_activations, simulate
from models import SAMPLES

LOOPED = ["Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble"]
IN_A_V = ["ZBVZeroBubble", "DualPipeV"]
SIZES = [(2, 4), (2, 8), (4, 8), (4, 12)]


def held_once(name):
    """Whether it trains, and holds each stage on one rank: what there is there."""
    schedule = build_schedule(name, num_ranks=2, num_microbatches=4)
    return not (schedule.placement.replicas or schedule.is_forward_only)


HELD_ONCE = [name for name in schedule_names() if held_once(name)]


def stand_ins(placement, rank=0):
    """What their schedules ask of a rank's stages."""
    num_stages = placement.num_stages
    return [
        SimpleNamespace(
            stage_index=stage,
            num_stages=num_stages,
            group_size=placement.num_ranks,
            group_rank=rank,
            is_first=stage == 0,
            is_last=stage == num_stages - 1,
            submod=torch.nn.Identity(),
            has_backward=True,
        )
        for stage in placement.stages_of(rank)
    ]


def loaded_there(schedule, folder):
    """Their runtime with our schedule in it, lowered with their sends and receives."""
    file = folder / "ours.csv"
    file.write_text(format_compute_csv(schedule))
    runtime = _PipelineScheduleRuntime(
        stand_ins(schedule.placement), schedule.num_microbatches, loss_fn=lambda *_: 0
    )
    runtime._load_csv(str(file))
    return runtime


def loaded_here(name, p, m, folder):
    """A schedule of theirs, with its idle cells."""
    placement = build_schedule("interleaved", num_ranks=p, num_microbatches=m).placement
    if name in IN_A_V:
        placement = build_schedule("dualpipe-v", num_ranks=p, num_microbatches=2 * p).placement
    kind = getattr(theirs, f"Schedule{name}")
    file = folder / "theirs.csv"
    kind(stand_ins(placement), m, loss_fn=lambda *_: 0)._dump_csv(str(file), format="compute_only")
    return parse_compute_csv(file.read_text(), name=name), placement


def dry_run(runtime):
    """Run their sends, receives and computes on paper; raises if it hangs."""
    unknown = {"UNSHARD", "RESHARD", "REDUCE_GRAD"}  # for sharded parameters
    order = {
        rank: [action for action in row if action.computation_type.value not in unknown]
        for rank, row in runtime.pipeline_order_with_comms.items()
    }
    rank_of = runtime.stage_index_to_group_rank
    _simulate_comms_compute(order, rank_of.__getitem__, runtime._num_stages)


def words(row):
    """Their actions as our text, without idle cells and without brackets."""
    return [str(a) for action in row if action for a in (action.sub_actions or (action,))]


@pytest.mark.parametrize("name", HELD_ONCE)
def test_ours_load_there(name, tmp_path):
    """Every schedule that holds each stage once: same order, valid there, and it does not hang."""
    for p, m in SIZES:
        schedule = build_schedule(name, num_ranks=p, num_microbatches=m)
        runtime = loaded_there(schedule, tmp_path)

        for rank in range(p):
            ours = [str(a) for a in schedule.actions[rank]]
            assert words(runtime.pipeline_order[rank]) == ours
        where = {s: schedule.placement.rank_of[s] for s in range(schedule.num_stages)}
        assert runtime.stage_index_to_group_rank == where
        if not schedule.overlaps:  # which their dry run does not know
            dry_run(runtime)


def test_most_are_held_once():
    """All but Chimera and DualPipe, which hold stages twice, and forwards alone."""
    assert set(schedule_names()) - set(HELD_ONCE) == {"chimera", "dualpipe", "forward-only"}


def test_theirs_has_no_stages_held_twice(tmp_path):
    """A schedule with two copies of the model is refused there, not run wrong."""
    schedule = build_schedule("chimera", num_ranks=2, num_microbatches=4)

    with pytest.raises(AssertionError, match="assigned to both rank"):
        loaded_there(schedule, tmp_path)


@pytest.mark.parametrize("name", LOOPED + IN_A_V)
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_theirs_load_here(name, p, m, tmp_path):
    """Valid here as they are, on the placement they have there, and they run on a clock."""
    if name == "DualPipeV" and m < 2 * p:
        pytest.skip("needs as many micro-batches as stages")
    schedule, placement = loaded_here(name, p, m, tmp_path)

    verify(schedule)
    assert schedule.placement == placement
    assert schedule.num_microbatches == m
    timeline = simulate(lower(schedule), CostModel.uniform(schedule.num_stages))
    assert timeline.makespan_s >= 2 * 3 * m
    assert len(timeline.spans) == sum(map(len, schedule.actions))
    assert bool(schedule.overlaps) == (name == "DualPipeV")


def test_a_round_trip_keeps_their_order(tmp_path):
    """Written again and read there, it is what it was, but for idle cells."""
    schedule, _ = loaded_here("DualPipeV", 4, 12, tmp_path)

    again = loaded_there(schedule, tmp_path).pipeline_order

    for rank in range(4):
        row = [words([a]) for a in again[rank]]
        assert [w for ws in row for w in ws] == [str(a) for a in schedule.actions[rank]]
        pairs = [ws for ws in row if len(ws) == 2]
        assert len(pairs) == sum(r == rank for r, _ in schedule.overlaps) > 0


def test_cells_are_theirs(tmp_path):
    """Each cell we write is one of their actions, overlapped pairs included."""
    schedule, _ = loaded_here("DualPipeV", 2, 4, tmp_path)
    cells = format_compute_csv(schedule).replace("\n", ",").split(",")
    kinds = {_Action.from_str(cell).computation_type.value for cell in cells if cell}

    assert {str(kind) for kind in ActionKind} | {"OVERLAP_F_B"} == kinds


@pytest.mark.parametrize("name", LOOPED + IN_A_V)
def test_theirs_train_here(name, tmp_path):
    """With one process's gradients."""
    schedule, _ = loaded_here(name, 2, 4, tmp_path)
    sample = next(n for n in SAMPLES if max_stages(n) >= schedule.num_stages)

    with repeatable_cuts():
        found = in_tandem(SAMPLES[sample](), ranks=2, schedule=schedule, microbatches=4)

    equality = compare(found, plain(sample, 4))
    assert equality.equal, equality.worst()


@pytest.mark.parametrize(("p", "m"), [(4, 8), (4, 12), (2, 8)])
def test_interleaved_is_as_long_as_theirs(p, m, tmp_path):
    """The same algorithm: the same makespan and the same memory."""
    schedule, _ = loaded_here("Interleaved1F1B", p, m, tmp_path)
    ours = build_schedule("interleaved", num_ranks=p, num_microbatches=m)
    costs = CostModel.uniform(schedule.num_stages)

    assert simulate(ours, costs).makespan_s == simulate(schedule, costs).makespan_s
    assert peak_activations(ours) == peak_activations(schedule)
