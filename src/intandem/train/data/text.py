"""Text to train on: files, split into those that are trained on and those that are held out."""

from __future__ import annotations

import hashlib
import math
import os
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from intandem.errors import RunError
from intandem.train.data.dataset import Data
from intandem.train.data.tokens import ByteTokenizer, learn_pairs, load_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from intandem.train.config import DataConfig
    from intandem.train.data.tokens import Tokenizer

SKIPPED = frozenset({"test", "tests", "site-packages", "dist-packages", "__pycache__"})
"""Folders of the standard library that are left out: tests repeat themselves, packages differ
between machines."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What files hold, split by files or, of a single one, by place.

    Attributes:
        place: where they were found.
        num_files: files read.
        training: one after another.
        heldout: empty where nothing is held out; no file is in both.
    """

    place: Path
    num_files: int
    training: bytes
    heldout: bytes


class Windows:
    """Pieces of a text that follow one another; each is inputs and, one further on, targets.

    Args:
        tokens: of the text, ``(tokens,)``.
        seq: tokens of a piece.
    """

    def __init__(self, tokens: Tensor, seq: int) -> None:
        self._tokens, self._seq = tokens, seq

    def __len__(self) -> int:
        return max(0, (len(self._tokens) - 1) // self._seq)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, int64 ``(rows, seq)`` each."""
        windows = self._tokens[rows[:, None] * self._seq + torch.arange(self._seq + 1)].long()
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def text_data(config: DataConfig, seed: int, tokenizer_path: Path) -> Data:
    """Return the text that ``config`` names.

    Args:
        config: of the data.
        seed: decides which files are held out.
        tokenizer_path: where learned tokens are read from, if the file is there.

    Raises:
        RunError: if there is no text, or too little.
    """
    sources = find_sources(config, seed)
    tokenizer = find_tokenizer(config, sources, tokenizer_path)
    training, heldout = (tokenizer.encode(part) for part in (sources.training, sources.heldout))
    windows = Windows(training, config.seq)
    if not len(windows):
        msg = (
            f"{sources.place} gives {len(training)} tokens to train on, and a row has "
            f"data.seq = {config.seq}; give more text, or hold out less of it "
            f"(data.validation = {config.validation})"
        )
        raise RunError(msg)
    held = Windows(heldout, config.seq)
    digest = hashlib.sha256(sources.training + b"\0" + sources.heldout).hexdigest()
    return Data(
        training=windows,
        validation=held if len(held) else None,
        loss=next_token_loss,
        unit="tokens",
        units_per_row=config.seq,
        facts={"vocab": tokenizer.vocab, "seq": config.seq},
        fingerprint=f"{digest} {config.tokenizer} {tokenizer.vocab} {config.seq}",
        about=(
            f"{len(training):,} {'bytes' if tokenizer.vocab == 256 else 'tokens'} of "
            f"{sources.num_files} file{'s' * (sources.num_files != 1)} from {sources.place}, "
            f"{len(heldout):,} held out"
        ),
    )


def next_token_loss(logits: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy in nats per token, of logits ``(rows, seq, vocab)``."""
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten())


def find_sources(config: DataConfig, seed: int) -> Sources:
    """Read the files that ``config.source`` names.

    Raises:
        RunError: if there are none.
    """
    if config.source == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        return _split(root, list(find_files(root, "**/*.py", SKIPPED)), config.validation, seed)
    root = Path(config.source.removeprefix("text:")).expanduser()
    if root.is_file():
        return Sources(root, 1, *hold_out_end(root.read_bytes(), config.validation))
    if not root.is_dir():
        msg = f"data.source is {config.source!r}, and there is no file or folder {root.resolve()}"
        raise RunError(msg)
    files = list(find_files(root, config.files))
    if not files:
        msg = f'{root} has no file that matches data.files = "{config.files}"'
        raise RunError(msg)
    return _split(root, files, config.validation, seed)


def find_files(root: Path, pattern: str, skipped: frozenset[str] = frozenset()) -> Iterable[Path]:
    """Yield the files under ``root``, in order of their paths; no hidden ones."""
    for path in sorted(root.glob(pattern)):
        parts = path.relative_to(root).parts
        is_hidden = any(part.startswith(".") for part in parts)
        if path.is_file() and not is_hidden and skipped.isdisjoint(parts):
            yield path


def read_files(paths: Iterable[Path]) -> list[bytes]:
    """Return what files hold, without those that are empty or cannot be read."""
    return [data for path in paths if (data := _read(path))]


def hold_out(texts: list[bytes], share: float, seed: int) -> tuple[bytes, bytes]:
    """Return the training text and the one held out; ``seed`` decides which files that is.

    One file at least is trained on; of a single one, what comes before its end.
    """
    if len(texts) == 1:
        return hold_out_end(texts[0], share)
    random.Random(seed).shuffle(texts)
    num_heldout = min(math.ceil(len(texts) * share), max(0, len(texts) - 1))
    return b"".join(texts[num_heldout:]), b"".join(texts[:num_heldout])


def hold_out_end(text: bytes, share: float) -> tuple[bytes, bytes]:
    """Return the training text and the one held out, which is the end."""
    at = len(text) - math.floor(len(text) * share)
    return text[:at], text[at:]


def find_tokenizer(config: DataConfig, sources: Sources, path: Path) -> Tokenizer:
    """Return the tokenizer: learned from the training text unless ``path`` has it already."""
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if path.is_file():
        try:
            return load_pairs(path)
        except RunError:
            if path.is_file():
                raise  # else another process has just forgotten what is no run's
    tokenizer = learn_pairs([sources.training], config.vocab)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")  # processes learn the same tokens
    tokenizer.save(unfinished)
    unfinished.replace(path)
    return tokenizer


def _split(root: Path, files: list[Path], share: float, seed: int) -> Sources:
    texts = read_files(files)
    training, heldout = hold_out(texts, share, seed)
    return Sources(root, len(texts), training, heldout)


def _read(path: Path) -> bytes:
    """Bytes of a file, or nothing where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
