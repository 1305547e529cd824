"""Attention kernels simulated block by block, so that a model of their time is judged by something else than itself.

Tiles of queries and heads are jobs; each multiprocessor takes the next job when it is free. Decodes split their keys so
that the jobs fill the GPU. The slower of this and reading all keys counts, and noise of 1 % is added.
"""

import heapq
import random

from llm_profile.measurement import PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord
from llm_profile.store.table import LatencyTable

HEADS, KV_HEADS, HEAD_DIM, PROCESSORS, DEPTH = 32, 8, 128, 132, 32
BYTES_PER_NS = 4400.0
CONFIG = {"model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM}
ROWS = ("embedding", "q_proj", "rope", "attn", "attn_other", "down_proj", "lm_head")
BLOCK_ROWS = {row: "block" for row in ROWS if row not in ("embedding", "lm_head")}


def jobs(point: SweepPoint) -> list[float]:
    """Time in ns of each block of threads."""
    found: list[float] = []
    splits = max(1, PROCESSORS // (point.batch * KV_HEADS))
    for tokens, history in point.sequences:
        if tokens == 1:
            part = -(-(history + 1) // splits)
            found += [900 + 2.4 * part] * (KV_HEADS * min(splits, -(-(history + 1) // 128)))
            continue
        for tile in range(0, tokens, 128):
            keys = history + min(tokens, tile + 128)
            found += [1500 + 14.0 * keys * (0.6 + 0.4 * min(128, tokens - tile) / 128)] * HEADS
    return found


def scheduled_ns(times: list[float]) -> float:
    free = [0.0] * (2 * PROCESSORS)  # two blocks of threads side by side
    for time_ns in sorted(times, reverse=True):
        heapq.heapreplace(free, free[0] + time_ns)
    return max(free)


def attention_ns(point: SweepPoint, noise: float = 0.01) -> int:
    uniform = len(point.groups) == 1 and point.input_len == 1
    memory_ns = point.cache_len * KV_HEADS * HEAD_DIM * 2 * 2 / (BYTES_PER_NS * (0.95 if uniform else 0.6))
    base = 5200 + max(memory_ns, scheduled_ns(jobs(point)) * (0.8 if uniform else 1.0))
    return round(base * random.Random(repr(point.groups)).gauss(1.0, noise))


def gemm_ns(tokens: int, width: int) -> int:
    """Weights are read once; then waves of tiles of 128 x 128."""
    waves = -(-(-(-tokens // 128) * (width // 128)) // PROCESSORS)
    return round(4900 + max(4096 * width * 2 / BYTES_PER_NS, waves * 9800))


def record(point: SweepPoint) -> PointRecord:
    tokens = point.tokens
    heads = tokens if point.is_flat else point.batch
    times = {
        "embedding": 1500 + tokens * 2,
        "q_proj": gemm_ns(tokens, 4096),
        "rope": 2400 + 10 * tokens,
        "attn": attention_ns(point),
        "attn_other": 1900 + 5 * tokens,
        "down_proj": gemm_ns(tokens, 14336),
        "lm_head": gemm_ns(heads, 128256),
    }
    samples = {row: RowSample((time_ns,), kernels=(row,)) for row, time_ns in times.items()}
    return PointRecord.of(PointSample(point, samples, (sum(times.values()),), "fake"), 0)


def compositions(rng: random.Random, count: int) -> list[SweepPoint]:
    """A third decodes, a third chunks and prompts, a third mixed."""

    def length(least: int, most: int) -> int:
        return round(least * (most / least) ** rng.random())

    found: dict[SweepPoint, None] = {}
    while len(found) < count:
        sort = len(found) % 3
        if sort == 0:
            point = SweepPoint(1, length(16, 16384), length(2, 256))
        elif sort == 1:
            tokens, history = length(16, 2048), rng.choice([0, length(16, 16384)])
            most = max(1, min(16, 8192 // tokens))
            point = SweepPoint(tokens, history, max(2 if history == 0 else 1, rng.randint(1, most)))
        else:
            longest = length(64, 16384)
            decodes = [(1, length(16, longest)) for _ in range(length(2, 252))]
            chunks = [(length(16, 2048), rng.choice([0, length(16, 16384)])) for _ in range(rng.randint(0, 2))]
            point = SweepPoint.of([*decodes, *chunks])
        if not point.is_flat:
            found[point] = None
    return list(found)


def simulated_table(count: int = 390, seed: int = 0) -> LatencyTable:
    """Prompts and decode steps of one sequence at powers of two and between, and this many compositions."""
    kinds = [{"name": "block", "count": DEPTH, "layers": [*range(DEPTH)], "profiled": [0]}]
    meta = {
        "kinds": kinds,
        "block_rows": BLOCK_ROWS,
        "config": CONFIG,
        "conditions": {"seed": 0},
        "clock": "gpu-kernel",
        "origin": "measured",
        "runs": [{"index": 0, "gpu_multiprocessors": PROCESSORS}],
    }
    table = LatencyTable("H200", "org/model", meta)
    lengths = [*range(1, 65), *range(80, 512, 16), *range(512, 2049, 64)]
    flat = [SweepPoint(n, 0) for n in lengths] + [SweepPoint(1, n) for n in lengths]
    for point in [*flat, *compositions(random.Random(seed), count)]:
        table.records[point] = record(point)
    return table
