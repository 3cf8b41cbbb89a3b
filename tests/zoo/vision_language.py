"""Images and words together."""

import torch
import transformers

from zoo.catalogue import ROWS, Sample, animal

VOCAB = 64
SEQ = 8
SIZE = 16
IMAGE = 60
PATCHES = 4
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = TOWER | {"vocab_size": VOCAB, "max_position_embeddings": 32}
VISION = TOWER | {"image_size": SIZE, "patch_size": 8}
DECODER = TEXT | {"num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def images(size=SIZE):
    return torch.randn(ROWS, 3, size, size, dtype=torch.float64)


def words(seq=SEQ, end=None):
    """Padded rows of words; every row has its end."""
    ids = torch.randint(3, 50, (ROWS, seq))
    mask = torch.ones_like(ids)
    mask[1::2, seq - 2 :] = 0
    ids = ids.masked_fill(mask == 0, 0)
    if end is not None:
        ids[::2, -1] = end
        ids[1::2, seq - 3] = end
    return {"input_ids": ids, "attention_mask": mask}


def spoken_of(model, *, num_tokens=PATCHES, image=IMAGE, size=SIZE, **extra):
    """Images in the words about them: so many places are an image's; labels are the words."""
    text = words()
    ids = torch.cat([torch.full((ROWS, num_tokens), image), text["input_ids"]], dim=1)
    mask = torch.cat(
        [torch.ones(ROWS, num_tokens, dtype=torch.long), text["attention_mask"]], dim=1
    )
    labels = ids.masked_fill((mask == 0) | (ids == image), -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return Sample(model, batch | {"pixel_values": images(size)} | extra)


def agreement(output, batch):
    """A loss by rows: each image's embedding is near its words', less than near the origin."""
    del batch
    image, text = output.image_embeds, output.text_embeds
    return (1 - (image * text).sum(-1)).mean()


def both_towers(family, **extra):
    """A text tower and an image tower, compared row by row."""
    config = getattr(transformers, f"{family}Config")(
        text_config=TEXT | extra.pop("text", {}),
        vision_config=VISION | extra.pop("vision", {}),
        **{"projection_dim": 8, **extra},
    )
    model = getattr(transformers, f"{family}Model")(config)
    return Sample(model, words(end=2) | {"pixel_values": images()}, agreement)


@animal("clip")
def clip():
    return both_towers("CLIP", text={"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0})


@animal("siglip")
def siglip():
    return both_towers("Siglip", text={"max_position_embeddings": SEQ, "projection_size": 16})


@animal("siglip2")
def siglip2():
    config = transformers.Siglip2Config(
        text_config=TEXT | {"max_position_embeddings": SEQ, "projection_size": 16},
        vision_config=TOWER | {"patch_size": 8, "num_patches": 4},
    )
    shapes = torch.tensor([[2, 2], [1, 3], [2, 2], [1, 4], [1, 3]])
    mask = torch.arange(4) < shapes.prod(-1, keepdim=True)
    batch = words() | {
        "pixel_values": torch.randn(ROWS, 4, 192, dtype=torch.float64),
        "pixel_attention_mask": mask.long(),
        "spatial_shapes": shapes,
    }
    return Sample(transformers.Siglip2Model(config), batch, agreement)


@animal("chinese_clip")
def chinese_clip():
    return both_towers("ChineseCLIP", text={"pad_token_id": 0})


@animal("altclip")
def altclip():
    return both_towers("AltCLIP", text={"pad_token_id": 0, "project_dim": 8})


@animal("owlvit")
def owlvit():
    return both_towers("OwlViT", text={"eos_token_id": 2, "pad_token_id": 0})


@animal("flava")
def flava():
    config = transformers.FlavaConfig(
        text_config=TEXT, image_config=VISION, multimodal_config=TOWER, projection_dim=8
    )
    return Sample(
        transformers.FlavaModel(config),
        words() | {"pixel_values": images()},
        lambda output, batch: output.multimodal_embeddings.pow(2).mean(),
    )


@animal("vision_text_dual_encoder")
def dual_encoder():
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**VISION), transformers.BertConfig(**TEXT), projection_dim=8
    )
    batch = words() | {"pixel_values": images()}
    return Sample(transformers.VisionTextDualEncoderModel(config), batch, agreement)


@animal("blip")
def blip():
    config = transformers.BlipConfig(
        text_config=TEXT | {"encoder_hidden_size": 16, "pad_token_id": 0, "bos_token_id": 1},
        vision_config=VISION,
        projection_dim=8,
    )
    text = words()
    labels = text["input_ids"].masked_fill(text["attention_mask"] == 0, -100)
    batch = text | {"pixel_values": images(), "labels": labels}
    return Sample(transformers.BlipForConditionalGeneration(config), batch)


@animal("blip_2")
def blip_2():
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config=TEXT | {"encoder_hidden_size": 16, "cross_attention_frequency": 1},
        text_config=transformers.OPTConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=24,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
            pad_token_id=0,
        ).to_dict(),
        num_query_tokens=3,
        image_token_index=IMAGE,
    )
    return spoken_of(transformers.Blip2ForConditionalGeneration(config), num_tokens=3)


