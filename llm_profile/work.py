"""What rows have to compute and to move at least, from a model's configuration: where they lie on a roofline. No torch.

Only for types of models whose matrices follow from a few fields of their config.json, as TYPES lists them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_profile.points import SweepPoint
from llm_profile.request import DTYPE_BYTES

TYPES = frozenset(
    {
        *("llama", "mistral", "qwen2", "qwen3", "phi3", "opt", "gemma3_text"),
        *("mixtral", "phimoe", "qwen3_moe"),
    }
)
"""Values of `model_type`."""

FIELDS: dict[str, tuple[str, ...]] = {
    "intermediate": ("ffn_dim", "intermediate_size"),
    "expert": ("moe_intermediate_size", "intermediate_size"),
    "experts": ("num_local_experts", "num_experts"),
    "embedding": ("word_embed_proj_dim", "hidden_size"),
    "kv_heads": ("num_key_value_heads", "num_attention_heads"),
}
"""What the configurations call some sizes: the first field that is there."""

MATRICES: dict[str, tuple[str, ...]] = {
    # row -> width of what comes in, and widths of what comes out, side by side
    "q_proj": ("hidden", "queries"),
    "k_proj": ("hidden", "keys"),
    "v_proj": ("hidden", "keys"),
    "qkv_proj": ("hidden", "queries", "keys", "keys"),
    "o_proj": ("queries", "hidden"),
    "gate_proj": ("hidden", "intermediate"),
    "up_proj": ("hidden", "intermediate"),
    "gate_up_proj": ("hidden", "intermediate", "intermediate"),
    "down_proj": ("intermediate", "hidden"),
    "fc1": ("hidden", "intermediate"),
    "fc2": ("intermediate", "hidden"),
    "gate": ("hidden", "experts"),
    "lm_head": ("embedding", "vocabulary"),
}
"""Rows that multiply each token with all of a matrix."""

EXPERT_MATRICES = 3
"""Of an expert: gate, up, down."""

SLIDING = "sliding_attention"
"""Kind of block whose attention covers the last tokens only."""


def layer_of(row: str) -> str:
    """The layer of a row, without the kind of block in front."""
    return row.rpartition(".")[2]


def text_fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration, or that of its text model."""
    fields: Mapping[str, Any] = config.get("text_config") or config
    return fields


class NoWork(Exception):
    """Why it is unknown what the rows of a table have to do; a sentence without a full stop."""


@dataclass(frozen=True)
class Work:
    """Of one call of a row at a point. bytes: each weight and each value that comes in or out, moved once."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Model:
    """What rows have to do in a model. widths: by the names of MATRICES. Sizes are numbers of values."""

    widths: Mapping[str, int]
    heads: int
    kv_heads: int
    head_dim: int
    value_bytes: int
    experts_per_token: int | None
    window: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any], dtype: str) -> "Model":
        """config: fields of a config.json. Raises NoWork."""
        if config.get("quantization_config") is not None:
            raise NoWork("the weights are quantised, and how many bytes they take is not known here")
        fields = text_fields(config)
        if fields.get("model_type") not in TYPES:
            raise NoWork(f"the matrices of models of type {fields.get('model_type')} are not known here")
        if dtype not in DTYPE_BYTES:
            raise NoWork(f"the size of {dtype} is not known here")
        hidden, heads = _size(fields, "hidden_size"), _size(fields, "num_attention_heads")
        head_dim = _optional(fields, "head_dim") or hidden // heads
        kv_heads = _size(fields, *FIELDS["kv_heads"])
        experts = _optional(fields, *FIELDS["experts"])
        widths = {
            "hidden": hidden,
            "queries": heads * head_dim,
            "keys": kv_heads * head_dim,
            "intermediate": _size(fields, *FIELDS["intermediate"]),
            "embedding": _size(fields, *FIELDS["embedding"]),
            "vocabulary": _size(fields, "vocab_size"),
        }
        if experts:
            widths |= {"experts": experts, "expert": _size(fields, *FIELDS["expert"])}
        per_token = _size(fields, "num_experts_per_tok") if experts else None
        window = _optional(fields, "sliding_window")
        return cls(widths, heads, kv_heads, head_dim, DTYPE_BYTES[dtype], per_token, window)

    def work(self, row: str, point: SweepPoint) -> Work | None:
        """Of a row at a step of one sequence; None where it is not known."""
        layer = layer_of(row)
        if layer == "attn":
            return self._attention(point, self.window if row.startswith(f"{SLIDING}.") else None)
        if layer == "experts":
            return self._experts(point.tokens)
        names = MATRICES.get(layer, ())
        if not names or not {*names} <= self.widths.keys():
            return None
        taken, *given = (self.widths[name] for name in names)
        values = taken * sum(given) + point.tokens * (taken + sum(given))
        return Work(2.0 * point.tokens * taken * sum(given), self.value_bytes * values)

    def _experts(self, tokens: int) -> Work | None:
        """Where tokens are shared out evenly, as `--routing balanced` does."""
        if self.experts_per_token is None:
            return None
        hidden, expert = self.widths["hidden"], self.widths["expert"]
        copies = tokens * self.experts_per_token
        one = EXPERT_MATRICES * hidden * expert
        values = min(copies, self.widths["experts"]) * one + 2 * tokens * hidden
        return Work(2.0 * copies * one, self.value_bytes * values)

    def _attention(self, point: SweepPoint, window: int | None) -> Work:
        """window: tokens that each token attends to at most."""
        tokens, total = point.tokens, point.total_len
        covered = _pairs(total, window) - _pairs(point.history, window)
        read = total if window is None else min(total, window + tokens)
        values = 2 * self.head_dim * (tokens * self.heads + read * self.kv_heads)
        return Work(4.0 * self.heads * self.head_dim * covered, self.value_bytes * values)


def _pairs(total: int, window: int | None) -> int:
    """Tokens that each of `total` tokens attends to, itself among them, added up."""
    inside = total if window is None else min(total, window)
    return inside * (inside + 1) // 2 + (total - inside) * inside


def _size(fields: Mapping[str, Any], *names: str) -> int:
    """The first of some fields that is set. Raises NoWork for none, and for what is no size."""
    value = _optional(fields, *names)
    if value is None:
        raise NoWork(f"its configuration has no {names[-1]}")
    return value


def _optional(fields: Mapping[str, Any], *names: str) -> int | None:
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise NoWork(f"its configuration has a {names[-1]} that is no number")
    return value
