"""Images: transformers and convolutions, with a class per image, per pixel, or the image itself."""

import torch
import transformers

from zoo.catalogue import ROWS, Sample, animal

SIZE = 32
CLASSES = 4


def images(size=SIZE):
    return torch.randn(ROWS, 3, size, size, dtype=torch.float64)


def labelled(model, size=SIZE):
    """Images with a class each; the model computes its own loss."""
    return Sample(
        model, {"pixel_values": images(size), "labels": torch.randint(0, CLASSES, (ROWS,))}
    )


def segmented(model, size=SIZE):
    """Images with a class for each pixel."""
    labels = torch.randint(0, CLASSES, (ROWS, size, size))
    labels[:, :2] = 255  # no class
    return Sample(model, {"pixel_values": images(size), "labels": labels})


def classifier(family, *, head="ForImageClassification", **config):
    model = getattr(transformers, family + head)
    return labelled(model(getattr(transformers, f"{family}Config")(num_labels=CLASSES, **config)))


TRANSFORMER = {
    "image_size": SIZE,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
DROPPED = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
LEVELS = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
WINDOWS = {
    "image_size": SIZE,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [1, 2],
    "window_size": 4,
}


@animal("transformers vit")
def vit():
    return classifier("ViT", **TRANSFORMER, **DROPPED)


@animal("deit")
def deit():
    return classifier("DeiT", **TRANSFORMER)


@animal("beit")
def beit():
    return classifier("Beit", **TRANSFORMER, use_relative_position_bias=True)


@animal("data2vec vision")
def data2vec_vision():
    return classifier("Data2VecVision", **TRANSFORMER)


@animal("dinov2")
def dinov2():
    return classifier("Dinov2", **(TRANSFORMER | {"mlp_ratio": 2}))


@animal("dinov2 with registers")
def dinov2_with_registers():
    return classifier("Dinov2WithRegisters", **(TRANSFORMER | {"mlp_ratio": 2}))


@animal("dinov3 vit")
def dinov3_vit():
    config = transformers.DINOv3ViTConfig(**TRANSFORMER, num_register_tokens=2)
    batch = {"pixel_values": images(), "target": torch.randn(ROWS, 16, dtype=torch.float64)}
    return Sample(
        transformers.DINOv3ViTModel(config),
        batch,
        lambda output, given: (output.pooler_output - given["target"]).pow(2).mean(),
    )


@animal("ijepa")
def ijepa():
    return classifier("IJepa", **TRANSFORMER)


@animal("vit_mae")
def vit_mae():
    config = transformers.ViTMAEConfig(
        **TRANSFORMER,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=24,
    )
    return Sample(transformers.ViTMAEForPreTraining(config), {"pixel_values": images()})


@animal("masked image vit")
def vit_masked():
    config = transformers.ViTConfig(**TRANSFORMER, encoder_stride=8)
    masked = torch.rand(ROWS, 16) < 0.5
    return Sample(
        transformers.ViTForMaskedImageModeling(config),
        {"pixel_values": images(), "bool_masked_pos": masked},
    )


@animal("transformers swin")
def swin():
    return classifier("Swin", **WINDOWS)


@animal("swinv2")
def swinv2():
    return classifier("Swinv2", **WINDOWS)


@animal("donut swin")
def donut_swin():
    return classifier("DonutSwin", **WINDOWS)


@animal("swin2sr")
def swin2sr():
    config = transformers.Swin2SRConfig(
        **(WINDOWS | {"image_size": 16, "patch_size": 1}), upscale=2
    )
    batch = {"pixel_values": images(8), "target": images(16)}
    return Sample(
        transformers.Swin2SRForImageSuperResolution(config),
        batch,
        lambda output, given: (output.reconstruction - given["target"]).abs().mean(),
    )


@animal("transformers convnext")
def convnext():
    return classifier("ConvNext", **LEVELS, drop_path_rate=0.1)


@animal("convnextv2")
def convnextv2():
    return classifier("ConvNextV2", **LEVELS, drop_path_rate=0.1)


@animal("transformers resnet")
def resnet():
    return classifier("ResNet", **LEVELS, embedding_size=8, layer_type="basic")


@animal("transformers regnet")
def regnet():
    return classifier("RegNet", **LEVELS, embedding_size=8, groups_width=4)


@animal("bit")
def bit():
    return classifier("Bit", **LEVELS, embedding_size=8, num_groups=4)


@animal("transformers poolformer")
def poolformer():
    return classifier("PoolFormer", **LEVELS, drop_path_rate=0.1)


@animal("pvt")
def pvt():
    return classifier(
        "Pvt",
        image_size=SIZE,
        **LEVELS,
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
    )


@animal("transformers pvt_v2")
def pvt_v2():
    return classifier(
        "PvtV2",
        image_size=SIZE,
        **LEVELS,
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
    )


@animal("transformers focalnet")
def focalnet():
    return classifier(
        "FocalNet",
        image_size=SIZE,
        embed_dim=8,
        hidden_sizes=[8, 16],
        depths=[2, 2],
        focal_levels=[1, 1],
        focal_windows=[3, 3],
    )


@animal("cvt")
def cvt():
    return classifier(
        "Cvt",
        embed_dim=[8, 8, 16],
        num_heads=[1, 1, 2],
        depth=[1, 2, 3],
        mlp_ratio=[2.0] * 3,
        drop_path_rate=[0.0, 0.0, 0.1],
    )


@animal("transformers levit")
def levit():
    return classifier(
        "Levit",
        image_size=64,
        hidden_sizes=[16, 16, 16],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    )._replace(batch=labelled(None, 64).batch)


@animal("mobilenet_v1")
def mobilenet_v1():
    return classifier("MobileNetV1", depth_multiplier=0.25, image_size=SIZE)


@animal("mobilenet_v2")
def mobilenet_v2():
    return classifier("MobileNetV2", depth_multiplier=0.25, image_size=SIZE)


@animal("transformers mobilevit")
def mobilevit():
    return classifier(
        "MobileViT",
        image_size=SIZE,
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
        num_attention_heads=2,
    )


@animal("mobilevitv2")
def mobilevitv2():
    return classifier("MobileViTV2", image_size=64, width_multiplier=0.125)._replace(
        batch=labelled(None, 64).batch
    )


@animal("transformers efficientnet")
def efficientnet():
    return classifier(
        "EfficientNet",
        image_size=SIZE,
        width_coefficient=0.25,
        depth_coefficient=0.25,
        hidden_dim=320,
    )


@animal("swiftformer")
def swiftformer():
    return classifier("SwiftFormer", embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1])


@animal("transformers hiera")
def hiera():
    return classifier(
        "Hiera",
        image_size=[SIZE, SIZE],
        embed_dim=8,
        depths=[1, 1, 1],
        num_heads=[1, 2, 2],
        num_query_pool=2,
        masked_unit_size=[4, 4],
    )


@animal("hgnet_v2")
def hgnet_v2():
    return classifier(
        "HGNetV2",
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 8, 8],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 8, 8, 16],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
    )
