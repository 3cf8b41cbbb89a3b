"""What waits for W, and that it adds up to what autograd computes in one go."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import intandem as it
from harness import TOLERANCE
from intandem.errors import ActionError
from intandem.runtime.weight_gradients import differentiate

aten = torch.ops.aten


class Made(nn.Module):
    """Parameters by name, and what is done with them."""

    def __init__(self, function, **shapes):
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / 2))

    def forward(self, x):
        return self.function(x, *self.parameters())


class Table(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.rows = nn.Embedding(7, 4, **options)

    def forward(self, x):
        return self.rows((x * 10).long().abs() % 7)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0]


class Adapted(nn.Module):
    """A frozen linear with a low-rank adapter."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 4)
        self.base.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight.T, x.mT.matmul(gradient).sum(0)


def complex_factors():
    made = Made(lambda x, w: torch.view_as_real((x * (1 + 2j)) @ w), w=(4, 3))
    made.w = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))
    return made


def hooked(x):
    """Let a hook change the gradient of what an operation returned."""
    x.register_hook(lambda gradient: gradient * 3)
    return x


def bf16(function):
    def cast(*args):
        with torch.autocast("cpu", torch.bfloat16):
            return function(*args)

    return cast


# What makes the module, and the parameters whose gradients wait; all others come with I.
CASES = {
    "linear": (lambda: nn.Linear(4, 3), {"weight", "bias"}),
    "linear-without-offset": (lambda: nn.Linear(4, 3, bias=False), {"weight"}),
    "matmul": (lambda: Made(torch.matmul, w=(4, 3)), {"w"}),
    "matmul-from-the-left": (lambda: Made(lambda x, w: w @ x[0], w=(3, 5)), {"w"}),
    "matmul-of-batches": (lambda: Made(torch.bmm, w=(2, 4, 3)), {"w"}),
    "matmul-of-batches-from-the-left": (lambda: Made(lambda x, w: w.bmm(x), w=(2, 3, 5)), {"w"}),
    "matmul-of-a-transposed": (lambda: Made(lambda x, w: x @ w.t(), w=(3, 4)), {"w"}),
    "matmul-of-a-part": (lambda: Made(lambda x, w: x @ w[:, 1:4], w=(4, 6)), {"w"}),
    "einsum": (lambda: Made(lambda x, w: torch.einsum("btd,ed->bte", x, w), w=(3, 4)), {"w"}),
    "offset-and-product": (
        lambda: Made(lambda x, b, w: torch.addmm(b, x[0], w), b=(3,), w=(4, 3)), {"b", "w"},
    ),
    "offset-of-one-element": (
        lambda: Made(lambda x, b, w: torch.addmm(b, x[0], w), b=(1,), w=(4, 3)), {"b", "w"},
    ),
    "hooked-output": (lambda: Made(lambda x, w: hooked(x[0] @ w), w=(4, 3)), {"w"}),
    "hooked-output-with-offset": (
        lambda: Made(lambda x, b, w: hooked(torch.addmm(b, x[0], w)), b=(3,), w=(4, 3)),
        {"b", "w"},
    ),
    "hooked-output-of-batches": (lambda: Made(lambda x, w: hooked(x.bmm(w)), w=(2, 4, 3)), {"w"}),
    "hooked-convolution": (
        lambda: Made(lambda x, w, b: hooked(F.conv1d(x, w, b)), w=(6, 5, 3), b=(6,)), {"w"},
    ),
    "hooked-then-computed-on": (
        lambda: Made(lambda x, w: hooked(x[0] @ w).tanh(), w=(4, 3)), {"w"},
    ),
    "scaled-product": (
        lambda: Made(lambda x, b, w: torch.addmm(b, x[0], w, beta=2), b=(3,), w=(4, 3)), set(),
    ),
    "offset-matrix": (
        lambda: Made(lambda x, b, w: torch.addmm(b, x[0], w), b=(5, 3), w=(4, 3)), {"w"},
    ),
    "offset-of-one-row": (
        lambda: Made(lambda x, b, w: torch.addmm(b[None], x[0], w), b=(3,), w=(4, 3)), {"w"},
    ),
    "complex-factors": (complex_factors, {"w"}),
    "convolution": (lambda: nn.Conv1d(5, 6, 3, padding=1), {"weight"}),
    "convolution-in-groups": (lambda: nn.Conv1d(5, 10, 2, stride=2, groups=5), {"weight"}),
    "transposed-convolution": (lambda: nn.ConvTranspose1d(5, 3, 3, stride=2), {"weight"}),
    "table": (Table, {"rows.weight"}),
    "table-with-padding": (lambda: Table(padding_idx=2), {"rows.weight"}),
    "sparse-table": (lambda: Table(sparse=True), set()),
    "table-scaled-by-frequency": (lambda: Table(scale_grad_by_freq=True), set()),
    "attention": (
        Attention,
        {"inner.in_proj_weight", "inner.out_proj.weight", "inner.out_proj.bias"},
    ),
    "adapter": (Adapted, {"down.weight", "down.bias", "up.weight", "up.bias"}),
    "used-twice": (lambda: Made(lambda x, w: (x @ w).tanh() @ w, w=(4, 4)), {"w"}),
    "used-in-two-ways": (lambda: Made(lambda x, w: (x @ w) * w[0], w=(4, 4)), set()),
    "both-factors": (lambda: Made(lambda x, v, w: x @ (v @ w), v=(4, 2), w=(2, 3)), {"w"}),
    "squared": (lambda: Made(lambda x, w: x @ (w @ w), w=(4, 4)), set()),
    "custom-function": (lambda: Made(Doubled.apply, w=(4, 3)), set()),
    "scale": (lambda: Made(lambda x, w: w * (x * x.square().mean().rsqrt()), w=(4,)), set()),
    "norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), {"0.weight", "0.bias"}),
    "recurrent": (lambda: Made(lambda x, w: (x @ w).cumsum(1), w=(4, 3)), {"w"}),
    "mixed-precision": (
        lambda: Made(bf16(F.linear), w=(3, 4), b=(3,)).float(), {"w", "b"},
    ),
    "reparametrised": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), set(),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[True, False], ids=["inside", "first"])
