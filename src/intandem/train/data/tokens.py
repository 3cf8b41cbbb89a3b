"""How text becomes numbers: its bytes, or byte pairs that were learned from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from intandem.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

_PIECE = 1 << 16
"""Characters of text that are encoded at once."""


class Tokenizer(Protocol):
    """Turns bytes into numbers less than ``vocab``."""

    @property
    def vocab(self) -> int: ...  # noqa: D102
    def encode(self, data: bytes) -> Tensor: ...  # noqa: D102
    def save(self, path: Path) -> None: ...  # noqa: D102


class ByteTokenizer:
    """A token is a byte; there is nothing to save."""

    vocab = 256

    def encode(self, data: bytes) -> Tensor:
        """Return uint8, ``(bytes,)``."""
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else _NOTHING

    def save(self, path: Path) -> None:
        """Do nothing."""


class PairTokenizer:
    """Byte pairs, of the ``tokenizers`` library.

    Args:
        tokenizer: of that library.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.vocab: int = tokenizer.get_vocab_size()

    def encode(self, data: bytes) -> Tensor:
        """Return int32, ``(tokens,)``; what is not UTF-8 becomes the replacement character."""
        pieces = _pieces(data.decode("utf-8", errors="replace"))
        found = [n for part in self._tokenizer.encode_batch(pieces) for n in part.ids]
        return torch.tensor(found, dtype=torch.int32)

    def save(self, path: Path) -> None:
        """Write it as JSON that the library, and ``transformers``, can read."""
        self._tokenizer.save(str(path))


_NOTHING = torch.zeros(0, dtype=torch.uint8)


def learn_pairs(texts: Sequence[bytes], vocab: int) -> PairTokenizer:
    """Learn the ``vocab`` tokens that say ``texts`` shortest, all 256 bytes among them.

    Raises:
        RunError: without the ``tokenizers`` library.
    """
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=sorted(alphabet), show_progress=False
    )
    pieces = (piece for data in texts for piece in _pieces(data.decode("utf-8", errors="replace")))
    tokenizer.train_from_iterator(pieces, trainer)
    return PairTokenizer(tokenizer)


def load_pairs(path: Path) -> PairTokenizer:
    """Read what ``PairTokenizer.save`` wrote.

    Raises:
        RunError: if it cannot be read, or without the ``tokenizers`` library.
    """
    library = _library()
    try:
        return PairTokenizer(library.Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises nothing more special
        msg = f"{path} is no tokenizer: {error}"
        raise RunError(msg) from error


def _pieces(text: str) -> list[str]:
    """Cut at ends of lines, into pieces that are encoded at once; nothing is lost."""
    pieces, begin = [], 0
    while begin < len(text):
        end = text.find("\n", begin + _PIECE) + 1 or len(text)
        pieces.append(text[begin:end])
        begin = end
    return pieces


def _library() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        msg = (
            'data.tokenizer = "bpe" needs the tokenizers library: pip install "intandem[text]", or '
            'take "bytes"'
        )
        raise RunError(msg) from error
    return tokenizers
