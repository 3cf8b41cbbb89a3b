"""Images again, with an answer for every pixel, box or frame."""

import torch
import transformers

from zoo.catalogue import ROWS, Sample, animal
from zoo.vision import CLASSES, LEVELS, SIZE, TRANSFORMER, images, segmented


def backbone(family, **config):
    return getattr(transformers, f"{family}Config")(**config)


@animal("segformer")
def segformer():
    config = transformers.SegformerConfig(
        **LEVELS,
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=CLASSES,
    )
    return segmented(transformers.SegformerForSemanticSegmentation(config))


@animal("mobilenet_v2 segmentation")
def mobilenet_v2_segmentation():
    config = transformers.MobileNetV2Config(
        depth_multiplier=0.25, image_size=SIZE, num_labels=CLASSES
    )
    return segmented(transformers.MobileNetV2ForSemanticSegmentation(config))


@animal("dpt segmentation")
def dpt():
    config = transformers.DPTConfig(
        **TRANSFORMER,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        num_labels=CLASSES,
    )
    return segmented(transformers.DPTForSemanticSegmentation(config))


@animal("upernet")
def upernet():
    config = transformers.UperNetConfig(
        backbone_config=backbone(
            "ConvNext", **LEVELS, out_features=["stage1", "stage2", "stage3", "stage4"]
        ),
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_channels=8,
        auxiliary_in_channels=16,
        num_labels=CLASSES,
    )
    return segmented(transformers.UperNetForSemanticSegmentation(config), size=64)


@animal("depth_anything")
def depth_anything():
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone(
            "Dinov2",
            **(TRANSFORMER | {"mlp_ratio": 2}),
            out_indices=[1, 2, 3, 4],
            reshape_hidden_states=False,
            apply_layernorm=True,
        ),
        patch_size=8,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    batch = {"pixel_values": images(), "depth": torch.rand(ROWS, SIZE, SIZE).double()}
    return Sample(
        transformers.DepthAnythingForDepthEstimation(config),
        batch,
        lambda output, given: (output.predicted_depth - given["depth"]).abs().mean(),
    )


@animal("vitmatte")
def vitmatte():
    config = transformers.VitMatteConfig(
        backbone_config=backbone(
            "VitDet",
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=SIZE,
            patch_size=16,
            num_channels=4,
            window_block_indices=[0, 2],
            residual_block_indices=[1],
            use_relative_position_embeddings=True,
            window_size=2,
            out_features=["stage4"],
        ),
        hidden_size=16,
        fusion_hidden_sizes=[16, 8, 8, 4],
        convstream_hidden_sizes=[4, 4, 8],
    )
    batch = {
        "pixel_values": torch.randn(ROWS, 4, SIZE, SIZE).double(),
        "alphas": torch.rand(ROWS, 1, SIZE, SIZE).double(),
    }
    return Sample(
        transformers.VitMatteForImageMatting(config),
        batch,
        lambda output, given: (output.alphas - given["alphas"]).abs().mean(),
    )


@animal("vitpose")
def vitpose():
    config = transformers.VitPoseConfig(
        backbone_config=backbone(
            "VitPoseBackbone",
            **(TRANSFORMER | {"image_size": [SIZE, SIZE], "patch_size": [8, 8]}),
            mlp_ratio=2,
            out_indices=[4],
        ),
        num_labels=5,
        use_simple_decoder=True,
    )
    batch = {"pixel_values": images(), "heatmaps": torch.rand(ROWS, 5, 16, 16).double()}
    return Sample(
        transformers.VitPoseForPoseEstimation(config),
        batch,
        lambda output, given: ((output.heatmaps - given["heatmaps"]) ** 2).mean(),
    )


@animal("timesformer")
def timesformer():
    config = transformers.TimesformerConfig(**TRANSFORMER, num_frames=2, num_labels=CLASSES)
    frames = torch.randn(ROWS, 2, 3, SIZE, SIZE).double()
    labels = torch.randint(0, CLASSES, (ROWS,))
    return Sample(
        transformers.TimesformerForVideoClassification(config),
        {"pixel_values": frames, "labels": labels},
    )


@animal("videomae")
def videomae():
    config = transformers.VideoMAEConfig(
        **TRANSFORMER, num_frames=4, tubelet_size=2, num_labels=CLASSES
    )
    frames = torch.randn(ROWS, 4, 3, SIZE, SIZE).double()
    labels = torch.randint(0, CLASSES, (ROWS,))
    return Sample(
        transformers.VideoMAEForVideoClassification(config),
        {"pixel_values": frames, "labels": labels},
    )


@animal("vivit")
def vivit():
    config = transformers.VivitConfig(
        **(TRANSFORMER | {"num_frames": 4, "tubelet_size": [2, 8, 8]}), num_labels=CLASSES
    )
    frames = torch.randn(ROWS, 4, 3, SIZE, SIZE).double()
    labels = torch.randint(0, CLASSES, (ROWS,))
    return Sample(
        transformers.VivitForVideoClassification(config), {"pixel_values": frames, "labels": labels}
    )


def class_error(output, batch):
    """A loss of the sort that box detectors have, on rows: no matching of boxes."""
    boxes = output.pred_boxes.mean(1) - batch["boxes"]
    scores = torch.nn.functional.cross_entropy(output.logits.mean(1), batch["classes"])
    return scores + boxes.abs().mean()


def boxed(model, size=SIZE):
    batch = {
        "pixel_values": images(size),
        "boxes": torch.rand(ROWS, 4).double(),
        "classes": torch.randint(0, CLASSES, (ROWS,)),
    }
    return Sample(model, batch, class_error)


@animal("yolos")
def yolos():
    config = transformers.YolosConfig(
        **(TRANSFORMER | {"image_size": [SIZE, SIZE]}),
        num_detection_tokens=3,
        num_labels=CLASSES,
    )
    return boxed(transformers.YolosForObjectDetection(config))


def detector(family, **extra):
    config = getattr(transformers, f"{family}Config")(
        backbone_config=backbone(
            "ResNet", **LEVELS, embedding_size=8, layer_type="basic", out_features=["stage4"]
        ),
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_queries=3,
        num_labels=CLASSES,
        **extra,
    )
    return boxed(getattr(transformers, f"{family}ForObjectDetection")(config), size=64)


@animal("detr")
def detr():
    return detector("Detr")


@animal("conditional_detr")
def conditional_detr():
    return detector("ConditionalDetr")
