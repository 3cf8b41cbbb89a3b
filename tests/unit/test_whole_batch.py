"""Losses of the whole batch have the gradient that the plain model has on the whole batch."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

import intandem as it
from harness import TOLERANCE, gradients, relative_error
from intandem.errors import ActionError, BatchError, LossError, ScheduleError
from intandem.rules import early_backward
from intandem.runtime.whole_batch import Joining, Way, WholeBatch
from intandem.schedules import build_schedule

OPTIONS = it.Options(threads_per_rank=1)


class TwoTowers(nn.Module):
    """CLIP in small: images, texts, and a learned temperature, returned as it is or in glue."""

    def __init__(self, raw=False, drop=0.0):
        super().__init__()
        self.image, self.text = (
            nn.Sequential(nn.Linear(d, 16), nn.GELU(), nn.Dropout(drop), nn.Linear(16, 8))
            for d in (12, 10)
        )
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.raw = raw

    def forward(self, image, text):
        image, text = F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1)
        return {
            "image": image,
            "text": text,
            "scale": self.temperature if self.raw else self.temperature.exp(),
        }


def contrast(output, batch):
    logits = output["scale"] * output["image"] @ output["text"].T
    target = torch.arange(len(batch[0]))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    hits = (logits.argmax(1) == target).sum()
    return {"loss": loss, "accuracy": it.LossSum(hits, len(target)), "mean": logits.mean()}


def towers(rows=14, **kwargs):
    torch.manual_seed(0)
    batch = (torch.randn(rows, 12).double(), torch.randn(rows, 10).double())
    return TwoTowers(**kwargs).double(), batch


def plain(model, batch):
    """The plain model on the whole batch, in one call."""
    found = contrast(model(*batch), batch)
    found["loss"].backward()
    return found, gradients(model)


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_gradient_of_the_whole_batch(ranks, raw, recompute):
    """Loss, metrics and every gradient, the temperature's too; micro-batches are uneven."""
    model, batch = towers(raw=raw)
    twin = copy.deepcopy(model)
    expected, expected_gradients = plain(twin, batch)
    with it.Pipeline(
        model, example=batch, loss=it.WholeBatchLoss(contrast), ranks=ranks, microbatches=4,
        recompute=recompute, options=OPTIONS,
    ) as pipe:  # fmt: skip
        loss = pipe.step(batch)
        assert pipe.program().name == "gpipe"
        assert relative_error(gradients(model), expected_gradients) <= TOLERANCE
        evaluated = pipe.evaluate(batch)
    for found in (loss, evaluated):
        assert found == pytest.approx(expected["loss"].item(), rel=TOLERANCE)
        assert found.metrics["mean"] == pytest.approx(expected["mean"].item(), rel=TOLERANCE)
        accuracy = float(expected["accuracy"].sum) / 14
        assert found.metrics["accuracy"] == pytest.approx(accuracy, rel=TOLERANCE)
    assert loss.microbatches == (loss.item(),)


def test_outputs_are_let_go_with_their_backward():
    """What a backward begins with is not held until the last one is over."""
    whole = WholeBatch(Joining(None, {"batch": Way.ROWS}), 2, training=True)
    outputs = [torch.randn(2, 3, requires_grad=True) for _ in range(2)]
    for microbatch, output in enumerate(outputs):
        whole.add(microbatch, output)
    whole.output().sum().backward()
    memory = StorageWeakRef(outputs[1].untyped_storage())
    whole.ends(1, outputs.pop())
    del output
    assert memory.expired()


def test_same_bits_wherever_it_is_cut():
    """1, 2 and 4 stages have the same bits."""
    found = []
    for ranks in (1, 2, 4):
        model, batch = towers()
        with it.Pipeline(
            model, example=batch, loss=it.WholeBatchLoss(contrast), ranks=ranks, microbatches=4,
            options=OPTIONS,
        ) as pipe:  # fmt: skip
            found.append((float(pipe.step(batch)), gradients(model)))
    for loss, grads in found[1:]:
        assert loss == found[0][0]
        assert all(torch.equal(grads[name], found[0][1][name]) for name in grads)


@pytest.mark.parametrize("kind", ["scalar", "sum"])
def test_check_supports_it(kind):
    """With dropout the witness joins forwards of micro-batches; a LossSum divides by its count."""
    model, batch = towers(drop=0.3)

    def summed(output, batch):
        return it.LossSum(contrast(output, batch)["loss"] * 0.4, 0.5)

    loss = it.WholeBatchLoss(contrast if kind == "scalar" else summed)
    assert it.check(model, batch, loss, microbatches=3).equal
    assert it.check(model, batch, loss, microbatches=3, recompute="all").equal


def test_micro_batches_that_were_split_before():
    """A list of micro-batches is joined; two steps accumulate."""
    model, batch = towers()
    twin = copy.deepcopy(model)
    plain(twin, batch)
    _, expected = plain(twin, batch)
    parts = [tuple(leaf[i : i + 5] for leaf in batch) for i in (0, 5, 10)]
    with it.Pipeline(
        model, example=parts, loss=it.WholeBatchLoss(contrast), ranks=2, microbatches=3
    ) as pipe:
        pipe.step(parts)
        pipe.step(batch)
        odd = [*parts[:2], (parts[2][0], parts[2][1][:, :3])]
        with pytest.raises((BatchError, ActionError, it.PipelineError)):
            pipe.step(odd)
    assert relative_error(gradients(model), expected) <= TOLERANCE


