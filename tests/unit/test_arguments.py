"""Arguments of ``Pipeline`` of the wrong kind are refused before anything is done with them."""

import re

import pytest
import torch
from torch import nn

import intandem as it
from intandem.errors import CaptureError, RunError, ScheduleError
from intandem.schedules import build_schedule

X, Y = torch.randn(8, 6), torch.randn(8, 6)


def mse(output, batch):
    return nn.functional.mse_loss(output, batch[1])


def layers():
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))


def build(model=None, **kwargs):
    it.Pipeline(
        layers() if model is None else model, **{"example": (X, Y), "loss": mse, **kwargs}
    ).close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"microbatches": 2.5}, "microbatches=2.5 is a float; expected an int"),
        ({"microbatches": True}, "microbatches=True is a bool; expected an int"),
        ({"ranks": "4"}, "ranks='4' is a str; expected an int"),
        ({"options": {}}, "options is a dict; expected intandem.Options"),
        ({"model": nn.Linear}, "model is the class Linear; expected an nn.Module"),
        ({"model": mse}, "model is a function; expected an nn.Module"),
        (
            {"schedule": 4},
            "schedule is a int; expected a name or a Schedule "
            "(of what search found: found.schedule)",
        ),
        ({"stages": 4}, "stages is a int; expected 'auto' or a list of module names"),
        ({"split": ["mask"]}, "split is a list; expected a dictionary"),
        ({"loss": "mse"}, "loss is a str; expected a function"),
        (
            {"options": it.Options(threads_per_rank=1.5)},
            "options.threads_per_rank=1.5 is a float; expected an int",
        ),
        ({"options": it.Options(seed="x")}, "options.seed='x' is a str; expected an int"),
        (
            {"options": it.Options(timeout_s="x")},
            "options.timeout_s='x' is a str; expected a number",
        ),
    ],
)
def test_types(given, message):
    """The argument is named, with what it is and what it should be."""
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        build(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads_per_rank": 0}, "options.threads_per_rank=0; expected 1 or more"),
        ({"timeout_s": 0}, "options.timeout_s=0; expected seconds, more than 0"),
        ({"timeout_s": -1.0}, "options.timeout_s=-1.0; expected seconds, more than 0"),
    ],
)
def test_options(options, message):
    """Numbers that nothing can be done with."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build(options=it.Options(**options))


SIZES = {"num_ranks": 2, "num_microbatches": 4}
SCHEDULE = build_schedule("1f1b", **SIZES)
COSTS = it.CostModel.uniform(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: it.build_schedule(3, **SIZES), "name is a int; expected a schedule's name"),
        (
            lambda: it.build_schedule("1f1b", num_ranks="2", num_microbatches=4),
            "num_ranks='2' is a str; expected an int",
        ),
        (
            lambda: it.build_schedule("1f1b", num_ranks=2, num_microbatches=4.0),
            "num_microbatches=4.0 is a float; expected an int",
        ),
        (
            lambda: it.build_schedule("interleaved", **SIZES, stages_per_rank="2"),
            "stages_per_rank='2' is a str; expected an int",
        ),
        (
            lambda: it.build_schedule("zb-v", **SIZES, max_activations="4"),
            "max_activations='4' is a str; expected a number",
        ),
        (
            lambda: it.build_schedule("zb-v", **SIZES, costs=3),
            "costs is a int; expected a CostModel",
        ),
        (lambda: it.verify("1f1b"), "order is a str; expected a Schedule or a Program"),
        (lambda: it.simulate("1f1b", COSTS), "order is a str; expected a Schedule or a Program"),
        (lambda: it.simulate(SCHEDULE, 3), "costs is a int; expected a CostModel"),
        (lambda: it.search(3, **SIZES), "costs is a int; expected a CostModel"),
        (
            lambda: it.search(COSTS, num_ranks="2", num_microbatches=4),
            "num_ranks='2' is a str; expected an int",
        ),
        (
            lambda: it.search(COSTS, **SIZES, memory_cap="2"),
            "memory_cap='2' is a str; expected an int",
        ),
        (
            lambda: it.search(COSTS, **SIZES, memory_cap=(2, 2.5)),
            "memory_cap=2.5 is a float; expected an int",
        ),
        (
            lambda: it.search(COSTS, **SIZES, placement="loop"),
            "placement is a str; expected a Placement",
        ),
        (
            lambda: it.search(COSTS, **SIZES, effort="x"),
            "effort='x' is a str; expected a number",
        ),
        (lambda: it.CostModel(1, 1, 1), "forward_s is a int; expected a number per stage"),
        (
            lambda: it.CostModel(("x",), (1,), (1,), (2,)),
            "forward_s='x' is a str; expected a number",
        ),
        (lambda: it.CostModel.uniform("2"), "num_stages='2' is a str; expected an int"),
        (lambda: it.check(3, (X, Y), mse), "model is a int; expected an nn.Module"),
        (lambda: it.check(layers(), (X, Y), mse, ranks="2"), "ranks='2' is a str; expected an int"),
        (lambda: it.capture(3, X), "model is a int; expected an nn.Module"),
    ],
)
def test_types_of_functions(call, message):
    """Every public function names the argument."""
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: it.search(COSTS, **SIZES, effort=0), "effort is 0; expected a finite"),
        (lambda: it.search(COSTS, **SIZES, time_limit_s=-1), "time_limit_s is -1; expected"),
        (
            lambda: it.search(COSTS, **SIZES, solver="x"),
            "solver is 'x'; expected 'auto', 'none' or 'cp-sat'",
        ),
        (lambda: it.check(layers(), (X, Y), mse, ranks=0), "ranks=0; a pipeline has 1 or more"),
    ],
)
def test_values_of_functions(call, message):
    """The argument is named, with what would do."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


