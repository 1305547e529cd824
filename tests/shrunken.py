"""A tiny configuration of every type of causal LM: sizes set by the name of their field, and exceptions in a table.

Lists with an entry per block, such as `layer_types`, are left to the configuration class, which derives them from the
number of blocks. Fields that no class derives are in FIELDS.
"""

from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Every model type of AutoModelForCausalLM."""

DEPTH = 6
"""Number of blocks of a tiny model: with six, nearly every type has blocks of all its kinds."""

SIZES: dict[str, int] = {
    # field of a configuration -> its tiny value; types have different names for the same size
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers"), DEPTH),
    **dict.fromkeys(("encoder_layers", "num_decoder_layers", "num_encoder_layers", "num_blocks"), DEPTH),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "dim_model", "dim"), 64),
    **dict.fromkeys(("word_embed_proj_dim", "embedding_dim", "attention_hidden_size", "lru_width"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "v_head_dim", "dim_head", "d_kv", "d_head"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_inner", "decoder_ffn_dim", "encoder_ffn_dim"), 128),
    **dict.fromkeys(("ffn_hidden_size", "dim_ff", "dff", "n_inner", "intermediate_size_mlp", "feed_forward_size"), 128),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k", "top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("vocab_size", "decoder_vocab_size"), 128),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 64),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "max_seq_length"), 64),
    **dict.fromkeys(("sliding_window", "attention_window_size", "attention_chunk_size", "window_size"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "o_lora_rank"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_ssm"), 16),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("index_n_heads", "index_head_dim"), 16),
    "index_topk": 4,
}


LARGEST_TOKEN_ID = SIZES["vocab_size"] - 1


def shrunk(fields: dict[str, Any]) -> dict[str, Any]:
    """Tiny values for the fields of a default configuration that are sizes, and token ids within the vocabulary."""
    tiny: dict[str, Any] = {
        key: SIZES[key]
        for key, value in fields.items()
        if key in SIZES and isinstance(value, int) and not isinstance(value, bool)
    }
    for key, value in fields.items():
        if key.endswith("_token_id") and isinstance(value, int) and value > LARGEST_TOKEN_ID:
            tiny[key] = 1
        elif key == "is_decoder":
            tiny[key] = True
    if "kv_lora_rank" in tiny:  # latent attention has as many heads of keys as of queries
        tiny |= {"num_key_value_heads": SIZES["num_attention_heads"]}
    return tiny


_SPARSE = ["sliding_attention", "full_attention"] * (DEPTH // 2)
_SSM = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_chunk_size": 8}
_MAMBA = ["mamba", "mamba", "attention"] * (DEPTH // 3)

FIELDS: dict[str, dict[str, Any]] = {
    "bamba": {**_SSM, "attn_layer_indices": [2, 5]},
    "blt": {},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {
        "layer_types": _SPARSE,
        "rope_parameters": {
            t: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]} for t in _SPARSE[:2]
        },
    },
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "deepseek_v2": {"num_experts_per_tok": 2, "head_dim": 16, "topk_method": "greedy"},
    "falcon_h1": _SSM,
    "gemma3n_text": {
        "layer_types": _SPARSE,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
    },
    "gemma4_text": {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], DEPTH // 2]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {**_SSM, "layer_types": _MAMBA},
    "hunyuan_v1_dense": {"head_dim": 16, "num_key_value_heads": 2},
    "hunyuan_v1_moe": {"head_dim": 16, "num_key_value_heads": 2},
    "inkling_text": {},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * (DEPTH // 3)},
    "longcat_flash": {"num_layers": DEPTH // 2, "num_hidden_layers": DEPTH},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "ministral": {"head_dim": 16, "layer_types": _SPARSE},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [32, 32], "local_attn_chunk_length": 8},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "attn_layer_period": 3,
        "attn_layer_offset": 2,
        "num_key_value_heads": 4,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "layers_block_type": ["mamba", "mamba", "hybrid"] * (DEPTH // 3),
        "n_mamba_heads": 8,
        "chunk_size": 8,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""Type -> fields that `shrunk` does not set, or sets to values that the type refuses."""


def _music(name: str) -> dict[str, Any]:
    return {
        "model_type": name,
        "text_encoder": {"model_type": "t5"},
        "audio_encoder": {"model_type": "encodec"},
        "decoder": {
            "model_type": f"{name}_decoder",
            **{"hidden_size": 64, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "ffn_dim": 128},
            **{"vocab_size": 128, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 1},
        },
    }


WRITTEN: dict[str, dict[str, Any]] = {
    "dbrx": {
        "model_type": "dbrx",
        **{"d_model": 64, "n_heads": 4, "n_layers": DEPTH, "max_seq_len": 64, "vocab_size": 128},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 8, "moe_top_k": 2, "hidden_size": 64},
    },
    **{name: _music(name) for name in ("musicgen", "musicgen_melody")},
}
"""Type -> its whole config.json, for classes whose `to_json_string` writes what they cannot read."""


def tiny_config(model_type: str) -> Any:
    """A configuration of this type, small enough to build in milliseconds."""
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    fields = shrunk(default.to_dict())
    for name in getattr(config_class, "sub_configs", {}):
        nested = getattr(default, name, None)
        if nested is not None:
            own = FIELDS.get(nested.model_type, {})
            fields[name] = {"model_type": nested.model_type, **shrunk(nested.to_dict()), **own}
    return config_class(**{**fields, **FIELDS.get(model_type, {})})
