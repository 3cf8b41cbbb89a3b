"""Encoders of text: every position attends to every other."""

import torch
import transformers

from zoo.catalogue import ROWS, Sample
from zoo.decoders import SMALL, VOCAB, enter_all

BERT = {**SMALL, "intermediate_size": 24}
FUNNEL = {
    "vocab_size": VOCAB,
    "block_sizes": [2, 2],
    "d_model": 16,
    "n_head": 2,
    "d_head": 8,
    "d_inner": 24,
    "pad_token_id": 0,
}
XLNET = {"vocab_size": VOCAB, "n_layer": 4, "d_model": 16, "n_head": 2, "d_inner": 24}
SEQ = 8


def padded(seq=SEQ):
    """Token numbers, and which of them are there."""
    ids = torch.randint(3, VOCAB, (ROWS, seq))
    mask = torch.ones_like(ids)
    mask[1::2, seq - 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def num_labels(batch):
    """What these losses are means over."""
    return int((batch["labels"] != -100).sum())


def built(stem, head, options):
    """A model by the stem of its classes' names and what it is for."""
    configuration = getattr(transformers, f"{stem}Config")(**options)
    return getattr(transformers, f"{stem}For{head}")(configuration)


def masked(stem, options):
    """Some tokens are to be guessed."""
    model, batch = built(stem, "MaskedLM", options), padded()
    labels = batch["input_ids"].masked_fill(torch.rand(ROWS, SEQ) < 0.6, -100)
    labels[:, 0] = batch["input_ids"][:, 0]
    return Sample(model, {**batch, "labels": labels})


def classes(stem, options):
    """One of three classes per row."""
    model = built(stem, "SequenceClassification", {**options, "num_labels": 3})
    return Sample(model, {**padded(), "labels": torch.randint(3, (ROWS,))})


def tokens(stem, options):
    """One of three classes per token."""
    model, batch = built(stem, "TokenClassification", {**options, "num_labels": 3}), padded()
    labels = torch.randint(3, (ROWS, SEQ)).masked_fill(batch["attention_mask"] == 0, -100)
    return Sample(model, {**batch, "labels": labels})


def span(stem, options, head="QuestionAnswering"):
    """Two targets: where the answer starts and where it ends."""
    starts, ends = torch.randint(3, (ROWS,)), torch.randint(3, 6, (ROWS,))
    batch = {**padded(), "start_positions": starts, "end_positions": ends}
    return Sample(built(stem, head, options), batch)


def span_simple(stem, options):
    """The same, with nothing but the two."""
    return span(stem, options, head="QuestionAnsweringSimple")


enter_all(
    __name__,
    {
        "bert, masked": ("Bert", {}),
        "roberta, masked": ("Roberta", {"max_position_embeddings": 40}),
        "distilbert, masked": ("DistilBert", {"hidden_dim": 24}),
        "albert, masked": ("Albert", {"embedding_size": 8}),
        "electra, masked": ("Electra", {"embedding_size": 8}),
        "deberta, masked": (
            "Deberta",
            {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        ),
        "deberta_v2, masked": (
            "DebertaV2",
            {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4},
        ),
        "mpnet, masked": ("MPNet", {"max_position_embeddings": 40}),
        "longformer, masked": (
            "Longformer",
            {"attention_window": 4, "max_position_embeddings": 40, "pad_token_id": 1},
        ),
        "big_bird, masked": ("BigBird", {"attention_type": "original_full"}),
        "modernbert, masked": (
            "ModernBert",
            {"layer_types": ["sliding_attention", "full_attention"] * 2, "local_attention": 4},
        ),
        "convbert, masked": ("ConvBert", {"embedding_size": 8, "conv_kernel_size": 3}),
        "mobilebert, masked": (
            "MobileBert",
            {"hidden_size": 32, "embedding_size": 16, "intra_bottleneck_size": 16},
        ),
        "fnet, masked": ("FNet", {}),
        "roformer, masked": ("RoFormer", {}),
        "nystromformer, masked": (
            "Nystromformer",
            {"segment_means_seq_len": 8, "num_landmarks": 8, "conv_kernel_size": 3},
        ),
        "squeezebert, masked": ("SqueezeBert", {"embedding_size": 16, "hidden_size": 16}),
        "ibert, masked": ("IBert", {"max_position_embeddings": 40}),
        "esm, masked": ("Esm", {"mask_token_id": 3, "position_embedding_type": "rotary"}),
        "rembert, masked": ("RemBert", {"input_embedding_size": 8, "output_embedding_size": 8}),
    },
    BERT,
    masked,
    options={"count": num_labels},
)
enter_all(
    __name__,
    {
        "bert, classes": ("Bert", {}),
        "roberta, classes": ("Roberta", {"max_position_embeddings": 40}),
        "gpt2, classes": ("GPT2", {}),
        "llama, classes": ("Llama", {}),
        "modernbert, classes": ("ModernBert", {"local_attention": 4}),
    },
    BERT,
    classes,
)
enter_all(
    __name__,
    {
        "bert, tokens": ("Bert", {}),
        "electra, tokens": ("Electra", {"embedding_size": 8}),
    },
    BERT,
    tokens,
    options={"count": num_labels},
)
enter_all(
    __name__,
    {
        "bert, two targets": ("Bert", {}),
        "distilbert, two targets": ("DistilBert", {"hidden_dim": 24}),
    },
    BERT,
    span,
)
enter_all(
    __name__,
    {"funnel, masked": ("Funnel", {})},
    FUNNEL,
    masked,
    options={"count": num_labels},
)
enter_all(__name__, {"funnel, classes": ("Funnel", {})}, FUNNEL, classes)
enter_all(__name__, {"xlnet, classes": ("XLNet", {})}, XLNET, classes)
enter_all(__name__, {"xlnet, two targets": ("XLNet", {})}, XLNET, span_simple)
