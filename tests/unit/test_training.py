"""What training is made of, plain module against pipeline: parameters, optimizers, and modes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import intandem as it
from harness import TOLERANCE, gradients, relative_error, same_bits
from intandem.equality import Splitting, one_process

OPTIONS = it.Options(threads_per_rank=1)
MICROBATCHES = 3
ROWS = 7


class Block(nn.Module):
    def __init__(self, width, drop=0.0):
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.drop, self.down = nn.Dropout(drop), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(self.drop(F.gelu(self.up(self.norm(x)))))


class Net(nn.Module):
    def __init__(self, drop=0.0):
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Block(8, drop) for _ in range(4))
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def loss(output, batch):
    return F.cross_entropy(output, batch[1])


def batch_of(seed=0, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (rows,), generator=generator)


def pair(make=Net, **kwargs):
    """Two models alike."""
    torch.manual_seed(5)
    model = make(**kwargs).double()
    return model, copy.deepcopy(model)


class Both:
    """A pipeline and a plain module, trained side by side; what they have is compared."""

    def __init__(self, ours, theirs, ranks=2, **kwargs):
        self.ours, self.theirs, self.steps = ours, theirs, 0
        self.pipe = it.Pipeline(
            ours, example=batch_of(), loss=loss, ranks=ranks, microbatches=MICROBATCHES,
            options=OPTIONS, **kwargs,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.pipe.close()

    def step(self, seed=0, rows=ROWS):
        batch = batch_of(seed, rows)
        self.check_state()
        self.theirs.load_state_dict(self.ours.state_dict())  # what an optimizer amplifies
        found = self.pipe.step(batch)
        expected = one_process(self.theirs, batch, loss, Splitting(MICROBATCHES), step=self.steps)
        self.steps += 1
        assert found == pytest.approx(expected.loss, rel=TOLERANCE)
        assert relative_error(gradients(self.ours), gradients(self.theirs)) <= TOLERANCE
        return found

    def check_state(self):
        found, expected = self.ours.state_dict(), self.theirs.state_dict()
        errors = [
            float((found[n].double() - t.double()).norm() / max(float(t.double().norm()), 1e-3))
            for n, t in expected.items()
        ]
        assert max(errors) <= 1e-10


def both_optimizers(both, make):
    return [make(both.pipe.parameters()), make(both.theirs.parameters())]


FROZEN = {
    "first stage": lambda n: n.startswith(("embed", "blocks.0", "blocks.1")),
    "middle": lambda n: n.startswith(("blocks.1", "blocks.2")),
    "last stage": lambda n: n.startswith(("blocks.2", "blocks.3", "norm", "head")),
    "all but one": lambda n: n != "embed.weight",
    "biases": lambda n: n.endswith("bias"),
}


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("stages", [["blocks.2"], ["blocks.1", "blocks.2", "blocks.3"]])
def test_frozen_parameters_and_stages(stages, frozen, recompute):
    """Whole stages too; frozen parameters keep ``.grad`` None; the optimizer sees the others."""
    ours, theirs = pair()
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not FROZEN[frozen](name))
    ranks = len(stages) + 1
    with Both(ours, theirs, ranks, split_points=stages, recompute=recompute) as both:
        optimizers = both_optimizers(
            both, lambda p: torch.optim.AdamW([x for x in p if x.requires_grad], lr=0.01)
        )
        for seed in range(2):
            both.step(seed)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        both.check_state()


def test_freezing_and_unfreezing_between_steps():
    """What is trained may change from step to step, over a cut as well."""
    ours, theirs = pair()
    with Both(ours, theirs, split_points=["blocks.2"]) as both:
        for seed, trained in enumerate([("",), ("head",), ("blocks.0", "head"), ("",)]):
            for model in (ours, theirs):
                model.zero_grad()
                for name, parameter in model.named_parameters():
                    parameter.requires_grad_(name.startswith(trained))
            both.step(seed)


def test_nothing_to_train_below_the_loss():
    """A path whose gradient is zero gives zeros, as in one process, not None."""

    class Cut(Net):
        def forward(self, x):
            return super().forward(x) * 0.0

    ours, theirs = pair(Cut)
    with Both(ours, theirs) as both:
        both.step()
    assert all(g is not None and not g.any() for g in gradients(ours).values())


def test_accumulation_over_steps():
    """Gradients add up until they are set to None, under a loss that is a mean and a sum."""

    def summed(output, batch):
        return it.LossSum(F.cross_entropy(output, batch[1], reduction="sum"), len(batch[1]))

    for each in (loss, summed):
        ours, theirs = pair()
        ours.norm, theirs.norm = nn.Identity(), nn.Identity()
        with it.Pipeline(
            ours, example=batch_of(), loss=each, ranks=2, microbatches=MICROBATCHES
        ) as pipe:
            for seed in range(3):
                pipe.step(batch_of(seed))
                x, y = batch_of(seed)
                F.cross_entropy(theirs(x), y).backward()
        assert relative_error(gradients(ours), gradients(theirs)) <= TOLERANCE


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
])  # fmt: skip
def test_optimizers_schedulers_and_clipping(make):
    """A changing learning rate, clipping against torch's, and an optimizer's state by parameter."""
    ours, theirs = pair()
    with Both(ours, theirs) as both:
        optimizers = both_optimizers(both, make)
        schedulers = [
            torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=4)
            for optimizer in optimizers
        ]
        for seed in range(4):
            both.step(seed)
            norm = both.pipe.clip_grad_norm_(0.3)
            expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
            assert norm == pytest.approx(float(expected), rel=TOLERANCE)
            assert relative_error(gradients(ours), gradients(theirs)) <= TOLERANCE
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        both.check_state()
        states = [
            {n: o.state[p] for n, p in m.named_parameters()}
            for o, m in zip(optimizers, (ours, theirs), strict=True)
        ]
        for name, state in states[1].items():
            for key, value in state.items():
                torch.testing.assert_close(states[0][name][key], value, rtol=1e-9, atol=1e-12)


def test_parameter_groups_by_name():
    """No decay for biases and norms, a rate of its own for the head."""
    ours, theirs = pair()
    with Both(ours, theirs) as both:

        def groups(named):
            named = list(named)
            plain = [p for n, p in named if n.endswith("bias") or "norm" in n]
            head = [p for n, p in named if n == "head.weight"]
            taken = {id(p) for p in [*plain, *head]}
            rest = [p for _, p in named if id(p) not in taken]
            return [
                {"params": plain, "weight_decay": 0.0},
                {"params": head, "lr": 0.001},
                {"params": rest, "weight_decay": 0.1},
            ]

        optimizers = [
            torch.optim.AdamW(groups(named), lr=0.01)
            for named in (both.pipe.named_parameters(), theirs.named_parameters())
        ]
        for seed in range(2):
            both.step(seed)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        both.check_state()
        saved = optimizers[0].state_dict()
        optimizers[0].load_state_dict(saved)


def test_gradients_are_read_and_changed_after_a_step():
    """``.grad`` is complete, and what is written there is what the optimizer uses."""
    ours, theirs = pair()
    with Both(ours, theirs) as both:
        optimizers = both_optimizers(both, lambda p: torch.optim.SGD(p, lr=0.1))
        both.step()
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter in model.parameters():
                parameter.grad.clamp_(-0.01, 0.01).add_(parameter, alpha=0.1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        both.check_state()
        both.step(1)


def test_modes_between_steps():
    """``train`` and ``eval`` of the whole model and of a part, dropout and BatchNorm included."""
    ours, theirs = pair(drop=0.3)
    with Both(ours, theirs) as both:
        for seed, setting in enumerate(
            [lambda m: m.train(), lambda m: m.norm.eval(), lambda m: m.blocks[1].eval(),
             lambda m: m.eval(), lambda m: m.train()]
        ):  # fmt: skip
            for model in (ours, theirs):
                setting(model)
                model.zero_grad()
            before = {n: m.training for n, m in ours.named_modules()}
            both.step(seed)
            both.pipe.evaluate(batch_of(seed))
            assert before == {n: m.training for n, m in ours.named_modules()}
            both.check_state()


@pytest.mark.parametrize("how", ["swa", "swa buffers", "by hand"])
def test_moving_averages(how):
    """AveragedModel of the module that the pipeline trains, and one made by hand."""
    ours, theirs = pair()
    with Both(ours, theirs) as both:
        optimizers = both_optimizers(both, lambda p: torch.optim.SGD(p, lr=0.1))
        if how == "by hand":
            averages = [{n: p.detach().clone() for n, p in m.named_parameters()}
                        for m in (ours, theirs)]  # fmt: skip
        else:
            averages = [
                AveragedModel(
                    m, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=how == "swa buffers"
                )
                for m in (ours, theirs)
            ]
        for seed in range(3):
            both.step(seed)
            for model, optimizer, average in zip((ours, theirs), optimizers, averages, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                if how != "by hand":
                    average.update_parameters(model)
                    continue
                for name, parameter in model.named_parameters():
                    average[name].lerp_(parameter.detach(), 0.1)
    states = averages if how == "by hand" else [a.state_dict() for a in averages]
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-9, atol=1e-12)


def test_hooks_fire_as_often_as_in_one_process():
    """Forward, forward-pre and full backward hooks of blocks; hooks of parameters."""
    ours, theirs = pair()
    seen = [{}, {}]
    for model, counts in zip((ours, theirs), seen, strict=True):

        def count(what, counts=counts):
            def hook(*_):
                counts[what] = counts.get(what, 0) + 1

            return hook

        block, weight = model.blocks[1], model.blocks[2].up.weight
        block.register_forward_pre_hook(count("forward pre"))
        block.register_forward_hook(count("forward"))
        block.register_full_backward_hook(count("backward"))
        block.register_full_backward_pre_hook(count("backward pre"))
        block.up.register_forward_hook(count("inner"))
        weight.register_hook(count("gradient"))
        weight.register_post_accumulate_grad_hook(count("accumulated"))
    with Both(ours, theirs) as both:
        for counts in seen:
            counts.clear()
        both.step(rows=3 * MICROBATCHES)  # micro-batches as large as the one recorded
        both.step(1, rows=3 * MICROBATCHES)
        assert seen[0] == seen[1]
        assert set(seen[0].values()) == {2 * MICROBATCHES}
        both.step()  # uneven parts, as the example's
        assert seen[0] == seen[1]
        both.step(rows=4 * MICROBATCHES)  # a new shape is recorded: forward once more
        assert seen[0]["forward"] == seen[1]["forward"] + 1
        assert seen[0]["backward"] == seen[1]["backward"]


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_hooks_that_change_something(schedule):
    """A forward hook that scales, and a hook that clips a parameter's gradient."""
    ours, theirs = pair()
    for model in (ours, theirs):
        model.blocks[0].register_forward_hook(lambda _, __, output: output * 1.5)
        model.blocks[2].register_full_backward_hook(lambda _, given, __: (given[0] * 0.5,))
        model.head.weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    with Both(ours, theirs, schedule=schedule) as both:
        both.step()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("how", "drop", "schedule"),
    [
        ("compile method", 0.0, "1f1b"), ("compile method", 0.3, "zb-h1"),
        ("compile function", 0.0, "zb-h1"), ("compile function", 0.3, "1f1b"),
    ],
)  # fmt: skip
def test_compiled_blocks(how, drop, schedule):
    """``block.compile()``: every block is kept whole, and computes what it does in one process."""
    ours, theirs = pair(drop=drop)
    torch._dynamo.reset()
    for model in (ours, theirs):
        for index, block in enumerate(model.blocks):
            if how == "compile method":
                block.compile(backend="aot_eager")
            else:
                model.blocks[index] = torch.compile(block, backend="aot_eager")
    with Both(ours, theirs, schedule=schedule) as both:
        optimizers = both_optimizers(both, lambda p: torch.optim.SGD(p, lr=0.1))
        for seed in range(2):
            both.step(seed)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        both.check_state()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["compile method", "compile function"])
