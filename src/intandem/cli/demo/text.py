"""The demo's data: the Python standard library's own sources, as bytes."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from intandem.errors import RunError
from intandem.train.data.text import SKIPPED, find_files, hold_out, read_files


@dataclass(frozen=True, slots=True)
class Text:
    """Bytes to train on and bytes held out, split by files.

    Attributes:
        folder: where the files were found.
        num_files: files read, held-out ones included.
        training: uint8, ``(bytes,)``.
        heldout: uint8, ``(bytes,)``; no file is in both.
    """

    folder: Path
    num_files: int
    training: Tensor
    heldout: Tensor

    @property
    def entropy(self) -> float:
        """Of the training text's byte frequencies, in nats per byte.

        The loss of a model that knows how often each byte occurs and nothing else.
        """
        counts = torch.bincount(self.training, minlength=256).double()
        shares = counts[counts > 0] / counts.sum()
        return -float((shares * shares.log()).sum())


def load_text(seed: int = 0, *, folder: Path | None = None) -> Text:
    """Read every source file of the standard library; one in twenty is held out.

    Args:
        seed: decides which files are held out.
        folder: read here instead.

    Raises:
        RunError: if there is next to no source text in the folder.
    """
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    sources = read_files(find_files(root, "**/*.py", SKIPPED))
    training, heldout = hold_out(sources, 1 / 20, seed)
    if min(len(training), len(heldout)) < 10_000:
        msg = (
            f"{root} holds {len(training) + len(heldout)} bytes of Python sources in "
            f"{len(sources)} files; the demo needs at least 10000 to train on and to hold out"
        )
        raise RunError(msg)
    return Text(root, len(sources), _tensor(training), _tensor(heldout))


def batch_of(text: Tensor, *, rows: int, seq: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Cut random windows out of ``text``, the same ones for the same ``(seed, step)``.

    Returns:
        Inputs and, one byte further on, targets: int64, ``(rows, seq)`` each.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(text) - seq, (rows, 1), generator=generator)
    windows = text[starts + torch.arange(seq + 1)].long()
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
