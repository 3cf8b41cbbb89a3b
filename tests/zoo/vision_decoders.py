"""Language models that are shown images: their patches stand where the image token is."""

import torch
import transformers

from zoo.catalogue import ROWS, animal
from zoo.vision_language import DECODER, IMAGE, PATCHES, SIZE, TOWER, VISION, spoken_of


@animal("llava")
def llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**DECODER),
        image_token_index=IMAGE,
    )
    return spoken_of(transformers.LlavaForConditionalGeneration(config))


@animal("llava_next")
def llava_next():
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**DECODER),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[SIZE, SIZE]],
    )
    made = spoken_of(transformers.LlavaNextForConditionalGeneration(config), num_tokens=10)
    pixels = made.batch["pixel_values"].unsqueeze(1).repeat(1, 2, 1, 1, 1)
    sizes = torch.full((ROWS, 2), SIZE)
    return made._replace(batch=made.batch | {"pixel_values": pixels, "image_sizes": sizes})


@animal("llava_onevision")
def llava_onevision():
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION),
        text_config=transformers.Qwen2Config(**DECODER),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[SIZE, SIZE]],
    )
    made = spoken_of(transformers.LlavaOnevisionForConditionalGeneration(config), num_tokens=10)
    pixels = made.batch["pixel_values"].unsqueeze(1).repeat(1, 2, 1, 1, 1)
    sizes = torch.full((ROWS, 2), SIZE)
    return made._replace(batch=made.batch | {"pixel_values": pixels, "image_sizes": sizes})


@animal("vipllava")
def vipllava():
    config = transformers.VipLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**DECODER),
        image_token_index=IMAGE,
        vision_feature_layers=[-2, -1],
    )
    return spoken_of(transformers.VipLlavaForConditionalGeneration(config))


@animal("paligemma")
def paligemma():
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION),
        text_config=transformers.GemmaConfig(**DECODER, head_dim=8),
        image_token_index=IMAGE,
        projection_dim=16,
        hidden_size=16,
    )
    made = spoken_of(transformers.PaliGemmaForConditionalGeneration(config))
    types = (made.batch["labels"] != -100).long()
    return made._replace(batch=made.batch | {"token_type_ids": types})


@animal(
    "gemma3 vision",
    refused="under torch.vmap or another transform of torch.func between blocks",
    remedy="its mask lets an image's tokens see each other, and is made with vmap: make the masks "
    "outside of forward, and pass them as a dictionary for attention_mask",
)
def gemma3():
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=transformers.Gemma3TextConfig(
            **DECODER, head_dim=8, query_pre_attn_scalar=8, sliding_window=4
        ),
        image_token_index=IMAGE,
        mm_tokens_per_image=4,
    )
    made = spoken_of(transformers.Gemma3ForConditionalGeneration(config))
    types = (made.batch["input_ids"] == IMAGE).long()
    return made._replace(batch=made.batch | {"token_type_ids": types})


@animal("idefics2")
def idefics2():
    config = transformers.Idefics2Config(
        vision_config=VISION,
        text_config=transformers.MistralConfig(**DECODER),
        perceiver_config={
            "hidden_size": 16,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        },
        image_token_id=IMAGE,
    )
    made = spoken_of(transformers.Idefics2ForConditionalGeneration(config))
    return made._replace(
        batch=made.batch | {"pixel_values": made.batch["pixel_values"].unsqueeze(1)}
    )


@animal("idefics3")
def idefics3():
    config = transformers.Idefics3Config(
        vision_config=VISION,
        text_config=transformers.LlamaConfig(**DECODER),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    made = spoken_of(transformers.Idefics3ForConditionalGeneration(config), num_tokens=1)
    return made._replace(
        batch=made.batch | {"pixel_values": made.batch["pixel_values"].unsqueeze(1)}
    )


@animal("smolvlm")
def smolvlm():
    config = transformers.SmolVLMConfig(
        vision_config=VISION,
        text_config=transformers.LlamaConfig(**DECODER),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    made = spoken_of(transformers.SmolVLMForConditionalGeneration(config), num_tokens=1)
    return made._replace(
        batch=made.batch | {"pixel_values": made.batch["pixel_values"].unsqueeze(1)}
    )


@animal("internvl")
def internvl():
    config = transformers.InternVLConfig(
        vision_config=TOWER
        | {"image_size": [SIZE * 2, SIZE * 2], "patch_size": [8, 8], "norm_type": "layer_norm"},
        text_config=transformers.Qwen2Config(**DECODER),
        image_token_id=IMAGE,
    )
    model = transformers.InternVLForConditionalGeneration(config)
    return spoken_of(model, num_tokens=PATCHES, size=SIZE * 2)


@animal("mllama")
def mllama():
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "vision_output_dim": 32,
        "intermediate_layers_indices": [0],
        "image_size": SIZE,
        "patch_size": 8,
        "max_num_tiles": 1,
        "supported_aspect_ratios": [[1, 1]],
    }
    config = transformers.MllamaConfig(
        vision_config=vision,
        text_config=DECODER
        | {
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        image_token_index=VISION_TOKEN,
    )
    made = spoken_of(
        transformers.MllamaForConditionalGeneration(config), num_tokens=1, image=VISION_TOKEN
    )
    seq = made.batch["input_ids"].shape[1]
    batch = made.batch | {
        "pixel_values": made.batch["pixel_values"][:, None, None],
        "aspect_ratio_ids": torch.ones(ROWS, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(ROWS, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(ROWS, seq, 1, 1, dtype=torch.long),
    }
    return made._replace(batch=batch)


VISION_TOKEN = 64


def patched(family, *, vision, grid=(1, 4, 4), tokens=4, **extra):
    """Qwen's way: the patches of all images are one list; the rows of it are not the batch's."""
    text = DECODER | {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 2],
        }
    }
    config = getattr(transformers, f"{family}Config")(
        vision_config=vision,
        text_config=text | extra,
        image_token_id=IMAGE,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    made = spoken_of(model, num_tokens=tokens)
    num = grid[0] * grid[1] * grid[2]
    width = 3 * vision.get("temporal_patch_size", 2) * vision["patch_size"] ** 2
    batch = {key: value for key, value in made.batch.items() if key != "pixel_values"}
    batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).long()
    rows = [{key: value[part] for key, value in batch.items()} for part in (slice(3), slice(3, 5))]
    for row in rows:
        images = len(row["input_ids"])
        row["pixel_values"] = torch.randn(images * num, width, dtype=torch.float64)
        row["image_grid_thw"] = torch.tensor([grid] * images)
    return made._replace(batch=rows)


ROWS_OF = {"pixel_values": None, "image_grid_thw": None}  # the number of rows is read elsewhere


@animal("qwen2_vl", options={"split": ROWS_OF})
def qwen2_vl():
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": 16,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
    }
    return patched("Qwen2VL", vision=vision)


@animal("qwen2_5_vl", options={"split": ROWS_OF})
def qwen2_5_vl():
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "out_hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return patched("Qwen2_5_VL", vision=vision)
