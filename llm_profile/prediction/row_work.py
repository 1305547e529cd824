"""What a row has to do at a point, in numbers that no card appears in. Imports no torch."""

from dataclasses import dataclass

from llm_profile.points import SweepPoint
from llm_profile.work import EXPERT_MATRICES, MATRICES, SLIDING, Model, layer_of

NORM_BYTES_PER_LAUNCH = 4.5
"""Bytes moved per value and kernel of a norm that is computed by kernels of its own for each operation: of the eight
of an RMS norm in bfloat16 with float32 inside, 36 bytes a value (casts 6 each, square 8, mean 4, products 8 and 4)."""

ROPE_BYTES = 20
"""Bytes moved per value that is rotated: two products, negated half, joined halves, sum."""

CACHE_WRITE_BYTES = 4
"""Bytes moved per value that is copied: read, and written."""

MOVED: dict[str, tuple[tuple[str, ...], float]] = {
    # layer -> widths of its values, and bytes moved per value and launch, in a dtype of two bytes
    "act_fn": (("intermediate",), 4),
    "mlp_other": (("intermediate",), 6),
    "block_other": (("hidden",), 6),
    "attn_other": (("keys",), CACHE_WRITE_BYTES),
    "rope": (("queries", "keys"), ROPE_BYTES / 10),
    "q_norm": (("queries",), NORM_BYTES_PER_LAUNCH),
    "k_norm": (("keys",), NORM_BYTES_PER_LAUNCH),
    "embedding": (("hidden",), 4),
    "embed_positions": (("hidden",), 4),
    "gate": (("experts",), 4),
}
"""Layers whose kernels move values and compute little. Norms that are not here are of `hidden` values."""

OTHER_MOVED = (("head_dim",), 4.0)
"""Of a row that is in no table: the rotary table and masks, which are small."""

DISPATCH_BYTES = 16
"""Bytes moved per value of tokens that are handed to experts: gathered, scattered, scaled and summed."""


@dataclass(frozen=True)
class RowWork:
    """Of one call of a row.

    category: `product`, `experts`, `attention`, `decode`, `masked`, `router` or `memory`. tokens, total: fed, and
    attended to. taken, given: widths of a product's input and output; heads and their size for attention. groups:
    products side by side (active experts), of `rows` tokens each. launches: kernels. flops, bytes: the least that must
    be computed and moved. moved: bytes that its kernels do move, values between them included.
    """

    layer: str
    category: str
    tokens: int
    total: int
    taken: int
    given: int
    groups: int
    rows: int
    launches: int
    flops: float
    bytes: float
    moved: float


def row_work(model: Model, row: str, point: SweepPoint, launches: int) -> RowWork:
    """launches: kernels of one call, where it is known; of products a guess."""
    layer = layer_of(row)
    if layer == "attn":
        return _attention(model, row, point, launches)
    least = model.work(row, point)
    flops, moved = (least.flops, least.bytes) if least is not None else (0.0, 0.0)
    sizes = (layer, point.tokens, point.total_len, launches, flops, moved)
    if layer == "experts" and least is not None:
        return _experts(model, *sizes)
    if layer in MATRICES and least is not None and layer != "gate":
        taken, *given = (model.widths[name] for name in MATRICES[layer])
        return _of("product", *sizes, taken=taken, given=sum(given), rows=point.tokens, moved=moved)
    if layer == "gate" and "experts" in model.widths:
        hidden, experts = model.widths["hidden"], model.widths["experts"]
        return _of("router", *sizes, taken=hidden, given=experts, rows=point.tokens, moved=moved)
    widths = {**model.widths, "head_dim": model.head_dim}
    names, per_launch = MOVED.get(layer, (("hidden",), NORM_BYTES_PER_LAUNCH) if "norm" in layer else OTHER_MOVED)
    values = sum(widths.get(name, 0) for name in names)
    bytes_moved = point.tokens * values * per_launch * max(launches, 1) * model.value_bytes / 2
    return _of("memory", *sizes, taken=values, rows=point.tokens, moved=bytes_moved)


def _of(
    category: str,
    layer: str,
    tokens: int,
    total: int,
    launches: int,
    flops: float,
    least: float,
    *,
    taken: int,
    given: int = 1,
    groups: int = 1,
    rows: int,
    moved: float,
) -> RowWork:
    return RowWork(layer, category, tokens, total, taken, given, groups, rows, launches, flops, least, moved)


def _experts(model: Model, layer: str, tokens: int, total: int, launches: int, flops: float, least: float) -> RowWork:
    """Experts that share tokens out evenly, as `--routing balanced` does."""
    copies = tokens * (model.experts_per_token or 1)
    active = min(copies, model.widths["experts"])
    hidden, expert = model.widths["hidden"], model.widths["expert"]
    moved = copies * (hidden + EXPERT_MATRICES * expert) * DISPATCH_BYTES * model.value_bytes / 2
    sizes = (layer, tokens, total, launches, flops, least)
    return _of("experts", *sizes, taken=hidden, given=expert, groups=active, rows=-(-copies // active), moved=moved)


def _attention(model: Model, row: str, point: SweepPoint, launches: int) -> RowWork:
    """Decode steps read a cache; prompts compute; a window that is full needs a mask, and another kernel."""
    window = model.window if row.startswith(f"{SLIDING}.") or "." not in row else None
    least = model.work(row, point)
    assert least is not None  # of attention it always is
    category = "decode" if point.tokens == 1 else "attention"
    if window is not None and point.total_len > window:
        category = "masked"
    sizes = ("attn", point.tokens, point.total_len, launches, least.flops, least.bytes)
    heads, size = model.heads, model.head_dim
    # read of the caches by each head that attends, not once per group of them
    moved = 2.0 * heads * size * point.total_len * model.value_bytes
    return _of(category, *sizes, taken=size, given=heads, groups=model.kv_heads, rows=point.tokens, moved=moved)