@animal("git")
def git():
    config = transformers.GitConfig(**TEXT, vision_config=VISION, pad_token_id=0)
    text = words()
    labels = text["input_ids"].masked_fill(text["attention_mask"] == 0, -100)
    batch = text | {"pixel_values": images(), "labels": labels}
    return Sample(transformers.GitForCausalLM(config), batch)


@animal("vilt")
def vilt():
    config = transformers.ViltConfig(**TEXT, image_size=SIZE, patch_size=8, num_labels=4)
    batch = words() | {
        "pixel_values": images(),
        "labels": torch.rand(ROWS, 4, dtype=torch.float64),
    }
    return Sample(transformers.ViltForQuestionAnswering(config), batch)


@animal("bridgetower")
def bridgetower():
    config = transformers.BridgeTowerConfig(
        hidden_size=64,  # a head has 64
        num_attention_heads=2,
        intermediate_size=24,
        num_hidden_layers=2,
        text_config=TEXT | {"hidden_size": 64, "pad_token_id": 1},
        vision_config={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "image_size": SIZE,
            "patch_size": 8,
        },
    )
    return Sample(
        transformers.BridgeTowerModel(config),
        words() | {"pixel_values": images()},
        lambda output, batch: output.pooler_output.pow(2).mean(),
    )


@animal("lxmert")
def lxmert():
    config = transformers.LxmertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        l_layers=2,
        x_layers=2,
        r_layers=2,
        visual_feat_dim=8,
        num_qa_labels=4,
    )
    batch = words() | {
        "visual_feats": torch.randn(ROWS, 3, 8, dtype=torch.float64),
        "visual_pos": torch.rand(ROWS, 3, 4, dtype=torch.float64),
        "labels": torch.randint(0, 4, (ROWS,)),
    }
    return Sample(transformers.LxmertForQuestionAnswering(config), batch)


@animal("vision_encoder_decoder")
def vision_encoder_decoder():
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VISION),
        transformers.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=32),
        decoder_start_token_id=1,
        pad_token_id=0,
    )
    labels = words()["input_ids"].masked_fill(words()["attention_mask"] == 0, -100)
    return Sample(
        transformers.VisionEncoderDecoderModel(config=config),
        {"pixel_values": images(), "labels": labels},
    )


@animal("trocr")
def trocr():
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.DeiTConfig(**VISION),
        transformers.TrOCRConfig(
            vocab_size=VOCAB,
            d_model=16,
            decoder_layers=2,
            decoder_attention_heads=2,
            decoder_ffn_dim=24,
            max_position_embeddings=32,
        ),
        decoder_start_token_id=1,
        pad_token_id=0,
    )
    labels = words()["input_ids"].masked_fill(words()["attention_mask"] == 0, -100)
    return Sample(
        transformers.VisionEncoderDecoderModel(config=config),
        {"pixel_values": images(), "labels": labels},
    )
