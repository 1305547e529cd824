"""What the number of parameters depends on, of each model type that it is known for. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """What the parameters of a model type depend on, beyond what all types share.

    Strings are names of config fields, numbers the values themselves.
    norm_vectors: 1 for RMSNorm, 2 for LayerNorm (scale and bias). norm_affine: whether they are there. block_norms: how
    many a block has, those within its attention apart. mlp_matrices: 3 with a gate, 2 without. attention_bias: on
    queries, keys and values. qk_norm: one norm of head_dim each on queries and keys. latent: keys and values are
    projected from one latent vector, which is what the cache holds. sinks: a logit more per head. scores: matrices of
    attention scores that a pass holds at once, where no fused kernel can compute them.
    experts: how many there are in a mixture. expert_bias: on their matrices and the router. shared_experts: those that
    see every token. experts_per_token: those that each token's activations are copied to.
    dense_layers: lists the blocks whose MLP is no mixture; dense_first: so many at the start; sparse_layers: lists the
    others; sparse_step: every so many-th is one.
    full_attention_step: every so many-th block attends to all tokens, if no list of LAYER_LISTS says which; None where
    all are alike. undecided: fields that tell blocks apart in ways not known here, if they are set and no list is.
    extra_positions: rows of a learned position table beyond max_position_embeddings, None for rotary positions.
    defaults: what transformers takes for a field that a config leaves out (None for a size: the one that it is derived
    from).
    """

    norm_vectors: int = 1
    norm_affine: str | bool = True
    final_norm: str | bool = True
    block_norms: int = 2
    mlp_matrices: int = 3
    attention_bias: str | bool = False
    output_bias: str | bool = False
    mlp_bias: str | bool = False
    head_bias: str | bool = False
    intermediate: str = "intermediate_size"
    experts: str | None = None
    expert_intermediate: str = "intermediate_size"
    expert_bias: bool = False
    shared_experts: str | int = 0
    experts_per_token: str = "num_experts_per_tok"
    dense_layers: str | None = None
    dense_first: str | None = None
    sparse_layers: str | None = None
    sparse_step: str | None = None
    full_attention_step: str | int | None = None
    undecided: str | None = None
    embedding_width: str = "hidden_size"
    qk_norm: bool = False
    latent: bool = False
    sinks: bool = False
    scores: int = 0
    extra_positions: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])


ARCHITECTURES: dict[str, Architecture] = {
    "deepseek_v3": Architecture(
        attention_bias="attention_bias",
        output_bias="attention_bias",
        latent=True,
        experts="n_routed_experts",
        expert_intermediate="moe_intermediate_size",
        shared_experts="n_shared_experts",
        dense_first="first_k_dense_replace",
        defaults={"attention_bias": False, "q_lora_rank": 1536, "n_shared_experts": 1, "first_k_dense_replace": 3},
    ),
    "gemma3_text": Architecture(
        block_norms=4,
        attention_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        full_attention_step="sliding_window_pattern",
        defaults={
            "attention_bias": False,
            "head_dim": 256,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_oss": Architecture(
        attention_bias="attention_bias",
        output_bias="attention_bias",
        sinks=True,
        scores=3,  # with the sinks beside them, and after the softmax
        experts="num_local_experts",
        expert_bias=True,
        full_attention_step=2,
        defaults={"attention_bias": True, "head_dim": 64},
    ),
    "llama": Architecture(
        attention_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        defaults={"num_key_value_heads": None, "attention_bias": False, "mlp_bias": False},
    ),
    "llama4_text": Architecture(
        attention_bias="attention_bias",
        output_bias="attention_bias",
        intermediate="intermediate_size_mlp",
        experts="num_local_experts",
        shared_experts=1,
        experts_per_token="num_local_experts",  # all of them compute every token
        sparse_layers="moe_layers",
        sparse_step="interleave_moe_layer_step",
        full_attention_step="no_rope_layer_interval",
        defaults={
            "attention_bias": False,
            "head_dim": 128,
            "intermediate_size_mlp": 16384,
            "moe_layers": None,
            "interleave_moe_layer_step": 1,
            "no_rope_layer_interval": 4,
        },
    ),
    "mistral": Architecture(),
    "mixtral": Architecture(experts="num_local_experts"),
    "opt": Architecture(
        norm_vectors=2,
        norm_affine="layer_norm_elementwise_affine",
        final_norm="do_layer_norm_before",
        mlp_matrices=2,
        attention_bias="enable_bias",
        output_bias="enable_bias",
        mlp_bias="enable_bias",
        intermediate="ffn_dim",
        embedding_width="word_embed_proj_dim",
        extra_positions=2,
        defaults={
            "num_key_value_heads": None,
            "word_embed_proj_dim": None,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "do_layer_norm_before": True,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": Architecture(defaults={"num_key_value_heads": None}),
    "phimoe": Architecture(
        norm_vectors=2,
        attention_bias="attention_bias",
        output_bias="attention_bias",
        head_bias="lm_head_bias",
        experts="num_local_experts",
        defaults={"attention_bias": False, "lm_head_bias": False},
    ),
    "qwen2": Architecture(attention_bias=True, undecided="use_sliding_window", defaults={"use_sliding_window": False}),
    "qwen3": Architecture(
        undecided="use_sliding_window",
        attention_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        defaults={"attention_bias": False, "head_dim": 128, "use_sliding_window": False},
    ),
    "qwen3_moe": Architecture(
        attention_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        experts="num_experts",
        expert_intermediate="moe_intermediate_size",
        dense_layers="mlp_only_layers",
        sparse_step="decoder_sparse_step",
        defaults={"attention_bias": False, "mlp_only_layers": (), "decoder_sparse_step": 1},
    ),
}

DEFAULTS: dict[str, Any] = {"head_dim": None, "tie_word_embeddings": False}
"""Defaults that most types share; a type's own come first."""


LAYER_LISTS = ("layer_types", "no_rope_layers")
"""Config fields with an entry a block that tell kinds of blocks apart, whatever the type."""