def x(request):
    """Activations; False where no gradient is asked for, as on the first stage."""
    torch.manual_seed(1)
    return torch.randn(2, 5, 4, requires_grad=request.param)


def seed_of(output):
    torch.manual_seed(2)
    return torch.randn(output.shape).to(output.dtype)


def plain(module, x, times):
    """Gradient of x, and of the parameters by name, after so many backwards."""
    for _ in range(times):
        x.grad = None
        output = module(x)
        output.backward(seed_of(output))
    return x.grad, {name: dense(p.grad) for name, p in module.named_parameters()}


def dense(gradient):
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def run_i(module, x):
    output = module(x)
    return differentiate([(output, seed_of(output))], [x] if x.requires_grad else [])


def run_w(pending):
    pending.add_up()


def same(found, expected, tolerance=TOLERANCE):
    if found is None or expected is None:
        return found is expected
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("case", CASES)
def test_sums(case, x):
    """I and W of two micro-batches add up to what two backwards do, and the right ones wait."""
    make, names = CASES[case]
    if case.startswith("table") or case == "sparse-table":
        x = x.detach()
    module = make()
    reference, tolerance = copy.deepcopy(module), TOLERANCE
    if case == "mixed-precision":  # sums of two half-precision terms, in another order
        x, tolerance = x.detach().float().requires_grad_(x.requires_grad), 0.01
    of_x, expected = plain(reference, x, times=2)
    for _ in range(2):
        entries, pending = run_i(module, x)
        run_w(pending)
        assert same(entries[0] if entries else None, of_x, tolerance)
    for name, parameter in module.named_parameters():
        assert same(dense(parameter.grad), expected[name], tolerance), name
    alone = make()
    run_i(alone, x)
    waiting = {name for name, p in alone.named_parameters() if p.grad is None and p.requires_grad}
    assert waiting == names


def run_b(module, x):
    output = module(x)
    entries = [x] if x.requires_grad else []
    found, pending = differentiate([(output, seed_of(output))], entries, at_once=True)
    num_late = len(pending.terms)
    run_w(pending)
    return found, num_late