def test_schedules_that_begin_backwards_too_early():
    """They are told by their order, not by their name."""
    model, batch = towers()
    message = (
        "a WholeBatchLoss needs the outputs of every micro-batch before any backward, and schedule "
        "'1f1b' runs 1B0 before 1F1; use schedule='gpipe', or leave schedule out"
    )
    loss = it.WholeBatchLoss(contrast)
    with pytest.raises(ScheduleError, match=f"^{re.escape(message)}$"):
        it.Pipeline(model, example=batch, loss=loss, ranks=2, schedule="1f1b")
    one = build_schedule("1f1b", num_ranks=2, num_microbatches=1)
    many = build_schedule("gpipe", num_ranks=2, num_microbatches=4)
    assert early_backward(one) is None
    assert early_backward(many) is None
    with it.Pipeline(
        model, example=batch, loss=loss, ranks=2, schedule="1f1b", microbatches=1
    ) as pipe:
        pipe.step(batch)


class Scores(TwoTowers):
    def forward(self, image, text):
        found = super().forward(image, text)
        found["logits"] = found["image"] @ found["text"].T
        found["drawn"] = (image.sum() * 0 + self.temperature) * image[0, 0]
        found["table"] = self.temperature.expand(3, 2)
        return found


def step_with(loss):
    torch.manual_seed(0)
    model, (_, batch) = Scores().double(), towers()
    with it.Pipeline(
        model, example=batch, loss=it.WholeBatchLoss(loss), ranks=2, microbatches=2
    ) as pipe:
        return pipe.step(batch)


def test_an_output_whose_rows_are_not_on_dim_0_alone():
    """Scores of a micro-batch's rows against each other are refused when they are used."""
    message = (
        "output 'logits' has shape (7, 7) in a micro-batch and not its rows on dim 0 alone, so it "
        "is not part of the whole batch's; compute it in the WholeBatchLoss, from outputs with one "
        "row per example"
    )
    for use in (lambda x: x.mean(), lambda x: F.relu(x).sum(), lambda x: torch.ones(()) * x):
        with pytest.raises(LossError, match=f"^{re.escape(message)}$"):
            step_with(lambda output, _, use=use: use(output["logits"]))


def test_an_output_without_rows_that_differs():
    """What has no rows must be the same in all micro-batches if it is used, as a table here is."""
    step_with(lambda output, _: output["table"].sum() + output["image"].sum())
    with pytest.raises(
        ActionError, match=r"output 'drawn' has no rows, and differs between micro-"
    ):
        step_with(lambda output, _: output["drawn"] + output["image"].sum())


def test_what_makes_no_sense():
    """A count has no use, and a loss is a function."""
    model, batch = towers()
    with pytest.raises(ValueError, match="count has no use with a WholeBatchLoss"):
        it.Pipeline(model, example=batch, loss=it.WholeBatchLoss(contrast), count=len)
    with pytest.raises(TypeError, match="WholeBatchLoss of a float; expected a function"):
        it.WholeBatchLoss(1.0)
    with pytest.raises(LossError, match="the loss has parameters of its own"):
        it.Pipeline(model, example=batch, loss=it.WholeBatchLoss(nn.Linear(2, 2)), ranks=1)


def test_clip_of_transformers():
    """CLIPModel: the embeddings and the scale, contrasted over the whole batch."""
    from transformers import CLIPConfig, CLIPModel

    small = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "projection_dim": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**small, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    ids = torch.randint(1, 49, (6, 7))
    ids[:, -1] = 49
    batch = {"input_ids": ids, "pixel_values": torch.randn(6, 3, 16, 16).double()}
    model = Clip(CLIPModel(config).double())
    twin = copy.deepcopy(model)
    expected, expected_gradients = plain_clip(twin, batch)
    for ranks in (1, 2):
        model.zero_grad()
        with it.Pipeline(
            model, example=batch, loss=it.WholeBatchLoss(clip_loss), ranks=ranks, microbatches=3
        ) as pipe:
            assert pipe.step(batch) == pytest.approx(expected, rel=TOLERANCE)
        assert relative_error(gradients(model), expected_gradients) <= TOLERANCE


class Clip(nn.Module):
    """CLIPModel with the outputs that a loss of the whole batch needs."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip

    def forward(self, input_ids, pixel_values):
        found = self.clip(input_ids=input_ids, pixel_values=pixel_values)
        return found.image_embeds, found.text_embeds, self.clip.logit_scale.exp()


def clip_loss(output, batch):
    image, text, scale = output
    logits, target = scale * text @ image.T, torch.arange(len(batch["input_ids"]))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def plain_clip(model, batch):
    output = model.clip(**batch, return_loss=True)
    output.loss.backward()
    return output.loss.item(), gradients(model)
