"""Tiny models with random weights, which are made in milliseconds."""

from typing import Any

from llm_profile.models.building import ModelOptions
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.subject import Subject

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 128,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **COMMON},
    "opt": {"model_type": "opt", **COMMON, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 32},
    "phimoe": {"model_type": "phimoe", **COMMON, "num_local_experts": 4, "head_dim": 16},
    "mixtral": {"model_type": "mixtral", **COMMON, "num_local_experts": 4},
    "qwen3": {"model_type": "qwen3", **COMMON, "head_dim": 16},
    "gemma3": {
        "model_type": "gemma3_text",
        **COMMON,
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
    "deepseek_v2": {
        "model_type": "deepseek_v2",
        **COMMON,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "head_dim": 16,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "routed_scaling_factor": 1.0,
    },
}


def subject(name: str, num_layers: int = 1, max_total: int = 32, **options: Any) -> Subject:
    """A tiny model on the CPU in float32, ready to run passes of up to `max_total` tokens."""
    model = ModelOptions(num_layers, "cpu", "float32")
    return Subject(SubjectOptions(CONFIGS[name], model, max_total, max_total, **options))
