"""Decoder-only language models, dense: every position attends to those before it."""

import torch
import transformers

from zoo.catalogue import ROWS, Sample, animal

VOCAB = 32
SEQ = 8


def language(model, *, vocab=VOCAB, seq=SEQ):
    """A batch of padded rows with labels; the model computes its own loss."""
    ids = torch.randint(3, vocab, (ROWS, seq))
    mask = torch.ones_like(ids)
    mask[1::2, seq - 2 :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return Sample(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})


@animal("llama")
def llama():
    return language(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=4,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=32,
                pad_token_id=0,
            )
        )
    )
