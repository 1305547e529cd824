"""The built-in table: configurations of well-known models, which so need no network. Imports no torch.

The values are those of the models' published config.json files, under the keys that transformers reads. Token ids,
dropouts and initialisation are left out, since no latency depends on them.
"""

import copy
import difflib
from collections.abc import Callable
from typing import Any

_LLAMA_3_1: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}

_LLAMA_3_1_8B: dict[str, Any] = {
    **_LLAMA_3_1,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}

_LLAMA_3_1_70B: dict[str, Any] = {
    **_LLAMA_3_1,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}

_OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": 50272,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "dtype": "float16",
}

_QWEN3: dict[str, Any] = {
    "vocab_size": 151936,
    "head_dim": 128,
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}

_QWEN3_DENSE: dict[str, Any] = {
    **_QWEN3,
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
}

_QWEN3_30B_A3B: dict[str, Any] = {
    **_QWEN3,
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
}

MODELS: dict[str, dict[str, Any]] = {
    # a model of this project for demonstrations and tests: ids without an owner are in this table only
    "tiny-llama": {
        "model_type": "llama",
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "dtype": "float32",
    },
    "meta-llama/Llama-3.1-8B": _LLAMA_3_1_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_3_1_8B,
    "meta-llama/Llama-3.1-70B": _LLAMA_3_1_70B,
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA_3_1_70B,
    "facebook/opt-125m": {
        **_OPT,
        "hidden_size": 768,
        "word_embed_proj_dim": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "facebook/opt-6.7b": {
        **_OPT,
        "hidden_size": 4096,
        "word_embed_proj_dim": 4096,
        "ffn_dim": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "microsoft/Phi-mini-MoE-instruct": {
        "model_type": "phimoe",
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 960,
        "num_local_experts": 16,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "attention_bias": True,
        "lm_head_bias": True,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "mistralai/Mixtral-8x7B-v0.1": {
        "model_type": "mixtral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "Qwen/Qwen3-8B": {
        **_QWEN3_DENSE,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    "Qwen/Qwen3-32B": {
        **_QWEN3_DENSE,
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
    },
    "Qwen/Qwen3-30B-A3B": _QWEN3_30B_A3B,
    "Qwen/Qwen3-30B-A3B-Instruct-2507": {
        **_QWEN3_30B_A3B,
        "max_position_embeddings": 262144,
        "rope_theta": 10000000.0,
    },
    "Qwen/Qwen3-Next-80B-A3B-Instruct": {
        **_QWEN3,
        "model_type": "qwen3_next",
        "hidden_size": 2048,
        "intermediate_size": 5120,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "partial_rotary_factor": 0.25,
        "max_position_embeddings": 262144,
        "rope_theta": 10000000.0,
    },
    # the language model of a checkpoint that can look at images, too
    "google/gemma-3-12b-it": {
        "model_type": "gemma3_text",
        "vocab_size": 262208,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    },
    "openai/gpt-oss-20b": {
        "model_type": "gpt_oss",
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "attention_bias": True,
        "sliding_window": 128,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "rope_theta": 150000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "deepseek-ai/DeepSeek-V3": {
        "model_type": "deepseek_v3",
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 163840,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
        },
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    # the language model of a checkpoint that can look at images, too
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": {
        "model_type": "llama4_text",
        "vocab_size": 202048,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "use_qk_norm": True,
        "attention_chunk_size": 8192,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 10485760,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "microsoft/phi-4": {
        "model_type": "phi3",
        "vocab_size": 100352,
        "hidden_size": 5120,
        "intermediate_size": 17920,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 16384,
        "rope_theta": 250000.0,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "tiiuae/falcon-mamba-7b": {
        "model_type": "falcon_mamba",
        "vocab_size": 65024,
        "hidden_size": 4096,
        "intermediate_size": 8192,
        "state_size": 16,
        "time_step_rank": 256,
        "conv_kernel": 4,
        "num_hidden_layers": 64,
        "layer_norm_epsilon": 1e-5,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
}


def find(name: str) -> tuple[str, dict[str, Any]] | None:
    """The id of a model in the table and a copy of its config; None if it is not there.

    name: an id, in any case, or the part of one behind the owner (`llama-3.1-8b`). A name with another owner is not
    found, since it means another model.
    """
    spellings: list[tuple[Callable[[str], str], str]] = [
        (str, name),
        (str.casefold, name.casefold()),
        (_last_part, name.casefold()),
    ]
    for spelling, asked in spellings:
        for model_id, config in MODELS.items():
            if spelling(model_id) == asked:
                return model_id, copy.deepcopy(config)
    return None


def near_names(name: str, n: int = 3) -> list[str]:
    """Up to `n` ids of the table with a spelling similar to `name`, the most similar first."""
    ids = {spelling: model_id for model_id in MODELS for spelling in (_last_part(model_id), model_id.casefold())}
    whole, last = name.casefold(), _last_part(name)
    near = [spelling for spelling in ids if last and spelling.startswith(last)]
    near += [spelling for word in (whole, last) for spelling in difflib.get_close_matches(word, ids, n)]
    return list(dict.fromkeys(ids[spelling] for spelling in near))[:n]


def _last_part(model_id: str) -> str:
    return model_id.rpartition("/")[2].casefold()
