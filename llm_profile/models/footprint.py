"""How much memory a model with few blocks takes, worked out from its config. Imports no torch.

Parameter counts are exact for the types in the table of architectures. For any other type, for quantised weights, and
for a config that lacks a field that its type needs, the answer is None: unknown. Types with recurrent states are not in
the table: what their scans hold depends on the kernels that are installed.
"""

from collections.abc import Collection, Mapping
from typing import Any

from llm_profile.models.architectures import ARCHITECTURES, DEFAULTS, LAYER_LISTS
from llm_profile.models.quantisation_config import quantisation_fields

MOST_COUNTED_BLOCKS = 10_000
"""Blocks of a model whose memory is worked out: more are typing errors, and counting them would take long."""


def parameter_count(config: Mapping[str, Any], num_layers: int) -> int | None:
    """Parameters of the model with `num_layers` blocks of each kind: embedding, blocks, final norm, head.

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

    num_layers: blocks of each kind. copies: places in memory where the activations of a pass lie (one for each of its
    graphs, and one for eager passes).

    Activations are an estimate: the logits of all tokens twice (the head's output and a copy), and per token the
    residual stream, queries, keys, values and the widest part of the MLP. Attention scores are taken as never stored
    where a fused kernel can compute them. The cache is taken as without windows.
    """
    try:
        dimensions = _Dimensions(config)
        values = _parameters(dimensions, num_layers)
        values += len(dimensions.kept(num_layers)) * dimensions.cached * max_len
        values += copies * max_len * _activations_per_token(dimensions)
        values += copies * max_len**2 * dimensions.architecture.scores * dimensions.heads
    except _Unknown:
        return None
    return dtype_bytes * values


class _Unknown(Exception):
    """The config does not say."""


class _Dimensions:
    """A config read with its type's defaults.

    queries, keys: widths of these projections; values: that of the attention's output. cached: values per token that
    the cache of a block holds.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        model_type = config.get("model_type")
        if model_type not in ARCHITECTURES or quantisation_fields(config) is not None:
            raise _Unknown
        self._config = config
        self.architecture = ARCHITECTURES[model_type]
        self.heads = self.divisor("num_attention_heads")
        self.hidden = self.size("hidden_size")
        self.embedding = self.size(self.architecture.embedding_width, self.hidden)
        if self.architecture.latent:
            self.head_dim = self.size("qk_nope_head_dim") + self.size("qk_rope_head_dim")
            self.queries = self.keys = self.heads * self.head_dim
            self.values = self.heads * self.size("v_head_dim")
            self.cached = self.size("kv_lora_rank") + self.size("qk_rope_head_dim")
        else:
            self.head_dim = self.size("head_dim", self.hidden // self.heads)
            self.queries = self.values = self.heads * self.head_dim
            self.keys = self.size("num_key_value_heads", self.heads) * self.head_dim
            self.cached = 2 * self.keys

    def kept(self, num_layers: int) -> list[int]:
        """The blocks that a run keeps: the first `num_layers` of each kind."""
        depth = self.size("num_hidden_layers")
        if depth > MOST_COUNTED_BLOCKS:
            raise _Unknown
        kinds = list(zip(self._layer_types(depth), map(self.has_experts, range(depth)), strict=True))
        return [layer for layer, kind in enumerate(kinds) if kinds[:layer].count(kind) < num_layers]

    def _layer_types(self, depth: int) -> list[Any]:
        """What tells the attention of each block from that of others."""
        lists = [self._config.get(name) for name in LAYER_LISTS]
        named = [types for types in lists if isinstance(types, list | tuple) and len(types) == depth]
        if named:
            return list(zip(*named, strict=True))
        architecture = self.architecture
        if architecture.undecided is not None and self.value(architecture.undecided):
            raise _Unknown
        if architecture.full_attention_step is None:
            return [True] * depth
        step = self.divisor(architecture.full_attention_step)
        return [(layer + 1) % step == 0 for layer in range(depth)]

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

    def count(self, number: str | int) -> int:
        """A number of the architecture: its own, or the config's field of that name."""
        return self.size(number) if isinstance(number, str) else number

    def divisor(self, number: str | int) -> int:
        """A number of the architecture that something is divided by, so not 0."""
        divisor = self.count(number)
        if not divisor:
            raise _Unknown
        return divisor

    def layers(self, name: str) -> Collection[int]:
        """A field that lists blocks; null lists none."""
        listed = self.value(name)
        if not isinstance(listed, list | tuple | None):
            raise _Unknown
        return listed or ()

    def has_experts(self, layer: int) -> bool:
        """Whether the MLP of this block is a mixture of experts."""
        architecture = self.architecture
        if architecture.experts is None or not self.size(architecture.experts):
            return False
        if architecture.sparse_layers is not None and self.value(architecture.sparse_layers) is not None:
            return layer in self.layers(architecture.sparse_layers)
        if architecture.dense_first is not None and layer < self.size(architecture.dense_first):
            return False
        if architecture.dense_layers is not None and layer in self.layers(architecture.dense_layers):
            return False
        return architecture.sparse_step is None or (layer + 1) % self.divisor(architecture.sparse_step) == 0


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
    every_block = _attention(dimensions) + architecture.block_norms * _norm(dimensions)
    return total + sum(every_block + _mlp(dimensions, layer) for layer in dimensions.kept(num_layers))


