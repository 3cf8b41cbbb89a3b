"""Train an encoder-decoder to put the vowels back into text, two stages in tandem.

The text is the documentation of Python's own standard library. The encoder reads lines without
their vowels; the decoder writes the lines as they were. Lines differ in length: padding counts for
nothing, because the loss is a sum over characters with the number of them.

In one process, or with one for each rank::

    python examples/train_encoder_decoder.py
    intandem run --ranks 2 examples/train_encoder_decoder.py
"""

from __future__ import annotations

import argparse
import ast
import os
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import intandem as it

ROWS, WIDTH, LONGEST, START, PADDING = 48, 96, 64, 1, 0
Batch = dict[str, Tensor]


class EncoderDecoder(nn.Module):
    """Characters and positions through torch's own transformer, to logits over characters."""

    def __init__(self, vocab: int = 128) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocab, WIDTH, padding_idx=PADDING)
        self.positions = nn.Embedding(LONGEST + 1, WIDTH)
        self.transformer = nn.Transformer(WIDTH, 4, 3, 3, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, vocab)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Map characters ``(rows, source)`` and ``(rows, target)`` to logits for the target."""
        hidden = source == PADDING
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        written = self.transformer(
            self.embed(source), self.embed(target), tgt_mask=causal, tgt_is_causal=True,
            src_key_padding_mask=hidden, memory_key_padding_mask=hidden,
        )  # fmt: skip
        return self.head(written)

    def embed(self, ids: Tensor) -> Tensor:
        """Return what characters are at their places."""
        return self.characters(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))


def read_lines() -> list[str]:
    """Lines of the standard library's docstrings, 20 to LONGEST characters of ASCII."""
    found: set[str] = set()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:120]:
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                found.update(map(str.strip, (ast.get_docstring(node) or "").splitlines()))
    return sorted(t for t in found if t.isascii() and t.isprintable() and 20 <= len(t) < LONGEST)


def batch_of(lines: list[str], draws: torch.Generator) -> Batch:
    """Lines without vowels, the lines after START, and what the decoder is to write."""
    picked = [lines[i] for i in torch.randint(len(lines), (ROWS,), generator=draws)]
    sources = ["".join(c for c in line if c not in "aeiou") for line in picked]
    targets = as_tensor(picked)
    given = F.pad(targets, (1, -1), value=START)
    return {"source": as_tensor(sources), "target": given, "labels": targets}


def as_tensor(lines: list[str]) -> Tensor:
    """Character codes ``(rows, longest + 1)``: what is after a line is PADDING."""
    longest = max(map(len, lines)) + 1
    return torch.tensor([list(line.encode().ljust(longest, b"\0")) for line in lines])


def loss_fn(logits: Tensor, batch: Batch) -> it.LossSum:
    """Nats, and over how many characters."""
    nats = F.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=PADDING, reduction="sum"
    )
    return it.LossSum(nats, (batch["labels"] != PADDING).sum())


def main() -> None:
    """Train, and print the loss on lines that were held out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    torch.set_num_threads(1)
    lines, draws = read_lines(), torch.Generator().manual_seed(1)
    held_out, trained = lines[::20], [line for i, line in enumerate(lines) if i % 20]
    pipe = it.Pipeline(
        EncoderDecoder(),
        example=batch_of(trained, draws),
        loss=loss_fn,
        ranks=None if "WORLD_SIZE" in os.environ else 2,
        microbatches=6,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=1e-3)
    for step in range(steps):
        loss = pipe.step(batch_of(trained, draws))  # longer and shorter lines: other shapes
        pipe.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            report(f"step {step:4d}  loss {loss:.3f} nats per character")
    report(f"held-out loss {pipe.evaluate(batch_of(held_out, draws)):.3f} nats per character")


def report(line: str) -> None:
    """Print on rank 0."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


if __name__ == "__main__":
    main()
