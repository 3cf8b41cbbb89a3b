"""Language models with a state carried along the sequence, alone or mixed with attention."""

from zoo.decoders import GATED, SMALL, causal, enter_all

SCAN = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 4,
}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}

enter_all(
    __name__,
    {
        "mamba": ("Mamba", {"state_size": 4}),
        "mamba2": (
            "Mamba2",
            {"state_size": 8, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
        ),
        "falcon_mamba": ("FalconMamba", {"state_size": 4}),
        "rwkv": ("Rwkv", {"attention_hidden_size": 16, "intermediate_size": 24}),
        "xlstm": (
            "xLSTM",
            {"num_heads": 2, "chunk_size": 4, "mode": "train", "max_position_embeddings": 32},
        ),
        "recurrent_gemma": (
            "RecurrentGemma",
            {"intermediate_size": 24, "lru_width": 16, "attention_window_size": 4},
        ),
    },
    SMALL,
    causal,
)
enter_all(
    __name__,
    {
        "jamba": (
            "Jamba",
            {
                "mamba_d_state": 4,
                "mamba_dt_rank": 4,
                "num_experts": 4,
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
            },
        ),
        "zamba": (
            "Zamba",
            {
                "mamba_d_state": 4,
                "mamba_dt_rank": 4,
                "layers_block_type": ["mamba", "hybrid"] * 2,
                "num_key_value_heads": 2,
            },
        ),
        "zamba2": (
            "Zamba2",
            {
                "mamba_d_state": 8,
                "n_mamba_heads": 4,
                "chunk_size": 4,
                "adapter_rank": 4,
                "layers_block_type": ["mamba", "hybrid"] * 2,
                "num_key_value_heads": 2,
            },
        ),
        "bamba": ("Bamba", {**SCAN, "attn_layer_indices": [1, 3]}),
        "falcon_h1": ("FalconH1", {**SCAN, "mamba_d_ssm": 32, "head_dim": 8}),
        "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
        "lfm2_moe": (
            "Lfm2Moe",
            {
                "layer_types": ["conv", "full_attention"] * 2,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 12,
                "num_dense_layers": 1,
            },
        ),
        "qwen3_next": (
            "Qwen3Next",
            {
                **LINEAR,
                "layer_types": ["linear_attention", "full_attention"] * 2,
                "head_dim": 8,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 12,
                "shared_expert_intermediate_size": 12,
            },
        ),
        "qwen3_5 text": (
            "Qwen3_5Text",
            {**LINEAR, "layer_types": ["linear_attention", "full_attention"] * 2, "head_dim": 8},
        ),
        "nemotron_h": (
            "NemotronH",
            {
                "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
                "mamba_num_heads": 4,
                "mamba_head_dim": 8,
                "ssm_state_size": 8,
                "n_groups": 1,
                "chunk_size": 4,
                "head_dim": 8,
            },
        ),
        "granitemoehybrid": (
            "GraniteMoeHybrid",
            {
                **SCAN,
                "layer_types": ["mamba", "attention"] * 2,
                "num_local_experts": 4,
                "shared_intermediate_size": 12,
            },
        ),
        "kimi_linear": (
            "KimiLinear",
            {
                "layer_types": ["linear_attention", "full_attention"] * 2,
                "linear_head_dim": 8,
                "linear_num_heads": 2,
                "num_key_value_heads": 2,
                "kv_lora_rank": 8,
                "qk_rope_head_dim": 4,
                "v_head_dim": 8,
                "qk_nope_head_dim": 8,
                "moe_intermediate_size": 12,
                "num_experts_per_tok": 2,
                "num_local_experts": 4,
            },
        ),
        "olmo_hybrid": (
            "OlmoHybrid",
            {**LINEAR, "layer_types": ["linear_attention", "full_attention"] * 2},
        ),
    },
    GATED,
    causal,
)