def test_methods():
    """A norm is a number, 0 or more: one below would turn gradients round; a state is a mapping."""
    with it.Pipeline(layers(), example=(X, Y), loss=mse, ranks=2) as pipe:
        pipe.step((X, Y))
        before = [p.grad.clone() for p in pipe.parameters()]
        with pytest.raises(ValueError, match=r"^max_norm=-1; expected 0 or more$"):
            pipe.clip_grad_norm_(-1)
        with pytest.raises(TypeError, match=r"^max_norm='1' is a str; expected a number$"):
            pipe.clip_grad_norm_("1")
        assert all(map(torch.equal, before, (p.grad for p in pipe.parameters())))
        with pytest.raises(TypeError, match=r"^state is a int; expected a dictionary of tensors"):
            pipe.load_state_dict(3)
        pipe.clip_grad_norm_(torch.tensor(0.0))
        assert not any(p.grad.any() for p in pipe.parameters())


def test_devices(monkeypatch):
    """A device that is not there is refused with what there is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:3", torch.device("cuda")):
        with pytest.raises(RunError, match=rf"^device='{device}', and torch sees 0 CUDA devices"):
            build(options=it.Options(device=device))
    with pytest.raises(ValueError, match="device='gpu' is no device: "):
        build(options=it.Options(device="gpu"))


def test_missing_csv(tmp_path):
    """The path that was looked at is named."""
    path = tmp_path / "mine.csv"
    with pytest.raises(ScheduleError, match=f"there is no file {re.escape(str(path))}$"):
        build(schedule=str(path))


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_meta(kind):
    """A tensor without data is named."""
    model = layers()
    if kind == "parameter":
        model[1].to("meta")
    else:
        model[1].register_buffer("scale", torch.zeros(1, device="meta"))
    name = "weight" if kind == "parameter" else "scale"
    with pytest.raises(
        CaptureError, match=rf"^1\.{name} is on the meta .* say where its values come from"
    ):
        build(model)


# Wrapped and compiled.


class FSDPModule:
    """What ``fully_shard`` adds to the bases of a module's class."""


class FSDPLinear(FSDPModule, nn.Linear):
    pass


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (nn.Sequential(nn.Linear(6, 6), FSDPLinear(6, 6)), "1 is wrapped in FSDPModule"),
        (nn.DataParallel(layers()), "the model is wrapped in DataParallel"),
    ],
)
def test_wrapped(model, where):
    """What reduces gradients in backward is refused, inside the model and as subclasses too."""
    with pytest.raises(RunError, match=f"^{where}, whose gradient reductions .* bare module$"):
        build(model)


def test_the_base_of_sharded_modules():
    """The name that is looked for is still torch's."""
    from torch.distributed.fsdp import FSDPModule as Theirs

    assert Theirs.__name__ == FSDPModule.__name__


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_as_a_whole(in_place):
    """A compiled model is refused, with the way to compile its blocks instead."""
    model = layers()
    if in_place:
        model.compile()
    else:
        model = torch.compile(model)
    with pytest.raises(RunError, match=r"compiled as a whole, .*block\.compile\(\)$"):
        build(model)


# Schedules given as values.


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "naive"])
def test_fewer_rows_than_a_schedule_has_microbatches(name):
    """The actions of micro-batches that are not there are left out; the numbers stay right."""
    schedule = build_schedule(name, num_ranks=2, num_microbatches=6)
    model = layers().double()
    batch = (X[:4].double(), Y[:4].double())
    expected = mse(model(batch[0]), batch).item()
    with it.Pipeline(
        model, example=(X.double(), Y.double()), loss=mse, schedule=schedule, ranks=2
    ) as pipe:
        assert pipe.step(batch) == pytest.approx(expected, rel=1e-12)
        assert pipe.program().num_microbatches == 4
        assert pipe.step((X.double(), Y.double())) > 0
        assert pipe.program().num_microbatches == 6


@pytest.mark.parametrize(
    ("given", "to_run"),
    [
        ({"ranks": 1}, "1 and 6"),
        ({"ranks": 2, "microbatches": 4}, "2 and 4"),
        ({"ranks": 2, "microbatches": 8}, "2 and 8"),
    ],
)
def test_a_schedule_for_other_numbers(given, to_run):
    """Other ranks, and other micro-batches that were asked for, are refused."""
    schedule = build_schedule("1f1b", num_ranks=2, num_microbatches=6)
    message = f"schedule 1f1b is for 2 ranks and 6 micro-batches, and is to run {to_run}; build it"
    with pytest.raises(ScheduleError, match=re.escape(message)):
        build(schedule=schedule, **given)
    with (
        it.Pipeline(layers(), example=(X, Y), loss=mse, schedule=schedule, ranks=2) as pipe,
        pytest.raises(ScheduleError, match="and is to run 2 and 7;"),
    ):
        pipe.step([(X, Y)] * 7)