@pytest.mark.parametrize("case", CASES)
def test_b_has_the_bits_of_i_and_w(case, x):
    make, _ = CASES[case]
    if case.startswith("table") or case == "sparse-table":
        x = x.detach()
    if case == "mixed-precision":
        x = x.detach().float().requires_grad_(x.requires_grad)
    apart = make()
    at_once = copy.deepcopy(apart)
    for _ in range(2):
        entries, pending = run_i(apart, x)
        run_w(pending)
        found, _ = run_b(at_once, x)
        assert all(map(torch.equal, found, entries))
    for one, other in zip(at_once.parameters(), apart.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(dense(one.grad), dense(other.grad))


@pytest.mark.parametrize("has_entry", [True, False])
def test_b_keeps_gradients_only_where_autograd_does_not_come(has_entry):
    """Without an entry, nothing but the first layer's own weights lies behind that layer."""
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    x = torch.randn(3, 4, requires_grad=has_entry)
    _, num_late = run_b(module, x)
    assert num_late == (0 if has_entry else 2)
    assert all(p.grad is not None for p in module.parameters())


def test_b_lets_go_on_the_way():
    """Once backward is at the first layer, what those behind it were given takes no memory."""
    first, *others = [nn.Linear(4, 4) for _ in range(4)]
    x, given, are_gone = torch.randn(3, 4, requires_grad=True), [], []
    output = first(x)
    output.register_hook(lambda _: are_gone.extend(memory.expired() for memory in given))
    for layer in others:
        output = output.tanh()
        given.append(StorageWeakRef(output.untyped_storage()))
        output = layer(output)
    assert not any(memory.expired() for memory in given)
    differentiate([(output, seed_of(output))], [x], at_once=True, hooked=False)
    assert are_gone == [True, True, True]


def test_b_of_a_parameter_at_both_ends():
    """Terms are added in the order of I and W, wherever autograd comes to them."""
    torch.manual_seed(3)
    apart = Made(lambda x, w: ((x @ w).tanh() @ w) + (x * 3) @ w, w=(4, 4))
    at_once = copy.deepcopy(apart)
    for _ in range(5):
        x = torch.randn(64, 4)
        run_w(run_i(apart, x)[1])
        run_b(at_once, x)
    assert torch.equal(apart.w.grad, at_once.w.grad)


def test_b_where_all_that_is_behind_was_frozen_since_the_forward():
    """Autograd has no reason to come to the last layer then; it has its gradients all the same."""
    first, last = nn.Linear(4, 4), nn.Linear(4, 3)
    output = last(first(torch.randn(2, 4)))
    first.requires_grad_(False)
    run_w(differentiate([(output, seed_of(output))], [], at_once=True)[1])
    assert first.weight.grad is None
    assert last.weight.grad is not None


class Counted(TorchDispatchMode):
    """Counts what autograd and W call."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func._overloadpacket] += 1
        return func(*args, **(kwargs or {}))


def test_nothing_is_computed_twice():
    """I and W call as many products as one backward does."""
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    x = torch.randn(3, 4, requires_grad=True)
    run_w(run_i(module, x)[1])
    output = module(x)
    with Counted() as inputs:
        _, pending = differentiate([(output, seed_of(output))], [x])
    with Counted() as weights:
        run_w(pending)
    assert (inputs.calls[aten.mm], inputs.calls[aten.tanh_backward]) == (3, 2)
    assert (weights.calls[aten.addmm_], weights.calls[aten.mm]) == (3, 0)


class Experts(nn.Module):
    """A matrix for each part of the batch, in one parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 5))

    def forward(self, x):
        return torch.bmm(x, self.weight)


def test_products_are_added_where_the_sum_is():
    """The second micro-batch's: several matrices at once, too."""
    module, x = Experts(), torch.randn(3, 2, 4, requires_grad=True)
    run_w(run_i(module, x)[1])
    with Counted() as counted:
        run_w(run_i(module, x)[1])
    assert counted.calls[aten.baddbmm_] == 1
    assert not counted.calls[aten.add_]


def test_tables_have_no_gradient_of_their_size_per_microbatch():
    module = Table()
    x = torch.randn(3, 4)
    run_w(run_i(module, x)[1])
    with Counted() as counted:
        run_w(run_i(module, x)[1])
    assert counted.calls[aten.index_add_] == 1
    assert not counted.calls[aten.embedding_dense_backward]
    assert not counted.calls[aten.zeros_like]


def test_gradient_hooks_see_the_whole_gradient(x):
    module, seen = nn.Linear(4, 3), []
    _, expected = plain(copy.deepcopy(module), x, times=1)
    module.weight.register_hook(lambda gradient: seen.append(gradient) or gradient * 2)
    run_w(run_i(module, x)[1])
    assert [same(gradient, expected["weight"]) for gradient in seen] == [True]
    assert same(module.weight.grad, expected["weight"] * 2)


