"""Encoder-decoders: a text is read whole, another is written after it. Caches stay as they come."""

import torch
import transformers

from zoo.catalogue import ROWS, Sample, animal

VOCAB = 32
SEQ = 8
TARGETS = 6


def translation(model, *, seq=SEQ, **extra):
    """A batch of padded sources, and labels of padded targets; the model computes its own loss."""
    ids = torch.randint(3, VOCAB, (ROWS, seq))
    mask = torch.ones_like(ids)
    mask[1::2, seq - 2 :] = 0
    labels = torch.randint(3, VOCAB, (ROWS, TARGETS))
    labels[::2, TARGETS - 1 :] = -100
    batch = {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": labels}
    return Sample(model, batch | extra)


def t5_like(family, **extra):
    """A model of the T5 family: relative positions, encoder and decoder of two blocks each."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        **extra,
    )
    return translation(getattr(transformers, f"{family}ForConditionalGeneration")(config))


def bart_like(family, head="ForConditionalGeneration", seq=SEQ, **extra):
    """A model of the BART family: learned or sinusoidal positions, two blocks each."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCAB,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        **{
            "max_position_embeddings": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": None,
            **extra,
        },
    )
    return translation(getattr(transformers, family + head)(config), seq=seq)


@animal("t5")
def t5():
    return t5_like("T5")


@animal("t5 gated")
def t5_gated():
    return t5_like("T5", feed_forward_proj="gated-gelu", tie_word_embeddings=False)


@animal("mt5")
def mt5():
    return t5_like("MT5")


@animal("umt5")
def umt5():
    return t5_like("UMT5")


@animal("longt5")
def longt5():
    return t5_like("LongT5", local_radius=3)


@animal("longt5 transient global")
def longt5_global():
    return t5_like(
        "LongT5", local_radius=3, global_block_size=4, encoder_attention_type="transient-global"
    )


@animal("switch_transformers")
def switch_transformers():
    return t5_like(
        "SwitchTransformers",
        num_decoder_layers=2,
        num_experts=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        expert_capacity=8,
    )


@animal("bart")
def bart():
    return bart_like("Bart")


@animal("mbart")
def mbart():
    return bart_like("MBart")


@animal("plbart")
def plbart():
    return bart_like("PLBart")


@animal("pegasus")
def pegasus():
    return bart_like("Pegasus")


@animal("pegasus_x")
def pegasus_x():
    return bart_like("PegasusX", block_size=4, num_global_tokens=2)


@animal("bigbird_pegasus")
def bigbird_pegasus():
    """Of as many words as its sparse attention needs; for fewer it changes its own modules."""
    return bart_like("BigBirdPegasus", seq=24, block_size=2, num_random_blocks=1)


@animal("marian")
def marian():
    return bart_like("Marian", head="MTModel", decoder_start_token_id=0)


@animal("blenderbot")
def blenderbot():
    return bart_like("Blenderbot")


@animal("blenderbot_small")
def blenderbot_small():
    return bart_like("BlenderbotSmall")


@animal("m2m_100")
def m2m_100():
    return bart_like("M2M100")


@animal("nllb_moe")
def nllb_moe():
    return bart_like("NllbMoe", num_experts=2, encoder_sparse_step=2, decoder_sparse_step=2)


@animal("led")
def led():
    return bart_like(
        "LED",
        attention_window=4,
        max_encoder_position_embeddings=32,
        max_decoder_position_embeddings=32,
    )


@animal("prophetnet")
def prophetnet():
    config = transformers.ProphetNetConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_encoder_attention_heads=2,
        num_decoder_attention_heads=2,
        max_position_embeddings=32,
    )
    made = translation(transformers.ProphetNetForConditionalGeneration(config))
    del made.batch["attention_mask"]  # with one, the plain model gives nan in float64
    return made


@animal("bert2bert")
def bert2bert():
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        config, config, decoder_start_token_id=1, pad_token_id=0
    )
    return translation(transformers.EncoderDecoderModel(config=both))
