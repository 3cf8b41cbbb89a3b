"""Decoder-only language models, dense: every position attends to those before it."""

import torch
import transformers

from zoo.catalogue import ROWS, Sample, animal

VOCAB = 32
SEQ = 8

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What nearly every configuration knows, by its own name or an alias."""

GATED = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 1}
"""The same for the many that descend from Llama."""

LOCAL_GLOBAL = ["sliding_attention", "full_attention"] * 2


def language(model, *, vocab=VOCAB, seq=SEQ):
    """A batch of padded rows with labels; the model computes its own loss."""
    ids = torch.randint(3, vocab, (ROWS, seq))
    mask = torch.ones_like(ids)
    mask[1::2, seq - 2 :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return Sample(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})


def enter_all(family, table, common, build, **arguments):
    """Enter ``build(stem, options)`` for each name of ``table``.

    Args:
        family: ``__name__`` of the file whose entries they are.
        table: by name: stem of the classes' names, options of the configuration.
        common: options that all of them have.
        build: returns a sample.
        **arguments: of ``animal``.
    """
    for name, (stem, options) in table.items():

        def sample(stem=stem, options=options):
            return build(stem, {**common, **options})

        sample.__module__ = family
        animal(name, **arguments)(sample)


def causal(stem, options):
    """A model for next-token prediction, by the stem of its classes' names."""
    configuration = getattr(transformers, f"{stem}Config")(**options)
    configuration._experts_implementation = "eager"  # the default one takes no float64
    head = "LMHeadModel" if stem in {"GPT2", "CTRL"} else "ForCausalLM"
    return language(getattr(transformers, stem.removesuffix("Text") + head)(configuration))


GATED_MODELS = {
    "llama": ("Llama", {}),
    "llama, tied head": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral, sliding window": ("Mistral", {"sliding_window": 4}),
    "ministral, sliding window": ("Ministral", {"sliding_window": 4, "head_dim": 8}),
    "gemma": ("Gemma", {"head_dim": 8}),
    "gemma2, local and global": ("Gemma2", {"head_dim": 8, "sliding_window": 4}),
    "gemma3 text, local and global": (
        "Gemma3Text",
        {"head_dim": 8, "sliding_window": 4, "layer_types": LOCAL_GLOBAL},
    ),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {}),
    "olmo": ("Olmo", {}),
    "olmo2": ("Olmo2", {}),
    "olmo3, local and global": ("Olmo3", {"sliding_window": 4}),
    "starcoder2": ("Starcoder2", {}),
    "stablelm": ("StableLm", {}),
    "cohere": ("Cohere", {}),
    "cohere2, local and global": ("Cohere2", {"sliding_window": 4}),
    "glm": ("Glm", {"head_dim": 8}),
    "glm4": ("Glm4", {"head_dim": 8}),
    "smollm3": ("SmolLM3", {}),
    "granite": ("Granite", {}),
    "helium": ("Helium", {"head_dim": 8}),
    "exaone4, local and global": ("Exaone4", {"sliding_window": 4}),
    "nemotron": ("Nemotron", {}),
    "arcee": ("Arcee", {}),
    "seed_oss": ("SeedOss", {"head_dim": 8}),
    "ernie4_5": ("Ernie4_5", {"head_dim": 8}),
    "hunyuan_v1_dense": ("HunYuanDenseV1", {"head_dim": 8}),
    "apertus": ("Apertus", {}),
    "diffllama": ("DiffLlama", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "bitnet": ("BitNet", {}),
}

OTHER_MODELS = {
    "falcon": ("Falcon", {}),
    "falcon, alibi": ("Falcon", {"alibi": True, "multi_query": False}),
    "gpt2": ("GPT2", {}),
    "gpt_neo, local and global": (
        "GPTNeo",
        {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    ),
    "gpt_neox": ("GPTNeoX", {"intermediate_size": 24}),
    "gpt_bigcode": ("GPTBigCode", {}),
    "gptj": ("GPTJ", {"rotary_dim": 4}),
    "codegen": ("CodeGen", {"num_attention_heads": 4, "rotary_dim": 4, "n_ctx": 32}),
    "opt": ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "bloom": ("Bloom", {}),
    "mpt": ("Mpt", {}),
    "persimmon": ("Persimmon", {"intermediate_size": 24}),
    "ctrl": ("CTRL", {"dff": 24}),
    "biogpt": ("BioGpt", {"intermediate_size": 24}),
}

enter_all(__name__, GATED_MODELS, GATED, causal)
enter_all(__name__, OTHER_MODELS, SMALL, causal)