def test_hooks_after_accumulation_run_once_the_gradient_is_there(x):
    module, seen = nn.Linear(4, 3), []
    _, expected = plain(copy.deepcopy(module), x, times=1)
    module.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    run_w(run_i(module, x)[1])
    assert [same(gradient, expected["weight"]) for gradient in seen] == [True]


def test_hooks_on_several_parameters_at_once(x):
    module, seen = nn.Linear(4, 3), []
    parameters = list(module.parameters())
    _, expected = plain(copy.deepcopy(module), x, times=1)
    torch.autograd.graph.register_multi_grad_hook(parameters, lambda found: seen.append(found))
    run_w(run_i(module, x)[1])
    assert len(seen) == 1
    assert same(module.weight.grad, expected["weight"])


@pytest.mark.parametrize("what", ["operand", "gradient"])
def test_what_is_written_to_before_w_is_refused(what):
    """A buffer that each forward changes, or a gradient that a hook keeps and changes."""
    module, book = Made(torch.matmul, w=(4, 3)), torch.randn(2, 4)
    output = module(book)
    seed = seed_of(output)
    _, pending = differentiate([(output, seed)], [])
    (book if what == "operand" else seed).mul_(2)
    with pytest.raises(RuntimeError, match="changed in place between"):
        pending.add_up()


def test_what_was_frozen_since_the_forward_stays_without_gradient(x):
    module = nn.Linear(4, 3)
    output = module(x)
    module.weight.requires_grad_(False)
    run_w(differentiate([(output, seed_of(output))], [x] if x.requires_grad else [])[1])
    assert module.weight.grad is None
    assert module.bias.grad is not None


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_run_the_forward_twice(reentrant):
    calls = []
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    inner[0].register_forward_hook(lambda *_: calls.append(1))
    module = Made(lambda x, w: checkpoint(inner, x, use_reentrant=reentrant) @ w, w=(4, 3))
    module.inner = inner
    module.function = lambda x, *_: checkpoint(inner, x, use_reentrant=reentrant) @ module.w
    reference = copy.deepcopy(inner), module.w.detach().clone().requires_grad_()
    x = torch.randn(2, 4, requires_grad=True)
    output = reference[0](x) @ reference[1]
    output.backward(seed_of(output))
    calls.clear()
    entries, pending = run_i(module, x)
    run_w(pending)
    assert len(calls) == 2
    assert same(entries[0], x.grad)
    expected = [*(p.grad for p in reference[0].parameters()), reference[1].grad]
    found = [*(p.grad for p in inner.parameters()), module.w.grad]
    assert all(map(same, found, expected))


def test_tensors_saved_through_hooks_are_not_read_behind_their_back():
    packed = []

    def forward(x, w):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: packed.append(tensor) or len(packed) - 1, lambda index: packed[index]
        ):
            return x @ w

    module, x = Made(forward, w=(4, 3)), torch.randn(2, 4, requires_grad=True)
    _, expected = plain(copy.deepcopy(module), x, times=1)
    _, pending = run_i(module, x)
    assert pending.terms == []
    assert same(module.w.grad, expected["w"])


def held(function):
    """Tensors that a function holds on to, itself or through functions."""
    for cell in function.__closure__ or ():
        if isinstance(cell.cell_contents, torch.Tensor):
            yield cell.cell_contents
        elif hasattr(cell.cell_contents, "__closure__"):
            yield from held(cell.cell_contents)


def test_what_waits_holds_two_tensors():
    """After I, only what an operation was given and the gradient of what it gave are kept."""
    module = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4))
    x = torch.randn(3, 4, requires_grad=True)
    made = []
    module[1].register_forward_hook(lambda *args: made.append(args[2].untyped_storage()))
    output = module(x)
    seed = seed_of(output)
    entries, pending = differentiate([(output, seed)], [x])
    tensors = [tensor for term in pending.terms for tensor in held(term.add)]
    assert {tensor.numel() for tensor in tensors} == {12, 3 * 64}
    assert len(entries) == 1


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_pipeline_with_every_kind(schedule):
    """Kinds of parameters side by side in one pipeline give the plain model's gradients."""

    def model():
        torch.manual_seed(0)
        return nn.Sequential(
            Table(padding_idx=1), Adapted(), nn.LayerNorm(4), Attention(),
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            Made(lambda x, w: (x @ w) * w[0], w=(4, 4)),
        )  # fmt: skip

    whole, cut = model(), model()
    batch = (torch.randn(4, 5), torch.randn(4, 5, 4))
    F.mse_loss(whole(batch[0]), batch[1]).backward()
    with it.Pipeline(
        cut,
        loss=lambda output, batch: F.mse_loss(output, batch[1]),
        example=batch,
        ranks=3,
        microbatches=4,
        schedule=schedule,
        options=it.Options(threads_per_rank=1),
    ) as pipe:
        pipe.step(batch)
    found = dict(cut.named_parameters())
    for name, parameter in whole.named_parameters():
        assert same(found[name].grad, parameter.grad), name


