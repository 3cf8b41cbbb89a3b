"""Images to train on: scikit-learn's digits, which come with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from intandem.errors import RunError
from intandem.runtime.losses import LossSum
from intandem.train.data.dataset import Data

if TYPE_CHECKING:
    from torch import Tensor

    from intandem.train.config import DataConfig

SETS = ("digits",)


def image_data(config: DataConfig) -> Data:
    """Return the 1,797 digits of scikit-learn, ``(rows, 1, 8, 8)`` in [-1, 1], and their classes.

    Raises:
        RunError: if another set is asked for, or scikit-learn is not there.
    """
    name = config.source.removeprefix("images:")
    if name not in SETS:
        msg = f"data.source is {config.source!r}; there is images:digits"
        raise RunError(msg)
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        msg = 'images:digits needs scikit-learn: pip install "intandem[images]"'
        raise RunError(msg) from error
    images, classes = map(torch.tensor, load_digits(return_X_y=True))
    images = images.view(-1, 1, 8, 8).float() / 8 - 1
    held_out = _every_so_many(len(images), config.validation)
    held = (images[held_out], classes[held_out])
    return Data(
        training=(images[~held_out], classes[~held_out]),
        validation=held if bool(held_out.any()) else None,
        loss=class_loss,
        unit="images",
        facts={"size": 8, "channels": 1, "classes": 10},
        fingerprint=f"digits {len(images)} {int(held_out.sum())}",
        about=f"{int((~held_out).sum()):,} digits of 8 x 8 pixels, {int(held_out.sum())} held out",
    )


def class_loss(logits: Tensor, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor | LossSum]:
    """Mean cross entropy of logits ``(rows, classes)``, and the share that is named right."""
    num_right = (logits.argmax(1) == batch[1]).sum()
    return {
        "loss": F.cross_entropy(logits, batch[1]),
        "accuracy": LossSum(num_right, len(logits)),
    }


def _every_so_many(num_rows: int, share: float) -> Tensor:
    """Mask of rows, ``share`` of them, spread evenly."""
    numbers = torch.arange(num_rows + 1, dtype=torch.float64) * share
    return numbers[1:].floor() > numbers[:-1].floor()
