"""Train a Llama of Hugging Face's, as it is, and give it back to ``transformers``.

This one is small and begins at random; docs/large_models.md fills a large one from its folder::

    python examples/train_llama.py --save runs/llama
    intandem run --ranks 2 examples/train_llama.py
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor
from train_gpt import batch_of, read_text
from transformers import LlamaConfig, LlamaForCausalLM

import intandem as it

ROWS, MICROBATCHES, SEQ = 16, 8, 64
CONFIG = LlamaConfig(
    vocab_size=256,
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
)


def labelled(text: Tensor, step: int) -> dict[str, Tensor]:
    """What the model takes, ``(rows, seq)`` each; it shifts labels itself."""
    rows = batch_of(text, step, ROWS, SEQ)[0]
    return {"input_ids": rows, "labels": rows}


def main() -> None:
    """Train; save if asked to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save", type=Path, help="a folder for transformers to load")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = read_text()
    pipe = it.Pipeline(
        LlamaForCausalLM(CONFIG),
        example=labelled(text, 0),  # the loss is the model's own
        ranks=None if "WORLD_SIZE" in os.environ else 2,
        microbatches=MICROBATCHES,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=2e-3)
    for step in range(options.steps):
        loss = pipe.step(labelled(text, step))
        pipe.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step % 10 == 0 or step == options.steps - 1) and os.environ.get("RANK", "0") == "0":
            print(f"step {step:4d}  loss {loss:.3f}", flush=True)

    if options.save:
        save_and_compare(pipe, options.save, labelled(text, 0)["input_ids"])


def save_and_compare(pipe: it.Pipeline, folder: Path, tokens: Tensor) -> None:
    """Save, load into a model of ``transformers``, and compare what both make of ``tokens``."""
    pipe.save_pretrained(folder)
    ours = pipe.predict({"input_ids": tokens})
    if ours is not None:  # where the last stage is
        loaded = LlamaForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():  # in the same parts, to the last bit
            theirs = torch.cat([loaded(rows).logits for rows in tokens.split(ROWS // MICROBATCHES)])
        print(f"the same logits after loading: {torch.equal(ours.logits, theirs)}", flush=True)


if __name__ == "__main__":
    main()
