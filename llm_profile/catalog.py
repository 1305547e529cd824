"""The built-in table: dimensions of well-known models, so that they can be profiled with no network. Imports no torch.

The dimensions are those of the models' published config.json files; the keys are the ones that transformers reads.
Token ids, dropouts and initialisation are left out: no latency depends on them.
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
    # ours, for demonstrations and tests: an id without an owner is in this table only
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
}


def find(name: str) -> tuple[str, dict[str, Any]] | None:
    """The table's id for `name` and a copy of its config: as written, else in any case, else by its last part.

    Only a name without an owner is looked up by its last part: another owner's model is another model.
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
    """Up to `n` ids of the table that look like `name`, the nearest first; empty if none does."""
    ids = {spelling: model_id for model_id in MODELS for spelling in (_last_part(model_id), model_id.casefold())}
    whole, last = name.casefold(), _last_part(name)
    near = [spelling for spelling in ids if last and spelling.startswith(last)]
    near += [spelling for word in (whole, last) for spelling in difflib.get_close_matches(word, ids, n)]
    return list(dict.fromkeys(ids[spelling] for spelling in near))[:n]


def _last_part(model_id: str) -> str:
    return model_id.rpartition("/")[2].casefold()
