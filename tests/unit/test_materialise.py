"""A model on meta gets its data: from files, initialisers or a function, each rank its own part."""

import gc
import itertools
import json
import weakref

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_pre_hooks

import intandem as it
from harness import TOLERANCE, repeatable_cuts
from intandem.checkpoint import weight_files
from intandem.checkpoint.tensors import registered
from intandem.checkpoint.weight_files import WeightFiles
from intandem.equality import Splitting, compare, numbers_of, one_process
from intandem.errors import CaptureError, RunError
from intandem.pipeline.initialise import initialise
from intandem.pipeline.materialise import find_source, materialise_buffers, materialise_parameters

CPU = torch.device("cpu")
BATCH = {"ids": torch.arange(24).reshape(4, 6) % 11}


class Norm(nn.Module):
    """As nanoGPT writes it: with parameters and no initialiser."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight)


class Block(nn.Module):
    def __init__(self, dim, norm):
        super().__init__()
        self.norm, self.fc, self.attention = norm(dim), nn.Linear(dim, dim), None
        self.attention = nn.MultiheadAttention(dim, 2, batch_first=True)

    def forward(self, x):
        y = self.norm(x)
        return x + self.fc(self.attention(y, y, y, need_weights=False)[0]).tanh()


class Gpt(nn.Module):
    """Tied, with a table, a frozen weight, a state buffer, and nanoGPT's ``_init_weights``."""

    def __init__(self, dim=8, layers=4, norm=nn.LayerNorm):
        super().__init__()
        self.wte = nn.Embedding(11, dim)
        self.rotary = Table()
        self.h = nn.ModuleList(Block(dim, norm) for _ in range(layers))
        self.head = nn.Linear(dim, 11, bias=False)
        self.head.weight = self.wte.weight
        self.h[1].fc.bias.requires_grad_(False)
        self.stats = nn.BatchNorm1d(dim, momentum=None)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)

    def forward(self, ids):
        x = self.wte(ids) + self.rotary(ids.shape[1])
        for block in self.h:
            x = block(x)
        x = self.stats(x.transpose(1, 2)).transpose(1, 2)
        return F.cross_entropy(self.head(x).flatten(0, 1), ids.flatten())


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("angles", torch.empty(16), persistent=False)
        self.register_buffer("allowed", torch.empty(16, dtype=torch.bool), persistent=False)
        self.reset_parameters()

    def reset_parameters(self):
        self.angles.copy_(torch.arange(16) / 7)
        self.allowed.fill_(True)

    def forward(self, length):
        assert bool(self.allowed.all())
        return self.angles[:length, None].cos()


def meta(**kwargs):
    with torch.device("meta"):
        return Gpt(**kwargs).double()


def plain(seed=3):
    torch.manual_seed(seed)
    model = Gpt().double()
    model.apply(model._init_weights)
    model.stats.running_mean.uniform_()
    return model


def state_without_copies(model):
    return {n: t.contiguous() for n, t in model.state_dict().items() if n != "head.weight"}


