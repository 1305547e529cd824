"""The measuring loop: from a plan to a table, in shuffled order, with an eye on the clock. Imports no torch."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.points import KINDS, SweepPoint, canonical_order
from llm_profile.store.table import LatencyTable
from llm_profile.store.writer import TableWriter
from llm_profile.sweep import Plan
from llm_profile.timing.backends.base import Backend
from llm_profile.timing.grid import GRIDS, Grid, filled

SYNC_INTERVAL_S = 2.0
"""How far the journal on disk may lie behind what is known, beside the batch under way."""

CLOCK_DROP = 0.03
"""A point whose SM clock is this far below that of points of like length is measured again."""

CLOCK_RETRIES = 2
"""How often such points are measured again before they are left as doubtful."""

HOPELESS_SHARE = 0.25
"""Share of points at a low clock from which on measuring again is no help: the GPU itself is unsteady."""


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands, told after each result.

    done: of `total` points, those of later rounds of an adaptive grid not among them; a point counts once.
    """

    done: int
    total: int
    result: PointSample | PointFailure


def measure(
    backend: Backend,
    laid_out: Plan,
    writer: TableWriter,
    rule: StoppingRule,
    warmup: int,
    seed: int,
    tell: Callable[[Progress], None] = lambda _progress: None,
    grid: Grid = GRIDS["full"],
) -> list[SweepPoint]:
    """Measure what a plan still wants, round by round as the grid has it, and journal each point as it is known.

    Points are shuffled, so that a drifting clock shows as noise and never as a trend over length. Those that ran at a
    low clock are measured again after the others, and the result at the highest clock is kept. Returns these points.
    """
    for point, reason in laid_out.unrunnable.items():
        writer.add(PointFailure(point, reason))
    runnable = laid_out.left(())
    known = writer.table.records
    done: set[SweepPoint] = set()
    failed: dict[SweepPoint, str] = {}
    repeated: set[SweepPoint] = set()
    synced = time.monotonic()
    while asked := in_measuring_order(grid.next_points(runnable, known, failed), seed):
        again, total = asked, len(done) + len(asked)
        for attempt in range(1 + CLOCK_RETRIES):
            if attempt:
                repeated.update(again)
            for result in backend.sample(again, rule, warmup):
                if not _slower_again(result, writer.table):
                    writer.add(result)
                if isinstance(result, PointFailure) and result.point not in known:
                    failed[result.point] = result.reason
                done.add(result.point)
                tell(Progress(len(done), total, result))
                if time.monotonic() - synced > SYNC_INTERVAL_S:
                    writer.sync()
                    synced = time.monotonic()
            clocks = clocks_mhz(writer.table)
            slow = set(slow_points(clocks))
            again = [point for point in asked if point in slow]
            if not again or len(slow) > HOPELESS_SHARE * len(clocks):
                break
    for point, filled_in in filled(runnable, known, failed, writer.run_index).items():
        if isinstance(filled_in, str):
            writer.add(PointFailure(point, filled_in))
        else:
            writer.fill(point, filled_in)
    writer.sync()
    return sorted(repeated, key=canonical_order)


def in_measuring_order(points: Sequence[SweepPoint], seed: int) -> list[SweepPoint]:
    """Shuffled within each kind, the kinds evenly mixed: decode steps run while the GPU rests after prompts."""
    chance = random.Random(seed)
    by_kind = {kind: [point for point in points if point.kind == kind] for kind in KINDS}
    places = {
        point: ((number + 0.5) / len(of_kind), kind)
        for kind, of_kind in by_kind.items()
        for number, point in enumerate(chance.sample(of_kind, len(of_kind)))
    }
    return sorted(places, key=places.__getitem__)


def clocks_mhz(table: LatencyTable) -> dict[SweepPoint, float]:
    """The SM clock of each point of a table where it is known."""
    return {point: r.sm_clock_mhz for point, r in table.records.items() if r.sm_clock_mhz is not None}


def slow_points(clocks: Mapping[SweepPoint, float]) -> list[SweepPoint]:
    """Points whose SM clock (MHz) lies more than CLOCK_DROP below the median of points of like length.

    Alike are points of one kind that have the same power of two in the tokens that they feed, and in their length.
    """
    groups: dict[tuple[str, int, int], list[SweepPoint]] = {}
    for point in clocks:
        alike = point.kind, point.tokens.bit_length(), point.total_len.bit_length()
        groups.setdefault(alike, []).append(point)
    return sorted(point for group in groups.values() for point in _below(group, clocks))


def _below(group: Sequence[SweepPoint], clocks: Mapping[SweepPoint, float]) -> list[SweepPoint]:
    limit = (1 - CLOCK_DROP) * statistics.median(clocks[point] for point in group)
    return [point for point in group if clocks[point] < limit]


def _slower_again(result: PointSample | PointFailure, table: LatencyTable) -> bool:
    """Whether a result that is to replace a known one was had at a lower clock still."""
    known = table.records.get(result.point)
    clock = result.sm_clock_mhz if isinstance(result, PointSample) else None
    return known is not None and (clock or 0.0) < (known.sm_clock_mhz or 0.0)
