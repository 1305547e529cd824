"""How much memory a model with few blocks takes, worked out from its config. Imports no torch.

Parameter counts are exact for the model types below. For any other type, for quantised weights, and for a config that
lacks a field that its type needs, the answer is None: unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_profile.quantisation import quantisation_fields


@dataclass(frozen=True)
class Architecture:
    """What the parameters of a model type depend on, beyond what all types share.

    Strings are names of config fields. norm_vectors: 1 for RMSNorm, 2 for LayerNorm (scale and bias). norm_affine:
    whether they are there. mlp_matrices: 3 with a gate, 2 without. attention_bias: on queries, keys and values.
    qk_norm: one norm of head_dim each on queries and keys. dense_layers: lists the blocks whose MLP is no mixture
    (decoder_sparse_step makes more of them). extra_positions: rows of a learned position table beyond
    max_position_embeddings, None for rotary positions. defaults: what transformers takes for a field that a config
    leaves out (None for a size: the one that it is derived from).
    """

    norm_vectors: int = 1
    norm_affine: str | bool = True
    final_norm: str | bool = True
    mlp_matrices: int = 3
    attention_bias: str | bool = False
    output_bias: str | bool = False
    mlp_bias: str | bool = False
    head_bias: str | bool = False
    intermediate: str = "intermediate_size"
    experts: str | None = None
    expert_intermediate: str = "intermediate_size"
    dense_layers: str | None = None
    embedding_width: str = "hidden_size"
    qk_norm: bool = False
    extra_positions: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        attention_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        defaults={"num_key_value_heads": None, "attention_bias": False, "mlp_bias": False},
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
    "phimoe": Architecture(
        norm_vectors=2,
        attention_bias="attention_bias",
        output_bias="attention_bias",
        head_bias="lm_head_bias",
        experts="num_local_experts",
        defaults={"attention_bias": False, "lm_head_bias": False},
    ),
    "qwen2": Architecture(attention_bias=True),
    "qwen3": Architecture(
        attention_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        defaults={"attention_bias": False, "head_dim": 128},
    ),
    "qwen3_moe": Architecture(
        attention_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        experts="num_experts",
        expert_intermediate="moe_intermediate_size",
        dense_layers="mlp_only_layers",
        defaults={"attention_bias": False, "mlp_only_layers": (), "decoder_sparse_step": 1},
    ),
}

DEFAULTS: dict[str, Any] = {"head_dim": None, "tie_word_embeddings": False}
"""Defaults that most types share; a type's own come first."""


def parameter_count(config: Mapping[str, Any], num_layers: int) -> int | None:
    """Parameters of the model with its first `num_layers` blocks: embedding, blocks, final norm, head.

    A head tied to the embedding counts once. None: unknown.
    """
    try:
        return _parameters(_Dimensions(config), num_layers)
    except _Unknown:
        return None


def memory_bytes(
    config: Mapping[str, Any], num_layers: int, dtype_bytes: int, max_len: int, copies: int = 1
) -> int | None:
    """Device memory for passes of up to `max_len` tokens at batch 1: weights, KV cache, activations. None: unknown.

    copies: places in memory where the activations of a pass lie (one for each of its graphs, and one for eager passes).

    Activations are an estimate: the logits of all tokens twice (the head's output and a copy), and per token the
    residual stream, queries, keys, values and the widest part of the MLP. Attention scores are taken as never stored.
    """
    try:
        dimensions = _Dimensions(config)
        values = _parameters(dimensions, num_layers)
        values += 2 * num_layers * dimensions.keys * max_len
        values += copies * max_len * _activations_per_token(dimensions)
    except _Unknown:
        return None
    return dtype_bytes * values


class _Unknown(Exception):
    """The config does not say."""


