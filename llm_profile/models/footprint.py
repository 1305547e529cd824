"""How much memory a model with few blocks takes, computed from its config.json. Imports no torch.

Parameter counts are exact for the types in architectures.py. The answer is None, for unknown, for any other type, for
quantised weights, and for a config that lacks a field that its type needs. Types with recurrent states are not in
architectures.py, since the memory that their scans need depends on the kernels that are installed.
"""

from collections.abc import Collection, Mapping
from typing import Any

from llm_profile.models.architectures import ARCHITECTURES, DEFAULTS, LAYER_LISTS
from llm_profile.models.quantisation_config import quantisation_fields

MOST_COUNTED_BLOCKS = 10_000
"""Most blocks of a model whose memory is computed. A larger number is a typing error and would take long to count."""


def parameter_count(config: Mapping[str, Any], num_layers: int) -> int | None:
    """Number of parameters of the model with `num_layers` blocks of each kind; None if unknown.

    That is embedding, blocks, final norm and head. Weights that the head shares with the embedding count once.
    """
    try:
        return _parameters(_Dimensions(config), num_layers)
    except _Unknown:
        return None


def memory_bytes(
    config: Mapping[str, Any], num_layers: int, dtype_bytes: int, max_len: int, copies: int = 1, packed: int = 0
) -> int | None:
    """Device memory in bytes for passes of up to `max_len` tokens at batch 1; None if unknown.

    That is weights, KV cache and activations. num_layers: blocks of each kind. copies: how many times the activations
    of a pass are in memory at once (one for each of its CUDA graphs, and one for eager passes). packed: tokens of a
    further KV cache, that of packed passes.

    Activations are an estimate: the logits of all tokens twice (the head's output and a copy), and per token the
    residual stream, queries, keys, values and the widest part of the MLP. Attention scores count only for types where
    no fused kernel can compute them. The cache of blocks with a sliding window counts as if they had none.
    """
    try:
        dimensions = _Dimensions(config)
        values = _parameters(dimensions, num_layers)
        values += len(dimensions.kept(num_layers)) * dimensions.cached * (max_len + packed)
        values += copies * max_len * _activations_per_token(dimensions)
        values += copies * max_len**2 * dimensions.architecture.scores * dimensions.heads
    except _Unknown:
        return None
    return dtype_bytes * values


class _Unknown(Exception):
    """The config does not have what is needed."""


class _Dimensions:
    """Sizes from a config.json, with the defaults of its type.

    queries, keys: width of the projection to queries and of that to keys. values: width of the attention's output
    before its projection. cached: numbers per token that the cache of one block holds.
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
        """Indices of the blocks that a run keeps: the first `num_layers` of each kind."""
        depth = self.size("num_hidden_layers")
        if depth > MOST_COUNTED_BLOCKS:
            raise _Unknown
        kinds = list(zip(self._layer_types(depth), map(self.has_experts, range(depth)), strict=True))
        return [layer for layer, kind in enumerate(kinds) if kinds[:layer].count(kind) < num_layers]

    def _layer_types(self, depth: int) -> list[Any]:
        """A value for each block: blocks with equal values have attention of the same kind."""
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
        """A field of the config, or its default. Raises _Unknown if there is neither."""
        for known in (self._config, self.architecture.defaults, DEFAULTS):
            if name in known:
                return known[name]
        raise _Unknown

    def size(self, name: str, derived: int | None = None) -> int:
        """A field that holds a size. derived: the size where the field is None."""
        value = derived if self.value(name) is None else self.value(name)
        if not isinstance(value, int):
            raise _Unknown
        return value

    def flag(self, flag: str | bool) -> bool:
        """A truth value of an Architecture: a string is the name of the config's field that holds it."""
        return bool(self.value(flag)) if isinstance(flag, str) else flag

    def count(self, number: str | int) -> int:
        """A number of an Architecture: a string is the name of the config's field that holds it."""
        return self.size(number) if isinstance(number, str) else number

    def divisor(self, number: str | int) -> int:
        """As `count`, but raises _Unknown for 0."""
        divisor = self.count(number)
        if not divisor:
            raise _Unknown
        return divisor

    def layers(self, name: str) -> Collection[int]:
        """A field with a list of indices of blocks; empty where the field is null."""
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
    total = table if dimensions.flag("tie_word_embeddings") else 2 * table
    if dimensions.embedding != hidden:  # projections from the embedding's width to the blocks' width and back
        total += 2 * dimensions.embedding * hidden
    if architecture.extra_positions is not None:
        total += (dimensions.size("max_position_embeddings") + architecture.extra_positions) * hidden
    if dimensions.flag(architecture.final_norm):
        total += _norm(dimensions)
    if dimensions.flag(architecture.head_bias):
        total += dimensions.size("vocab_size")
    every_block = _attention(dimensions) + architecture.block_norms * _norm(dimensions)
    return total + sum(every_block + _mlp(dimensions, layer) for layer in dimensions.kept(num_layers))


