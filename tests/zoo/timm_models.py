"""Vision models of timm, narrow and shallow: attention, and what mixes tokens otherwise."""

import functools

import torch
from torch.nn.functional import cross_entropy

from zoo.catalogue import ROWS, Sample, animal
from zoo.timm_import import timm

# isort: split
from timm.models import maxxvit, metaformer
from timm.models.coat import CoaT
from timm.models.convmixer import ConvMixer
from timm.models.crossvit import CrossVit
from timm.models.focalnet import FocalNet
from timm.models.metaformer import MetaFormer
from timm.models.mlp_mixer import MlpMixer
from timm.models.volo import VOLO

CLASSES = 4

DROPS = {"drop_rate": 0.1, "drop_path_rate": 0.2}
"""Dropout before the head and stochastic depth, as in their training recipes."""

TOKENS = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
"""A small vision transformer: 16 tokens, 4 blocks."""


def of_timm(function):
    """Enter what returns a model's name in timm (or its class), its image size, and arguments."""

    def build():
        made, size, arguments = function()
        arguments = {"num_classes": CLASSES, **arguments}
        if isinstance(made, str):
            made = functools.partial(timm.create_model, made, pretrained=False)
        model = made(**arguments)
        return Sample(model, images(size), classified)

    build.__module__ = function.__module__
    animal(function.__name__, library="timm")(build)
    return function


def images(size):
    """A batch of square images and their classes."""
    pixels = torch.randn(ROWS, 3, size, size, dtype=torch.float64)
    return {"x": pixels, "target": torch.randint(0, CLASSES, (ROWS,))}


def classified(output, batch):
    """Cross entropy of the class scores."""
    return cross_entropy(output, batch["target"])


# Vision transformers of one width.


@of_timm
def vit():
    return "vit_tiny_patch16_224", 32, {**TOKENS, **DROPS, "attn_drop_rate": 0.1}


@of_timm
def vit_relative_position():
    return "vit_relpos_small_patch16_224", 32, {**TOKENS, **DROPS}


@of_timm
def deit3():
    return "deit3_small_patch16_224", 32, {**TOKENS, **DROPS}


@of_timm
def beitv2():
    return "beitv2_base_patch16_224", 32, {**TOKENS, **DROPS}


@of_timm
def eva02():
    return "eva02_tiny_patch14_224", 32, {**TOKENS, **DROPS}


@of_timm
def cait():
    return "cait_xxs24_224", 32, {**TOKENS, **DROPS}


@of_timm
def xcit():
    return "xcit_nano_12_p16_224", 32, {**TOKENS, **DROPS}


@of_timm
def convit():
    return "convit_tiny", 32, {**TOKENS, **DROPS, "local_up_to_layer": 2}


@of_timm
def mlp_mixer():
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_blocks": 4}
    return MlpMixer, 32, {**arguments, **DROPS}


@of_timm
def tnt():
    small = {"inner_dim": 8, "num_heads_inner": 2, "num_heads_outer": 2}
    tokens = {name: value for name, value in TOKENS.items() if name != "num_heads"}
    return "tnt_s_patch16_224", 32, {**tokens, **small, **DROPS}


# Transformers that narrow the image as they go.


@of_timm
def swin():
    small = {"img_size": 32, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}
    return "swin_tiny_patch4_window7_224", 32, {**small, "window_size": 4, **DROPS}


@of_timm
def swin_v2():
    small = {"img_size": 32, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}
    return "swinv2_tiny_window8_256", 32, {**small, "window_size": 4, **DROPS}


@of_timm
def pit():
    small = {"img_size": 32, "patch_size": 8, "stride": 4, "base_dims": (8, 8, 8)}
    return "pit_ti_224", 32, {**small, "depth": (1, 2, 1), "heads": (1, 2, 2), **DROPS}


@of_timm
def coat():
    small = {"embed_dims": (16, 16, 16, 16), "serial_depths": (1, 1, 1, 1), "num_heads": 8}
    return CoaT, 32, {"img_size": 32, "patch_size": 4, **small, "parallel_depth": 2, **DROPS}


@of_timm
def levit():
    small = {"embed_dim": (16, 24, 32), "depth": (1, 2, 1), "num_heads": (1, 2, 2), "key_dim": 8}
    return "levit_128s", 64, {"img_size": 64, **small, **DROPS}


@of_timm
def crossvit():
    small = {"embed_dim": (8, 16), "num_heads": (2, 2), "depth": ((1, 1, 0),) * 3}
    return CrossVit, 32, {"img_size": 32, "mlp_ratio": (2, 2, 1), **small, **DROPS}


@of_timm
def pvt_v2():
    small = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}
    return "pvt_v2_b0", 32, {**small, "mlp_ratios": (2, 2, 2, 2), **DROPS}


@of_timm
def twins():
    small = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}
    return "twins_svt_small", 32, {"img_size": 32, **small, **DROPS}


@of_timm
def davit():
    small = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}
    return "davit_tiny", 32, {**small, "window_size": 2, **DROPS}


@of_timm
def maxvit():
    small = {"embed_dim": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "stem_width": 8}
    attention = maxxvit.MaxxVitTransformerCfg(dim_head=4, window_size=(2, 2))
    shape = maxxvit.MaxxVitCfg(**small, block_type=("M",) * 4, transformer_cfg=attention)
    return functools.partial(maxxvit.MaxxVit, shape), 64, {"img_size": 64, **DROPS}


@of_timm
def volo():
    small = {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2)}
    return VOLO, 32, {"img_size": 32, "stem_hidden_dim": 8, **small, **DROPS}


@of_timm
def hiera():
    small = {"embed_dim": 8, "stages": (1, 1, 1, 1), "img_size": (64, 64)}
    return "hiera_tiny_224", 64, {**small, "mask_unit_size": (4, 4), **DROPS}


# Token mixers of other kinds.


@of_timm
def poolformer():
    return MetaFormer, 32, {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), **DROPS}


@of_timm
def caformer():
    small = {"depths": (1, 1, 1, 1), "dims": (32, 32, 32, 32)}
    mixers = [metaformer.SepConv] * 2 + [metaformer.Attention] * 2
    norms = [metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2
    return MetaFormer, 32, {**small, "token_mixers": mixers, "norm_layers": norms, **DROPS}


@of_timm
def edgenext():
    small = {"depths": (1, 1, 2, 1), "dims": (8, 16, 16, 32), "heads": (2, 2, 2, 2)}
    return "edgenext_xx_small", 32, {**small, **DROPS}


@of_timm
def mobilevit():
    return "mobilevit_xxs", 32, DROPS


@of_timm
def convmixer():
    return ConvMixer, 32, {"dim": 16, "depth": 4, "patch_size": 4, "drop_rate": 0.1}


@of_timm
def focalnet():
    return FocalNet, 32, {"embed_dim": 8, "depths": (1, 1, 1, 1), **DROPS}


@of_timm
def mambaout():
    small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
    return "mambaout_femto", 32, {**small, **DROPS}


@of_timm
def sequencer():
    small = {"layers": (1, 1, 1, 1), "embed_dims": (8, 8, 8, 8), "hidden_sizes": (4, 4, 4, 4)}
    return "sequencer2d_s", 32, {"img_size": 32, "patch_sizes": (4, 2, 1, 1), **small, **DROPS}