def _norm(dimensions: _Dimensions) -> int:
    architecture = dimensions.architecture
    return architecture.norm_vectors * dimensions.hidden if dimensions.says(architecture.norm_affine) else 0


def _attention(dimensions: _Dimensions) -> int:
    architecture, hidden = dimensions.architecture, dimensions.hidden
    total = dimensions.values * hidden + _queries_keys_values(dimensions)
    if dimensions.says(architecture.output_bias):
        total += hidden
    if architecture.qk_norm:
        total += 2 * dimensions.head_dim
    return total + (dimensions.heads if architecture.sinks else 0)


def _queries_keys_values(dimensions: _Dimensions) -> int:
    hidden, queries = dimensions.hidden, dimensions.queries
    projected = queries + 2 * dimensions.keys  # what the hidden states are projected to
    total = 0
    if dimensions.architecture.latent:
        nope, rank = dimensions.size("qk_nope_head_dim"), dimensions.size("kv_lora_rank")
        total += rank + rank * (dimensions.heads * nope + dimensions.values)  # a norm, and out of the latent vector
        projected = dimensions.cached
        if dimensions.value("q_lora_rank") is None:
            total += hidden * queries  # which never has a bias
        else:
            query_rank = dimensions.size("q_lora_rank")
            total += query_rank + query_rank * queries
            projected += query_rank
    total += projected * hidden
    return total + (projected if dimensions.says(dimensions.architecture.attention_bias) else 0)


def _mlp(dimensions: _Dimensions, layer: int) -> int:
    architecture, hidden = dimensions.architecture, dimensions.hidden
    if architecture.experts is None or not dimensions.has_experts(layer):
        intermediate = dimensions.size(architecture.intermediate)
        return _mlp_of(dimensions, intermediate, dimensions.says(architecture.mlp_bias))
    experts, intermediate = dimensions.size(architecture.experts), dimensions.size(architecture.expert_intermediate)
    router = experts * (hidden + architecture.expert_bias)
    shared = _mlp_of(dimensions, dimensions.count(architecture.shared_experts) * intermediate, bias=False)
    return experts * _mlp_of(dimensions, intermediate, architecture.expert_bias) + router + shared


def _mlp_of(dimensions: _Dimensions, intermediate: int, bias: bool) -> int:
    """Of one MLP or expert of that width; none has no parameters."""
    matrices = dimensions.architecture.mlp_matrices
    biases = (matrices - 1) * intermediate + dimensions.hidden if bias else 0
    return matrices * intermediate * dimensions.hidden + biases


def _activations_per_token(dimensions: _Dimensions) -> int:
    architecture, hidden = dimensions.architecture, dimensions.hidden
    mlp = architecture.mlp_matrices * dimensions.size(architecture.intermediate)
    if architecture.experts is not None:
        # each chosen expert has a copy of the token and an output of its own
        expert = architecture.mlp_matrices * dimensions.size(architecture.expert_intermediate) + 2 * hidden
        mlp = max(mlp, dimensions.size(architecture.experts_per_token) * expert)
    attention = 2 * (dimensions.queries + 2 * dimensions.keys)
    return 2 * dimensions.size("vocab_size") + 4 * hidden + max(attention, mlp)
