"""Convolutional networks of timm, narrow and shallow."""

import copy
import dataclasses
import functools
import importlib
from unittest import mock

from torch import nn

from zoo.timm_models import DROPS, of_timm

# isort: split
from timm.layers import ConvNormAct
from timm.models import cspnet as cspnet_file
from timm.models import hrnet as hrnet_file
from timm.models import nfnet as nfnet_file
from timm.models import regnet as regnet_file
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.efficientnet import EfficientNet
from timm.models.ghostnet import GhostNet
from timm.models.inception_next import MetaNeXt
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.vgg import VGG


@of_timm
def convnext():
    return "convnext_atto", 32, {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16), **DROPS}


@of_timm
def convnext_v2():
    return "convnextv2_atto", 32, {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16), **DROPS}


NARROW = {"channels": (8, 16, 16, 32), "stem_width": 8}


@of_timm
def resnet():
    return "resnet18", 32, {**NARROW, "layers": (1, 1, 1, 1), **DROPS, "drop_block_rate": 0.1}


@of_timm
def resnext():
    small = {"layers": (1, 1, 1, 1), "cardinality": 4, "base_width": 32}
    return "resnext50_32x4d", 32, {**NARROW, **small, **DROPS}


@of_timm
def res2net():
    return "res2net50_26w_4s", 32, {**NARROW, "layers": (1, 1, 1, 1), "base_width": 8, **DROPS}


@of_timm
def resnest():
    return "resnest14d", 32, {"layers": (1, 1, 1, 1), **NARROW, **DROPS}


@of_timm
def resnet_v2():
    small = {"layers": (1, 1, 1, 1), "channels": (32, 32, 32, 32), "stem_chs": 32}
    return "resnetv2_50", 32, {**small, **DROPS}


@of_timm
def senet():
    return "legacy_seresnet18", 32, {"layers": (1, 1, 1, 1), "drop_rate": 0.1}


@of_timm
def regnet():
    widths = regnet_file.RegNetCfg(w0=8, wa=8, wm=1.5, depth=5, group_size=4, se_ratio=0.25)
    return functools.partial(regnet_file.RegNet, widths), 32, DROPS


@of_timm
def nfnet():
    small = {"depths": (1, 1, 1, 1), "channels": (8, 16, 16, 32), "num_features": 32}
    like_f0 = {"stem_type": "deep_quad", "attn_layer": "se", "attn_kwargs": {}, "extra_conv": True}
    shape = nfnet_file.NfCfg(**small, **like_f0)
    return functools.partial(nfnet_file.NormFreeNet, shape), 64, DROPS


@of_timm
def efficientnet():
    stages = ["ds_r1_k3_s1_e1_c8_se0.25", "ir_r2_k3_s2_e3_c8_se0.25", "ir_r1_k5_s1_e3_c16_se0.25"]
    arguments = {"block_args": decode_arch_def([[stage] for stage in stages])}
    return EfficientNet, 32, {**arguments, "stem_size": 8, "num_features": 32, **DROPS}


@of_timm
def mobilenet_v3():
    stages = ["ds_r1_k3_s1_e1_c8_nre", "ir_r2_k5_s2_e3_c16_se0.25", "cn_r1_k1_s1_c32"]
    arguments = {"block_args": decode_arch_def([[stage] for stage in stages])}
    return MobileNetV3, 32, {**arguments, "num_features": 32, "act_layer": nn.Hardswish, **DROPS}


@of_timm
def ghostnet():
    stages = [[3, 16, 8, 0, 1]], [[3, 16, 16, 0, 2]], [[5, 24, 16, 0.25, 1]], [[3, 32, 32, 0, 2]]
    return GhostNet, 32, {"cfgs": stages, "drop_rate": 0.1}


@of_timm
def densenet():
    return "densenet121", 32, {"growth_rate": 4, "block_config": (2, 2, 2, 2), "drop_rate": 0.1}