class HookedOutputs(nn.Module):
    """Hooks between blocks, on what a linear layer returns."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            if x.requires_grad:
                x.register_hook(lambda gradient: gradient * 0.1)
        return x


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_pipeline_with_hooks_on_what_layers_return(schedule):
    torch.manual_seed(0)
    whole = HookedOutputs()
    cut, batch = copy.deepcopy(whole), torch.randn(4, 4)
    F.mse_loss(whole(batch), batch).backward()
    with it.Pipeline(
        cut, example=batch, loss=F.mse_loss, ranks=2, microbatches=4, schedule=schedule
    ) as pipe:
        pipe.step(batch)
    for found, expected in zip(cut.parameters(), whole.parameters(), strict=True):
        assert same(found.grad, expected.grad)


def loss_with_a_hook(output, batch):
    """Have the gradient of the model's output changed."""
    output.register_hook(lambda gradient: 3 * gradient)
    return F.mse_loss(output, batch)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_pipeline_with_hooks_of_the_loss(schedule):
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    cut, batch = copy.deepcopy(whole), torch.randn(4, 4)
    loss_with_a_hook(whole(batch), batch).backward()
    with it.Pipeline(
        cut, example=batch, loss=loss_with_a_hook, ranks=2, microbatches=4, schedule=schedule
    ) as pipe:
        pipe.step(batch)
    for found, expected in zip(cut.parameters(), whole.parameters(), strict=True):
        assert same(found.grad, expected.grad)


def test_pipeline_with_hooks_on_graphs_of_earlier_microbatches():
    """Registered by the loss of the last one, between the forwards and the backwards of others."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    cut, batch = copy.deepcopy(whole), torch.randn(4, 4)
    outputs = []

    def loss(output, batch):
        outputs.append(output)
        for earlier in outputs[:3] if len(outputs) == 4 else ():
            if earlier.grad_fn is not None:
                earlier.register_hook(lambda gradient: 2 * gradient)
        return F.mse_loss(output, batch)

    with it.Pipeline(
        cut, example=batch, loss=loss, ranks=2, microbatches=4, schedule="gpipe"
    ) as pipe:
        outputs.clear()
        pipe.step(batch)
    whole_output = whole(batch)
    weights = torch.tensor([2.0, 2.0, 2.0, 1.0])
    ((whole_output - batch).square().mean(1) * weights).mean().backward()
    for found, expected in zip(cut.parameters(), whole.parameters(), strict=True):
        assert same(found.grad, expected.grad)


class Scribbling(torch.autograd.Function):
    """Its backward writes to the gradient that it is given, which others may be given as well."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.mul_(2)


def test_writes_of_own_code_to_a_gradient_are_seen():
    x, y = torch.ones(2, 4, requires_grad=True), torch.ones(2, 4, requires_grad=True)
    weight = nn.Parameter(torch.ones(4, 4))
    total = Scribbling.apply(x) + y @ weight  # backward comes to the product first
    _, pending = differentiate([(total, torch.ones(2, 4))], [x, y], hooked=False)
    with pytest.raises(RuntimeError, match="changed in place between"):
        pending.add_up()


class Book(nn.Module):
    """Projects a running mean that every forward changes in place."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 4)
        self.register_buffer("book", torch.ones(4))

    def forward(self, x):
        self.book.mul_(0.5).add_(x.detach().mean(0) / 2)
        return x + self.project(self.book)


def test_pipeline_refuses_what_forwards_write_to_before_w():
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(4, 4), Book()), torch.randn(4, 4)
    pipe = it.Pipeline(
        model, example=batch, loss=F.mse_loss, ranks=2, microbatches=4, schedule="zb-h1"
    )
    with pipe, pytest.raises(ActionError, match="changed in place between"):
        pipe.step(batch)
