"""Language models with experts: a router sends each token to a few of several networks."""

from zoo.decoders import GATED, SMALL, causal, enter_all

FEW = {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {**GATED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
LATENT = {
    **SMALL,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 2,
    "topk_group": 1,
}

enter_all(
    __name__,
    {
        "mixtral": ("Mixtral", {}),
        "granitemoe": ("GraniteMoe", {}),
        "granitemoeshared": ("GraniteMoeShared", {"shared_intermediate_size": 12}),
        "phimoe": ("Phimoe", {}),
        "gpt_oss": ("GptOss", {"head_dim": 8, "sliding_window": 4}),
        "llama4 text": (
            "Llama4Text",
            {"head_dim": 8, "num_experts_per_tok": 1, "intermediate_size_mlp": 24},
        ),
        "minimax": ("MiniMax", {"block_size": 4}),
        "jetmoe": ("JetMoe", {"kv_channels": 8}),
    },
    FEW,
    causal,
)
enter_all(
    __name__,
    {
        "qwen2_moe": ("Qwen2Moe", {"shared_expert_intermediate_size": 12}),
        "qwen3_moe": ("Qwen3Moe", {"head_dim": 8}),
        "olmoe": ("Olmoe", {}),
        "ernie4_5_moe": ("Ernie4_5_Moe", {"moe_num_experts": 4, "moe_k": 2}),
        "glm4_moe": ("Glm4Moe", {"head_dim": 8, "n_routed_experts": 4}),
        "dots1": (
            "Dots1",
            {
                "head_dim": 8,
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                "first_k_dense_replace": 1,
            },
        ),
    },
    ROUTED,
    causal,
)
enter_all(
    __name__,
    {
        "deepseek_v2": ("DeepseekV2", {"n_shared_experts": 1}),
        "deepseek_v3": ("DeepseekV3", {}),
        "longcat_flash": (
            "LongcatFlash",
            {
                "num_layers": 4,
                "head_dim": 4,
                "ffn_hidden_size": 24,
                "expert_ffn_hidden_size": 12,
                "moe_topk": 2,
                "zero_expert_num": 2,
            },
        ),
    },
    LATENT,
    causal,
)
enter_all(
    __name__,
    {
        "dbrx": (
            "Dbrx",
            {
                "d_model": 16,
                "attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8.0},
                "ffn_config": {
                    "hidden_size": 16,
                    "ffn_hidden_size": 24,
                    "moe_num_experts": 4,
                    "moe_top_k": 2,
                },
            },
        ),
    },
    SMALL,
    causal,
)


def balanced(stem, options):
    """Its loss has a part that each router adds to, in the middle of the model."""
    return causal(stem, {**options, "output_router_logits": True, "router_aux_loss_coef": 0.1})


enter_all(
    __name__,
    {
        "mixtral, load balancing": ("Mixtral", {}),
        "granitemoe, load balancing": ("GraniteMoe", {}),
        "gpt_oss, load balancing": ("GptOss", {"head_dim": 8, "sliding_window": 4}),
    },
    FEW,
    balanced,
)
enter_all(
    __name__,
    {
        "qwen2_moe, load balancing": ("Qwen2Moe", {"shared_expert_intermediate_size": 12}),
        "qwen3_moe, load balancing": ("Qwen3Moe", {"head_dim": 8}),
        "olmoe, load balancing": ("Olmoe", {}),
    },
    ROUTED,
    balanced,
)
