"""Imports timm where torchvision is not installed.

timm's models need nothing of torchvision, but ``import timm`` imports its image transforms as well,
which ask torchvision for a handful of classes to inherit from, and torchvision's wheels need a
build of torch with CUDA. So while timm is imported, and no longer, ``torchvision`` is a stand-in
whose classes are empty. It is taken away afterwards: other libraries (transformers) look for
torchvision to decide what they offer, and must not find it.
"""

import importlib.util
import sys
from contextlib import contextmanager
from enum import Enum
from types import ModuleType

from torch import nn


class _Anything(ModuleType):
    """A module in which every class exists and does nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


def _stand_in():
    """Return the modules that timm imports from, by name."""
    names = ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")
    modules = {"torchvision": ModuleType("torchvision")}
    for name in ("ops", "ops.misc"):
        modules[f"torchvision.{name}"] = ModuleType(f"torchvision.{name}")
    modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
    transforms = _Anything("torchvision.transforms")
    transforms.functional = _Anything("torchvision.transforms.functional")
    transforms.functional.InterpolationMode = Enum("InterpolationMode", [(n, n) for n in names])
    modules["torchvision.transforms"] = transforms
    modules["torchvision.transforms.functional"] = transforms.functional
    modules["torchvision.datasets"] = _Anything("torchvision.datasets")
    return modules


@contextmanager
def torchvision_stand_in():
    """Let ``import torchvision`` give the stand-in, where there is none."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    modules = _stand_in()
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)


with torchvision_stand_in():
    import timm

__all__ = ["timm"]