class _Dimensions:
    """A config read with its type's defaults. queries, keys: widths of these projections."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        model_type = config.get("model_type")
        if model_type not in ARCHITECTURES or quantisation_fields(config) is not None:
            raise _Unknown
        self._config = config
        self.architecture = ARCHITECTURES[model_type]
        heads = self.size("num_attention_heads")
        self.hidden = self.size("hidden_size")
        self.head_dim = self.size("head_dim", self.hidden // heads)
        self.queries = heads * self.head_dim
        self.keys = self.size("num_key_value_heads", heads) * self.head_dim
        self.embedding = self.size(self.architecture.embedding_width, self.hidden)

    def value(self, name: str) -> Any:
        """A field of the config, else its default. Raises _Unknown if it has none."""
        for known in (self._config, self.architecture.defaults, DEFAULTS):
            if name in known:
                return known[name]
        raise _Unknown

    def size(self, name: str, derived: int | None = None) -> int:
        """A field that holds a size; `derived` is taken where it holds None."""
        value = derived if self.value(name) is None else self.value(name)
        if not isinstance(value, int):
            raise _Unknown
        return value

    def says(self, answer: str | bool) -> bool:
        """A yes or no of the architecture: its own, or the config's field of that name."""
        return bool(self.value(answer)) if isinstance(answer, str) else answer

    def has_experts(self, layer: int) -> bool:
        """Whether the MLP of this block is a mixture of experts."""
        if self.architecture.experts is None:
            return False
        if self.architecture.dense_layers is None:
            return True
        in_step = (layer + 1) % self.size("decoder_sparse_step") == 0
        return in_step and layer not in self.value(self.architecture.dense_layers)


def _parameters(dimensions: _Dimensions, num_layers: int) -> int:
    architecture, hidden = dimensions.architecture, dimensions.hidden
    table = dimensions.size("vocab_size") * dimensions.embedding
    total = table if dimensions.says("tie_word_embeddings") else 2 * table
    if dimensions.embedding != hidden:  # projected into the blocks' width and out of it
        total += 2 * dimensions.embedding * hidden
    if architecture.extra_positions is not None:
        total += (dimensions.size("max_position_embeddings") + architecture.extra_positions) * hidden
    if dimensions.says(architecture.final_norm):
        total += _norm(dimensions)
    if dimensions.says(architecture.head_bias):
        total += dimensions.size("vocab_size")
    return total + sum(
        _attention(dimensions) + _mlp(dimensions, layer) + 2 * _norm(dimensions) for layer in range(num_layers)
    )


def _norm(dimensions: _Dimensions) -> int:
    architecture = dimensions.architecture
    return architecture.norm_vectors * dimensions.hidden if dimensions.says(architecture.norm_affine) else 0


def _attention(dimensions: _Dimensions) -> int:
    architecture, hidden = dimensions.architecture, dimensions.hidden
    projected = dimensions.queries + 2 * dimensions.keys
    total = projected * hidden + dimensions.queries * hidden
    if dimensions.says(architecture.attention_bias):
        total += projected
    if dimensions.says(architecture.output_bias):
        total += hidden
    if architecture.qk_norm:
        total += 2 * dimensions.head_dim
    return total


def _mlp(dimensions: _Dimensions, layer: int) -> int:
    architecture, hidden = dimensions.architecture, dimensions.hidden
    if architecture.experts is not None and dimensions.has_experts(layer):
        experts = dimensions.size(architecture.experts)
        matrix = dimensions.size(architecture.expert_intermediate) * hidden
        return experts * (architecture.mlp_matrices * matrix + hidden)  # and one router row each
    intermediate = dimensions.size(architecture.intermediate)
    total = architecture.mlp_matrices * intermediate * hidden
    if dimensions.says(architecture.mlp_bias):
        total += (architecture.mlp_matrices - 1) * intermediate + hidden
    return total


def _activations_per_token(dimensions: _Dimensions) -> int:
    architecture, hidden = dimensions.architecture, dimensions.hidden
    mlp = architecture.mlp_matrices * dimensions.size(architecture.intermediate)
    if architecture.experts is not None:
        # each chosen expert has a copy of the token and an output of its own
        expert = architecture.mlp_matrices * dimensions.size(architecture.expert_intermediate) + 2 * hidden
        mlp = max(mlp, dimensions.size("num_experts_per_tok") * expert)
    attention = 2 * (dimensions.queries + 2 * dimensions.keys)
    return 2 * dimensions.size("vocab_size") + 4 * hidden + max(attention, mlp)