@of_timm
def vgg():
    channels = [8, "M", 16, "M", 16, 16, "M", 32, "M", 32, "M"]
    arguments = {"norm_layer": nn.BatchNorm2d, "mlp_ratio": 0.01, "drop_rate": 0.1}
    return functools.partial(VGG, channels), 32, arguments


inception_file = importlib.import_module("timm.models.inception_v3")
INCEPTION_SHARE = 8
"""One in so many channels is left in each layer."""


def narrow_inception(**arguments):
    """Inception V3 has no arguments for its widths and depth."""

    def narrow(in_channels, out_channels, **others):
        narrowed = in_channels if in_channels == 3 else in_channels // INCEPTION_SHARE
        return ConvNormAct(narrowed, out_channels // INCEPTION_SHARE, **others)

    with mock.patch.object(inception_file, "ConvNormAct", narrow):
        model = inception_file.InceptionV3(**arguments)
    for repeated in ("Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7c"):
        setattr(model, repeated, nn.Identity())
    model.num_features //= INCEPTION_SHARE
    model.reset_classifier(arguments["num_classes"])
    return model


@of_timm
def inception_v3():
    return narrow_inception, 75, {"drop_rate": 0.1}


@of_timm
def inception_next():
    small = {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)}
    return MetaNeXt, 32, {**small, **DROPS}


def narrow_hrnet(shape, **arguments):
    """HRNet has no arguments for the width of its last convolution."""
    model = hrnet_file.HighResolutionNet(shape, **arguments)
    last, norm, relu = model.final_layer
    model.num_features = 32
    last = nn.Conv2d(last.in_channels, model.num_features, kernel_size=1)
    model.final_layer = nn.Sequential(last, type(norm)(model.num_features), relu)
    model.reset_classifier(arguments["num_classes"])
    return model


@of_timm
def hrnet():
    shape = copy.deepcopy(hrnet_file.cfg_cls["hrnet_w18_small"])
    for part in shape.values():
        if isinstance(part, dict):
            part["num_channels"] = tuple(width // 4 for width in part["num_channels"])
            part["num_blocks"] = tuple(1 for _ in part["num_blocks"])
    shape["stem_width"] = 16
    return functools.partial(narrow_hrnet, shape), 32, {"drop_rate": 0.1}


@of_timm
def dpn():
    small = {"k_sec": (1, 1, 1, 1), "inc_sec": (4, 4, 4, 4), "k_r": 8, "groups": 2}
    return "dpn48b", 32, {**small, "num_init_features": 8, "drop_rate": 0.1}


@of_timm
def dla():
    small = {"channels": (8, 8, 8, 16, 16, 16), "levels": (1, 1, 1, 2, 1, 1)}
    return "dla34", 32, {**small, "drop_rate": 0.1}


@of_timm
def cspnet():
    shape = cspnet_file.model_cfgs["cspresnet50"]
    stages = {"depth": (1, 1, 2, 1), "out_chs": (16, 16, 32, 32)}
    stages = dataclasses.replace(shape.stages, **stages)
    return (
        functools.partial(cspnet_file.CspNet, dataclasses.replace(shape, stages=stages)),
        32,
        DROPS,
    )


@of_timm
def vovnet():
    return "ese_vovnet19b_slim_dw", 32, DROPS


@of_timm
def repvgg():
    blocks = tuple(ByoBlockCfg(type="rep", d=d, c=8 * d) for d in (1, 2, 2, 1))
    shape = ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=8)
    return functools.partial(ByobNet, shape), 32, {"drop_rate": 0.1}


@of_timm
def repvit():
    return "repvit_m0_9", 32, {"embed_dim": (8, 8, 16, 16), "depth": (1, 1, 1, 1), "drop_rate": 0.1}


@of_timm
def rexnet():
    return "rexnet_100", 32, {"width_mult": 0.5, "depth_mult": 0.5, **DROPS}