def save_folder(model, folder, num_shards=3):
    state = state_without_copies(model)
    names = sorted(state)
    size = -(-len(names) // num_shards)
    weight_map = {}
    for shard, part in enumerate(
        itertools.batched(names, size)
        if hasattr(itertools, "batched")
        else [names[i : i + size] for i in range(0, len(names), size)]
    ):
        file = f"model-{shard + 1:05}.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


def one_step(model, weights, ranks):
    options = it.Options(threads_per_rank=1, seed=7)
    with (
        repeatable_cuts(),
        it.Pipeline(
            model, example=BATCH, ranks=ranks, microbatches=2, weights=weights, options=options
        ) as pipe,
    ):
        return float(pipe.step(BATCH))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_folder_gives_the_plain_models_numbers(tmp_path, ranks):
    expected = one_process(plain(), BATCH, None, Splitting(2))
    save_folder(plain(), tmp_path)
    model = meta()
    loss = one_step(model, tmp_path, ranks)
    equality = compare(numbers_of(model, loss), expected)
    assert equality.loss_error <= TOLERANCE
    assert equality.max_gradient_error <= TOLERANCE
    assert equality.max_buffer_error <= TOLERANCE
    assert model.head.weight is model.wte.weight
    assert not model.h[1].fc.bias.requires_grad


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_initialisers_do_not_depend_on_the_number_of_ranks(ranks):
    first, model = meta(), meta()
    before = torch.get_rng_state()
    one_step(first, "init", 1)
    assert torch.equal(before, torch.get_rng_state())
    one_step(model, "init", ranks)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert 0.2 < float(model.h[0].fc.weight.detach().std()) < 0.4
    assert not torch.equal(model.h[0].fc.weight, model.h[2].fc.weight)
    assert model.head.weight is model.wte.weight


@pytest.mark.parametrize("part", [("h.1.",), ("h.3.attention.", "wte."), ("stats.", "h.0.norm.")])
def test_a_part_of_a_model_is_initialised_as_the_whole(part):
    """Whatever lies on meta around it draws nothing away."""
    whole, own = meta(), meta()
    source = find_source("init", own, seed=5)
    for model, wanted in ((whole, ("",)), (own, part)):
        materialise_buffers(model, source, 5, CPU)
        names = [n for n, _ in model.named_parameters() if n.startswith(wanted)]
        materialise_parameters(model, source, names, CPU)
    for name, parameter in own.named_parameters():
        assert parameter.is_meta != name.startswith(part), name
        if not parameter.is_meta:
            assert torch.equal(parameter, whole.get_parameter(name)), name
    for name, buffer in own.named_buffers():
        assert torch.equal(buffer, whole.get_buffer(name)), name


def test_another_seed_draws_otherwise():
    found = []
    for seed in (1, 1, 2):
        model = meta()
        source = find_source("init", model, seed=seed)
        materialise_parameters(model, source, ["h.0.fc.weight"], CPU)
        found.append(model.h[0].fc.weight.detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_module_without_initialiser_is_named():
    with pytest.raises(CaptureError, match=r"weight of h\.0\.norm \(Norm\); .*reset_parameters"):
        one_step(meta(norm=Norm), "init", 1)


def test_a_table_without_initialiser_is_named(tmp_path):
    save_folder(plain(), tmp_path)
    model = meta()
    model.rotary.register_buffer("mask", torch.ones(3, device="meta"), persistent=False)
    model.rotary.register_buffer("flag", torch.empty(3, dtype=torch.bool, device="meta"), False)
    with pytest.raises(CaptureError, match=r"mask, flag of rotary \(Table\); .*persistent=False"):
        one_step(model, tmp_path, 1)


def test_a_model_without_data_and_weights_is_refused():
    with pytest.raises(CaptureError, match=r"wte\.weight is on the meta device.*'init'.*function"):
        one_step(meta(), None, 1)


def test_a_function_fills_modules():
    def fill(name, module):
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.is_floating_point():
                tensor.uniform_(-0.3, 0.3)
            else:
                tensor.fill_(1)
        seen.append(name)

    values = []
    for ranks in (1, 2):
        seen = []
        model = meta(norm=Norm)
        one_step(model, fill, ranks)
        assert "h.0.norm" in seen
        assert len([name for name in seen if name == "h.2.fc"]) == 1
        values.append(model.h[2].fc.weight.detach().clone())
    assert torch.equal(*values)


def test_a_function_that_leaves_something_out_is_told():
    def fill(name, module):
        if "fc" not in name:
            for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                tensor.fill_(0.5)

    with pytest.raises(CaptureError, match=r"weight, bias of h\.0\.fc \(Linear\)"):
        one_step(meta(), fill, 1)


def test_a_function_that_raises_is_told():
    def fill(name, module):
        raise KeyError(name)

    with pytest.raises(CaptureError, match=r"weights of .* raised KeyError"):
        one_step(meta(), fill, 1)


def test_only_the_wanted_tensors_are_read(tmp_path, monkeypatch):
    """Of the shards, those that hold something; of them, the bytes of the wanted tensors."""
    shard_of = save_folder(plain(), tmp_path, num_shards=5)
    opened = []
    real = weight_files._opened
    model = meta()
    files = WeightFiles(tmp_path, model)
    monkeypatch.setattr(weight_files, "_opened", lambda p: (opened.append(p.name), real(p))[1])
    names = [n for n, _ in model.named_parameters() if n.startswith("h.2.")]
    everything = registered(model)
    source = find_source(tmp_path, model, seed=0)
    materialise_parameters(model, source, names, CPU)
    wanted = {shard_of[name] for name in names}
    assert set(opened) == wanted
    assert wanted != set(shard_of.values())
    amount = files.fill(model, names)
    assert amount.num_bytes == sum(everything[n].tensor.numel() * 8 for n in names)
    assert amount.num_tensors == len(names)
    assert {n for n, p in model.named_parameters() if not p.is_meta} == set(names)


def test_a_file_is_as_good_as_a_folder(tmp_path):
    save_file(state_without_copies(plain()), tmp_path / "model.safetensors")
    losses = {one_step(meta(), tmp_path, 2), one_step(meta(), tmp_path / "model.safetensors", 2)}
    assert losses == {one_step(plain(), None, 2)}


def test_other_dtypes_are_converted_and_it_is_said(tmp_path, caplog):
    state = {
        n: t.float() if t.is_floating_point() else t
        for n, t in state_without_copies(plain()).items()
    }
    save_file(state, tmp_path / "model.safetensors")
    model = meta()
    with caplog.at_level("INFO", logger="intandem"):
        one_step(model, tmp_path, 1)
    assert "converted torch.float32 to torch.float64" in caplog.text
    assert torch.equal(model.wte.weight, state["wte.weight"].double())


def test_wrong_names_are_listed_all_at_once(tmp_path):
    state = state_without_copies(plain())
    state["h.0.fc.wieght"] = state.pop("h.0.fc.weight")
    state["extra"] = torch.zeros(1)
    del state["h.3.norm.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as refusal:
        one_step(meta(), tmp_path, 1)
    text = str(refusal.value)
    assert "missing h.0.fc.weight (near: h.0.fc.wieght), h.3.norm.bias" in text
    assert "unknown extra, h.0.fc.wieght (near: h.0.fc.weight)" in text


def test_wrong_shapes_and_kinds_are_listed(tmp_path):
    state = state_without_copies(plain())
    state["h.0.fc.weight"] = torch.zeros(3, 2)
    state["h.1.fc.bias"] = torch.zeros(9)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"\(3, 2\), expected \(8, 8\); h.1.fc.bias is \(9,\)"):
        one_step(meta(), tmp_path, 1)
    save_file(
        {**state_without_copies(plain()), "stats.num_batches_tracked": torch.tensor(0.5)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(ValueError, match=r"F32 in the file and torch.int64 in the model"):
        one_step(meta(), tmp_path, 1)


def test_wrong_files_are_told(tmp_path):
    for weights, match in (
        (tmp_path, "neither .* but nothing"),
        (tmp_path / "nowhere", "there is no"),
        ("initialise", "there is no .*'init'"),
    ):
        with pytest.raises(ValueError, match=match):
            one_step(meta(), weights, 1)
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors at all")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        one_step(meta(), tmp_path, 1)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "absent.safetensors"}}')
    with pytest.raises(ValueError, match=r"not there: absent\.safetensors"):
        one_step(meta(), tmp_path, 1)
    index.write_text("[]")
    with pytest.raises(ValueError, match="no index of shards"):
        one_step(meta(), tmp_path, 1)
    with pytest.raises(TypeError, match="weights is a int; expected weights="):
        one_step(meta(), 3, 1)


def test_tied_weights_that_differ_in_the_file_are_refused(tmp_path):
    state = {n: t.clone() for n, t in plain().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    one_step(meta(), tmp_path, 1)
    state["head.weight"] = state["head.weight"] + 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"wte.weight and head.weight are tied"):
        one_step(meta(), tmp_path, 1)


def test_a_base_models_folder_serves_the_model_with_a_head(tmp_path):
    class Headed(nn.Module):
        base_model_prefix = "transformer"

        def __init__(self):
            super().__init__()
            self.transformer = Gpt().double()

        def forward(self, ids):
            return self.transformer(ids)

    save_folder(plain(), tmp_path)
    with torch.device("meta"):
        model = Headed()
    assert one_step(model, tmp_path, 1) == one_step(plain(), None, 1)


def test_a_model_with_data_is_filled_too(tmp_path):
    save_folder(plain(), tmp_path)
    assert one_step(plain(seed=9), tmp_path, 2) == one_step(plain(), None, 2)


def trained(weights, *, held_weakly=False):
    """A model whose optimizer was made on meta, and its state after two steps."""
    model = meta()
    references = [weakref.ref(p) for p in model.parameters()] if held_weakly else []
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with it.Pipeline(model, example=BATCH, ranks=2, microbatches=2, weights=weights) as pipe:
        for _ in range(2):
            pipe.step(BATCH)
            optimizer.step()
            optimizer.zero_grad()
    assert all(reference() is not None for reference in references)
    return before, model


def test_an_optimizer_made_before_the_pipeline_trains(tmp_path):
    """Parameters stay the same objects, tied ones too, and take the plain model's steps."""
    save_folder(plain(), tmp_path)
    before, model = trained(tmp_path)
    assert all(model.get_parameter(name) is p for name, p in before.items())
    assert model.head.weight is model.wte.weight
    reference = plain()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step in range(2):
        found = one_process(reference, BATCH, None, Splitting(2), step=step)
        for name, p in reference.named_parameters():
            p.grad = found.gradients.get(name)
        optimizer.step()
        optimizer.zero_grad()
    for name, p in reference.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), p, rtol=1e-9, atol=1e-10)


def test_an_optimizer_that_trains_nothing_is_told(tmp_path):
    """A parameter that is held weakly cannot stay the same object; others step as they did."""
    save_folder(plain(), tmp_path)
    with pytest.raises(RunError, match=r"made before the pipeline and holds .* without data"):
        trained(tmp_path, held_weakly=True)
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    other.step()
    gc.collect()
    assert not _global_optimizer_pre_hooks


def test_a_tensor_in_a_plain_attribute_is_refused():
    model = meta()
    model.h[0].scale = torch.ones(1, device="meta")
    with pytest.raises(CaptureError, match=r"h\.0\.scale is a tensor on the meta device"):
        one_step(model, "init", 1)


def test_draws_on_meta_take_nothing_from_later_ones():
    """A module of which a part is here draws as if all of it were."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.empty(4)) for _ in range(2))

        def reset_parameters(self):
            nn.init.normal_(self.first)
            nn.init.normal_(self.second)

    found = []
    for names in (["first", "second"], ["second"]):
        with torch.device("meta"):
            model = Two()
        materialise_parameters(model, find_source("init", model, 0), names, CPU)
        found.append(model.second.detach())
    assert torch.equal(*found)
    assert initialise(nn.Sequential(), [], 0) == set()
