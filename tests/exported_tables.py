"""Tables with made-up times for the tests of exporters: rows by families, every length up to a few tokens."""

import random
from typing import Any

from llm_profile.measurement import PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord
from llm_profile.store.table import LatencyTable

DEPTH = 3
MODEL_ROWS = ("embedding", "embed_positions", "model_other", "final_layernorm", "lm_head")
LLAMA = (
    *("embedding", "model_other", "input_layernorm", "q_proj", "k_proj", "v_proj", "rope", "attn_other", "attn"),
    *("o_proj", "block_other", "post_layernorm", "gate_proj", "act_fn", "up_proj", "mlp_other", "down_proj"),
    *("final_layernorm", "lm_head"),
)
EXPERTS = (
    *("embedding", "model_other", "input_layernorm", "q_proj", "k_proj", "v_proj", "rope", "attn_other", "attn"),
    *("o_proj", "block_other", "post_layernorm", "gate", "experts", "mlp_other", "final_layernorm", "lm_head"),
)
OPT = (
    *("embedding", "model_other", "embed_positions", "input_layernorm", "q_proj", "attn_other", "k_proj", "v_proj"),
    *("attn", "o_proj", "block_other", "post_layernorm", "fc1", "act_fn", "fc2", "final_layernorm", "lm_head"),
)
QWEN = (*LLAMA[:6], "q_norm", "k_norm", *LLAMA[6:])
QWEN_EXPERTS = (*EXPERTS[:6], "q_norm", "k_norm", *EXPERTS[6:])
WITH_EXPERTS = {"mixtral": EXPERTS, "phimoe": EXPERTS, "qwen3_moe": QWEN_EXPERTS}
FAMILIES = {"llama": LLAMA, "qwen3": QWEN, "opt": OPT, **WITH_EXPERTS}

NAMES = {
    "llama": "org/llama-8b",
    "qwen3": "org/qwen3-8b",
    "opt": "org/opt-7b",
    "mixtral": "org/mixtral-8x7b",
    "phimoe": "org/phi-moe",
    "qwen3_moe": "org/qwen3-30b",
}
CONFIG = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": DEPTH,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}
NUM_EXPERTS, PER_TOKEN = 8, 2


def made_up_table(family: str, prefill: int = 96, decode: int = 127, **meta: Any) -> LatencyTable:
    """A table whose times depend on row and point alone; some are 0. meta: changes of its metadata."""
    rows = FAMILIES[family]
    config = CONFIG | {"model_type": family}
    if family in WITH_EXPERTS:
        config |= {"num_local_experts": NUM_EXPERTS, "num_experts_per_tok": PER_TOKEN}
    block_rows = {row: "block" for row in rows if row not in MODEL_ROWS}
    kinds = [{"name": "block", "count": DEPTH, "layers": [*range(DEPTH)], "profiled": [0]}]
    table = LatencyTable("H200", NAMES[family], {"kinds": kinds, "block_rows": block_rows, "config": config})
    table.meta |= {"clock": "gpu-kernel", "origin": "measured", "runs": [{"index": 0}], "conditions": {"seed": 0}}
    table.meta |= {"source": {"name": NAMES[family], "origin": "table", "revision": None}, **meta}
    points = [SweepPoint(n, 0) for n in range(1, prefill + 1)] + [SweepPoint(1, k) for k in range(1, decode + 1)]
    for point in points:
        table.records[point] = record(point, rows)
    return table


def record(point: SweepPoint, rows: tuple[str, ...]) -> PointRecord:
    """Times of one pass; one in ten rows takes none."""
    rng = random.Random(f"{point}")
    samples = {row: RowSample((rng.choice([0, *[rng.randrange(1, 10**6)] * 9]),)) for row in rows}
    return PointRecord.of(PointSample(point, samples, (sum(s.pass_ns[0] for s in samples.values()),), "fake"), 0)


def ns(table: LatencyTable, row: str, point: SweepPoint) -> int:
    """What the table says of a row in a pass, over all blocks."""
    times = DEPTH if row in table.meta["block_rows"] else 1
    return times * table.latency_ns(row, point)
