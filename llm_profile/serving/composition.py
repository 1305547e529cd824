"""What attention has to do in a step, in numbers that its time follows from. Imports no torch.

Of each sequence: `tokens` fed on a `history`, so its queries cover up to tokens + history keys, each query those before
it. A kernel cuts queries into tiles, one block of threads for a tile and head, and the blocks share the GPU's
multiprocessors; of decode steps it cuts the keys instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_profile.points import SweepPoint
from llm_profile.store.table import LatencyTable
from llm_profile.work import SLIDING

FloatArray = NDArray[np.float64]

KINDS_OF_STEPS = ("decode", "chunk", "prompts", "mixed")
"""`decode`: one token on each of n histories of one length. `prompts`: no history. `chunk`: several tokens, all of one
length on one history. `mixed`: lengths that differ."""

QUERY_TILE = 128
"""Queries of a tile of prompts and chunks. FlashAttention-2 takes 64 or 128 by the size of a head."""


def kind_of(point: SweepPoint) -> str:
    """One of KINDS_OF_STEPS."""
    if all(history == 0 and tokens > 1 for tokens, history, _count in point.groups):
        return "prompts"
    if len(point.groups) > 1:
        return "mixed"
    return "decode" if point.input_len == 1 else "chunk"


@dataclass(frozen=True)
class AttentionShape:
    """Attention of one kind of block. window: most keys that a query covers, None for all.

    heads, kv_heads: of one rank. multiprocessors: of the GPU.
    """

    heads: int
    kv_heads: int
    multiprocessors: int
    window: int | None = None

    @classmethod
    def of(cls, table: LatencyTable, row: str) -> "AttentionShape":
        """Of a row of attention, by the metadata. What that lacks counts 1: terms that need it lose their steps."""
        config, degree = table.meta.get("config", {}), int(table.conditions.get("tp") or 1)
        heads = config.get("num_attention_heads") or 1
        kv_heads = config.get("num_key_value_heads") or heads
        multiprocessors = next((run["gpu_multiprocessors"] for run in table.meta["runs"] if _says(run)), 1)
        only_kind = len(table.meta["kinds"]) == 1 and config.get("use_sliding_window") is not False
        slides = row.startswith(f"{SLIDING}.") or (only_kind and "layer_types" not in config)
        window = config.get("sliding_window") if slides else None
        return cls(max(1, heads // degree), max(1, kv_heads // degree), multiprocessors, window)


def _says(run: dict[str, object]) -> bool:
    return bool(run.get("gpu_multiprocessors"))


@dataclass(frozen=True)
class AttentionWork:
    """What one block's attention does in a step; counts are of all sequences together.

    pairs: of a query and a key. tile_pairs: the same with the tiles' empty places. keys: read at least once. chain: the
    most keys that one tile goes through. waves: rounds of tiles and heads over the multiprocessors. filled: share of
    the places of these rounds that have a tile.
    """

    sequences: int
    tokens: int
    pairs: float
    tile_pairs: float
    keys: float
    chain: float
    waves: float
    filled: float
    decodes: int
    longest_chunk: int

    @classmethod
    def of(cls, point: SweepPoint, shape: AttentionShape) -> "AttentionWork":
        """Of a step."""
        tokens, history, count = np.array(point.groups, dtype=np.float64).T  # [groups] each
        window = shape.window or np.inf
        covered = np.minimum(history + tokens, window + tokens - 1)
        pairs = tokens * history + tokens * (tokens + 1) / 2
        if shape.window is not None:
            pairs = np.array([_windowed_pairs(*group[:2], shape.window) for group in point.groups])
        tiles = np.ceil(tokens / QUERY_TILE)
        blocks = float(count @ tiles) * shape.heads
        waves = np.ceil(blocks / shape.multiprocessors)
        return cls(
            sequences=point.batch,
            tokens=point.tokens,
            pairs=float(count @ pairs),
            tile_pairs=float(count @ (pairs * tiles * QUERY_TILE / tokens)),
            keys=float(count @ covered),
            chain=float(covered.max()),
            waves=float(waves),
            filled=blocks / (float(waves) * shape.multiprocessors),
            decodes=int(count @ (tokens == 1)),
            longest_chunk=int(tokens.max()),
        )

    @property
    def terms(self) -> tuple[float, ...]:
        """What adds up to a time, each with a coefficient of at least 0: compute, memory, chain, tiles, launch."""
        return (
            *(self.pairs, self.tile_pairs, self.tile_pairs / self.filled, self.keys, float(self.tokens), self.chain),
            *(self.waves, float(self.sequences), 1.0),
        )

    @property
    def features(self) -> tuple[float, ...]:
        """What the correction depends on, as logarithms."""
        decode_share = self.decodes / self.sequences
        values = (self.sequences, self.tokens, self.pairs, self.keys, self.chain, self.waves, self.longest_chunk)
        return (*(float(np.log(value)) for value in values), float(np.log(self.filled)), decode_share)


def _windowed_pairs(tokens: int, history: int, window: int) -> float:
    """Sum over the queries of min(keys up to it, window)."""
    full = min(tokens, max(0, window - history))  # queries whose window has room for all keys before them
    return full * history + full * (full + 1) / 2 + (tokens - full) * window


def terms_of(works: Sequence[AttentionWork]) -> FloatArray:
    """Terms of each work. Shape [works, terms]."""
    return np.array([work.terms for work in works])


def features_of(works: Sequence[AttentionWork]) -> FloatArray:
    """Features of each work. Shape [works, features]."""
    return np.array([work.features for work in works])
