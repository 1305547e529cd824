"""The measuring loop: from a plan to a table, in shuffled order, with an eye on the clock. Imports no torch."""

import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from llm_profile.backends.base import Backend
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.sweep import Plan, SweepPoint
from llm_profile.writer import TableWriter

SYNC_INTERVAL_S = 2.0
"""How far the journal on disk may lie behind what is known, beside the batch under way."""

CLOCK_DROP = 0.03
"""A point whose SM clock is this far below that of points of like length is measured again."""

CLOCK_RETRIES = 2
"""How often such a point is measured again before it is marked."""


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands, told after each point."""

    done: int
    total: int
    result: PointSample | PointFailure


def measure(
    backend: Backend,
    plan: Plan,
    writer: TableWriter,
    rule: StoppingRule,
    warmup: int,
    seed: int,
    tell: Callable[[Progress], None] = lambda _progress: None,
) -> None:
    """Measure what `plan` still wants and journal each point as it is known.

    Points are shuffled, so that a drifting clock shows as noise and never as a trend over length. Those that ran at a
    low clock are measured again after the others, then marked.
    """
    for point, reason in plan.unrunnable.items():
        if point not in writer.table.missing:
            writer.add(PointFailure(point, reason))
    left = plan.left(writer.done())
    random.Random(seed).shuffle(left)
    clocks: dict[SweepPoint, float] = {}
    total, done, synced = len(left), 0, time.monotonic()
    repeated: dict[SweepPoint, PointSample] = {}
    for attempt in range(1 + CLOCK_RETRIES):
        for result in backend.sample(left, rule, warmup):
            writer.add(result)
            if isinstance(result, PointSample) and result.sm_clock_mhz is not None:
                clocks[result.point] = result.sm_clock_mhz
                if attempt:
                    repeated[result.point] = result
            done += attempt == 0
            tell(Progress(done, total, result))
            if time.monotonic() - synced > SYNC_INTERVAL_S:
                writer.sync()
                synced = time.monotonic()
        left = slow_points(clocks)
        if not left:
            break
    for point in left:
        writer.add(replace(repeated[point], notes=(*repeated[point].notes, "low SM clock")))
    writer.sync()


def slow_points(clocks: Mapping[SweepPoint, float]) -> list[SweepPoint]:
    """Points whose clock lies more than CLOCK_DROP below the median of points of like length.

    Alike are points of one phase whose total length has the same power of two.
    """
    groups: dict[tuple[str, int], list[SweepPoint]] = {}
    for point in clocks:
        groups.setdefault((point.phase, point.total_len.bit_length()), []).append(point)
    return sorted(p for group in groups.values() for p in _below(group, clocks))


def _below(group: Iterable[SweepPoint], clocks: Mapping[SweepPoint, float]) -> list[SweepPoint]:
    limit = (1 - CLOCK_DROP) * statistics.median(clocks[p] for p in group)
    return [p for p in group if clocks[p] < limit]
