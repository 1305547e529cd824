"""The model types whose parameters can be counted from a config.json, and how each differs. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """How the parameters of a model type differ from those of other types.

    A string is the name of a config field that holds the value; any other value is the value itself.

    norm_vectors: vectors per norm, 1 for RMSNorm, 2 for LayerNorm (scale and bias).
    norm_affine: whether norms have these vectors at all.
    final_norm: whether there is a norm behind the blocks.
    block_norms: number of norms per block, without those inside the attention.
    mlp_matrices: matrices per MLP, 3 with a gate, 2 without.
    attention_bias: whether the projections to queries, keys and values have biases.
    output_bias, mlp_bias, head_bias: the same for the attention's output, the MLP and the head.
    intermediate, expert_intermediate: width inside the MLP and inside an expert.
    experts: number of experts of a mixture; None for types without any.
    expert_bias: whether the experts' matrices and the router have biases.
    shared_experts: number of experts that compute every token.
    experts_per_token: number of experts that each token's activations are copied to.
    dense_layers: list of the blocks whose MLP is no mixture of experts.
    dense_first: number of blocks at the start whose MLP is no mixture.
    sparse_layers: list of the blocks with a mixture.
    sparse_step: n, where every n-th block has a mixture.
    full_attention_step: n, where every n-th block attends to all tokens and the others do not. Used if no list of
        LAYER_LISTS is set; None where all blocks attend alike.
    undecided: field that makes blocks differ in a way that is not modelled here, if it is set and no list is.
    embedding_width: width of the embedding.
    qk_norm: whether queries and keys each have a norm of width head_dim.
    latent: whether keys and values are projected from one latent vector, which is what the cache holds.
    sinks: whether each attention head has a sink, one parameter more.
    scores: number of matrices of attention scores that a pass holds at once, where no fused kernel can compute them.
    extra_positions: rows of a learned position table beyond max_position_embeddings; None without such a table.
    defaults: value that transformers takes for a field that a config leaves out. None for a size means that it is
        derived from other sizes.
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
        scores=3,  # the scores, the scores with the sinks appended, and the result of the softmax
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
"""Defaults that most types share. Those of `Architecture.defaults` override them."""


LAYER_LISTS = ("layer_types", "no_rope_layers")
"""Config fields of any type with one entry per block, in which blocks of different kinds differ."""