def test_compiled_blocks_stay_compiled_and_the_report_says_what_does_not_wait(how):
    """Looking at what forwards keep does not make the compiler refuse them ever after."""
    torch._dynamo.reset()
    model = nn.Sequential(Block(4), Block(4))
    if how == "compile method":
        model[0].compile(backend="aot_eager")
    else:
        model[0] = torch.compile(model[0], backend="aot_eager")
    x = torch.randn(4, 4)
    with it.Pipeline(
        model, example=x, loss=F.mse_loss, ranks=2, microbatches=2, schedule="zb-h1"
    ) as pipe:
        pipe.step(x)
        stages = pipe.report_value().stages
    linear = 2 * 4 * 8 + 8 + 4
    assert [stage.num_waiting for stage in stages] == [0, linear]
    assert model[0](x).grad_fn.name() == "CompiledFunctionBackward"


def test_bits_do_not_depend_on_ranks_after_steps():
    """After three optimizer steps 1, 2 and 4 stages hold the same bits."""
    states = []
    for ranks in (1, 2, 4):
        ours, theirs = pair(drop=0.2)
        with Both(ours, theirs, ranks) as both:
            optimizer = torch.optim.AdamW(both.pipe.parameters(), lr=0.01)
            for seed in range(3):
                both.pipe.step(batch_of(seed))
                both.pipe.clip_grad_norm_(0.5)
                optimizer.step()
                optimizer.zero_grad()
        states.append(ours.state_dict())
    assert same_bits(states[1], states[0]) == same_bits(states[2], states[0]) == []
