"""Whether ranks may share a table: their GPUs are alike, and they measure the same. Imports no torch."""

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llm_profile.measurement import PointSample, trimmed_mean
from llm_profile.points import KINDS, SweepPoint, canonical_order

ALIKE_FACTS = ("gpu_memory_bytes", "gpu_multiprocessors", "gpu_l2_bytes", "gpu_limits")
"""Facts of a run that may differ from run to run of a table, but not from rank to rank of a run."""

SENTINEL_TOLERANCES: Mapping[str, float] = {"gpu-kernel": 0.02, "fake": 0.02}
"""Clock -> by how much the sentinel points of a rank may be off those of the others. Ranks on a CPU (`cpu-wall`) share
its memory and caches, so their times say nothing about each other."""

SENTINEL_ATTEMPTS = 2
"""How often sentinels are measured before a rank that disagrees is left out: a GPU's clock may have been low before."""


def identity(ready: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same on all ranks, by name. ready: what a rank tells when its model is loaded."""
    alike = {name: value for name, value in ready["facts"].items() if name in ALIKE_FACTS}
    return {**ready["conditions"], **alike, "clock": ready["clock"], "kinds": ready["kinds"]}


def unlike(identities: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Ranks that differ from most others, or else from the first, each with what differs."""
    texts = {rank: json.dumps(of_rank, sort_keys=True) for rank, of_rank in sorted(identities.items())}
    (most, _), *_ = Counter(texts.values()).most_common(1)  # of equally many, the one that came first
    usual = identities[next(rank for rank, text in texts.items() if text == most)]
    return {rank: _differing(usual, identities[rank]) for rank, text in texts.items() if text != most}


def _differing(usual: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name} is {json.dumps(own.get(name))[:200]}, that of other ranks {json.dumps(usual.get(name))[:200]}"
        for name in dict.fromkeys([*usual, *own])
        if usual.get(name) != own.get(name)
    )


def sentinels(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """Points that every rank is to measure: of each kind the longest one and the middle one.

    Long passes vary least, and show a GPU that computes, reads memory or cools worse than the others.
    """
    chosen: dict[SweepPoint, None] = {}
    for kind in KINDS:
        of_kind = sorted((p for p in points if p.kind == kind), key=lambda p: (p.cache_len, canonical_order(p)))
        if of_kind:
            chosen |= {of_kind[-1]: None, of_kind[len(of_kind) // 2]: None}
    return list(chosen)


def pass_time_ns(sample: PointSample) -> float:
    """The trimmed mean of the whole passes of a point."""
    import numpy as np

    return float(trimmed_mean(np.asarray(sample.pass_ns, dtype=np.float64)))


def disagreeing(times_ns: Mapping[int, Mapping[SweepPoint, float]], tolerance: float) -> dict[int, float]:
    """Ranks that are off the others by more than `tolerance`, each with its time as a ratio to theirs.

    times_ns: rank -> point -> time of a pass. At each point that all ranks measured, the others are their median (of
    two, the faster one), and a rank's ratio is its median over points.
    """
    if not times_ns:
        return {}
    shared = set.intersection(*(set(of_rank) for of_rank in times_ns.values()))
    usual_ns = {point: statistics.median_low(of_rank[point] for of_rank in times_ns.values()) for point in shared}
    if not usual_ns:
        return {}
    ratios = {
        rank: statistics.median(of_rank[point] / usual for point, usual in usual_ns.items())
        for rank, of_rank in times_ns.items()
    }
    return {rank: ratio for rank, ratio in ratios.items() if abs(ratio - 1) > tolerance}