def _norm(dimensions: _Dimensions) -> int:
    architecture = dimensions.architecture
    return architecture.norm_vectors * dimensions.hidden if dimensions.flag(architecture.norm_affine) else 0


def _attention(dimensions: _Dimensions) -> int:
    architecture, hidden = dimensions.architecture, dimensions.hidden
    total = dimensions.values * hidden + _queries_keys_values(dimensions)
    if dimensions.flag(architecture.output_bias):
        total += hidden
    if architecture.qk_norm:
        total += 2 * dimensions.head_dim
    return total + (dimensions.heads if architecture.sinks else 0)


def _queries_keys_values(dimensions: _Dimensions) -> int:
    hidden, queries = dimensions.hidden, dimensions.queries
    projected = queries + 2 * dimensions.keys  # width of all that the hidden states are projected to
    total = 0
    if dimensions.architecture.latent:
        nope, rank = dimensions.size("qk_nope_head_dim"), dimensions.size("kv_lora_rank")
        total += rank + rank * (dimensions.heads * nope + dimensions.values)  # norm and projection of the latent vector
        projected = dimensions.cached
        if dimensions.value("q_lora_rank") is None:
            total += hidden * queries  # without a bias, whatever attention_bias says
        else:
            query_rank = dimensions.size("q_lora_rank")
            total += query_rank + query_rank * queries
            projected += query_rank
    total += projected * hidden
    return total + (projected if dimensions.flag(dimensions.architecture.attention_bias) else 0)


def _mlp(dimensions: _Dimensions, layer: int) -> int:
    architecture, hidden = dimensions.architecture, dimensions.hidden
    if architecture.experts is None or not dimensions.has_experts(layer):
        intermediate = dimensions.size(architecture.intermediate)
        return _mlp_of(dimensions, intermediate, dimensions.flag(architecture.mlp_bias))
    experts, intermediate = dimensions.size(architecture.experts), dimensions.size(architecture.expert_intermediate)
    router = experts * (hidden + architecture.expert_bias)
    shared = _mlp_of(dimensions, dimensions.count(architecture.shared_experts) * intermediate, bias=False)
    return experts * _mlp_of(dimensions, intermediate, architecture.expert_bias) + router + shared


def _mlp_of(dimensions: _Dimensions, intermediate: int, bias: bool) -> int:
    """Parameters of one MLP or expert. intermediate: its inner width, 0 for no MLP."""
    matrices = dimensions.architecture.mlp_matrices
    biases = (matrices - 1) * intermediate + dimensions.hidden if bias else 0
    return matrices * intermediate * dimensions.hidden + biases


def _activations_per_token(dimensions: _Dimensions) -> int:
    architecture, hidden = dimensions.architecture, dimensions.hidden
    mlp = architecture.mlp_matrices * dimensions.size(architecture.intermediate)
    if architecture.experts is not None:
        # each chosen expert has its own copy of the token and its own output
        expert = architecture.mlp_matrices * dimensions.size(architecture.expert_intermediate) + 2 * hidden
        mlp = max(mlp, dimensions.size(architecture.experts_per_token) * expert)
    attention = 2 * (dimensions.queries + 2 * dimensions.keys)
    return 2 * dimensions.size("vocab_size") + 4 * hidden + max(attention, mlp)
