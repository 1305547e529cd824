"""The adaptive grid: which lengths to measure, so that the others can be filled in between. Imports no torch.

Latency over length has steps: a library takes another kernel, or one more tile. So both sides of every multiple of the
tile are measured first. Then, in rounds, the middle of those gaps is, where most is to be gained: where interpolation
missed one of the ends, where kernels differ from end to end, where many lengths lie between. Everything here is a pure
function of what is known, so an interrupted sweep goes on with the same points.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

import numpy as np
from numpy.typing import NDArray

from llm_profile.measurement import Measurement
from llm_profile.points import SweepPoint
from llm_profile.records import FILLED, PointRecord
from llm_profile.sweep import SERIES, series_of

ALIGNMENT = 8
"""Prompts of a multiple of this have kernels of their own (16-byte loads of 2-byte numbers), so they are a lane apart.

At each such length of a Llama-3.1-8B sweep on an H200, matrix products ran other kernels than at both neighbours.
"""

TILE = 64
"""Tokens of the smallest tile whose edges are measured; it doubles until edges are half of the points to measure."""

SHARE = 0.15
"""Most of the points that are measured."""

ROUND = 64
"""Points of one round: two profiling sessions. As many are measured without a grid."""

TOLERANCE = 0.005
"""Mean error of rows up to which an interpolation has not missed."""

IGNORED_NS = 100.0
"""A row that is off by so little has not missed."""

STEP_WEIGHT = 16
"""How much more a gap counts whose ends ran different kernels: somewhere in it there is a step."""

Known = Mapping[SweepPoint, PointRecord]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class FillError:
    """Relative errors where measured points are interpolated from the others. n: rows or passes of all such points."""

    mean: float
    p99: float
    n: int


def most_measured(points: int) -> int:
    """How many of so many points on series an adaptive grid measures at most."""
    return min(points, max(ROUND, math.ceil(SHARE * points)))


def every_point(points: Sequence[SweepPoint], known: Known, failed: Collection[SweepPoint]) -> list[SweepPoint]:
    """All that is not measured and has not failed."""
    return [point for point in points if not _is_measured(point, known) and point not in failed]


def next_points(points: Sequence[SweepPoint], known: Known, failed: Collection[SweepPoint]) -> list[SweepPoint]:
    """The points to measure next; none when enough is known. What is longer than a failed one of its lane is left.

    Points that lie on no series have nothing between which they could be filled: all of them are measured, first.
    """
    whole, alone = _lanes(points)
    if left := every_point(alone, known, failed):
        return left
    along = sum(map(len, whole))
    if along <= ROUND:
        return every_point(points, known, failed)
    most = most_measured(along)
    lanes = [_before(failed, lane) for lane in whole]
    edges = _edges(whole, most // 2)
    if first := [p for lane in lanes for p in lane if p in edges and not _is_measured(p, known)]:
        return first
    if ends := [middle for lane in lanes if (middle := _towards_failure(lane, known)) is not None]:
        return ends
    spent = sum(_is_measured(point, known) or point in failed for lane in whole for point in lane)
    gaps = sorted((-weight, middle) for lane in lanes for weight, middle in _gaps(lane, known))
    return [middle for _, middle in gaps[: max(0, min(ROUND, most - spent))]]


@dataclass(frozen=True)
class Grid:
    """A way of choosing what to measure.

    next_points: of the points asked for, those to measure next, from what is known and which have failed; none at the
    end. most: how many of the points asked for are measured at most.
    """

    next_points: Callable[[Sequence[SweepPoint], Known, Collection[SweepPoint]], list[SweepPoint]]
    most: Callable[[Sequence[SweepPoint]], int]

    def left(self, points: Sequence[SweepPoint], known: Known) -> tuple[int, int]:
        """How many points there are still to measure, and of how many; both at most."""
        most = self.most(points)
        return (max(1, most - len(_measured(points, known))) if self.next_points(points, known, ()) else 0), most


def _most(points: Sequence[SweepPoint]) -> int:
    lanes, alone = _lanes(points)
    return most_measured(sum(map(len, lanes))) + len(alone)


GRIDS = {"full": Grid(every_point, len), "adaptive": Grid(next_points, _most)}
"""`--grid`, by name."""


def filled(
    points: Sequence[SweepPoint], known: Known, failed: Mapping[SweepPoint, str], run: int
) -> dict[SweepPoint, PointRecord | str]:
    """What is still unknown of `points`: records interpolated from measured neighbours, or why there are none."""
    made: dict[SweepPoint, PointRecord | str] = {}
    for lane in _lanes(points)[0]:
        measured = _measured(lane, known)
        for point in lane:
            at = bisect_left(measured, point)
            if point in failed or _is_measured(point, known):
                continue
            if 0 < at < len(measured):
                made[point] = _between(measured[at - 1], point, measured[at], known, run)
            else:
                reason = next(failed[other] for other in lane if other in failed)
                made[point] = f"{reason} at a shorter length"
    return made


def leave_one_out(points: Sequence[SweepPoint], known: Known, whole_passes: bool = False) -> FillError | None:
    """How well rows, or passes, of measured points are interpolated from measured neighbours; None where none has two.

    Neighbours are twice as far as those of filled points, so the error of these is smaller.
    """
    errors = []
    for lane in _lanes(points)[0]:
        measured = _measured(lane, known)
        if len(measured) > 2:
            times_ns, off_ns = _misses(measured, known, [None] if whole_passes else _rows(measured, known))
            errors.append((off_ns / np.maximum(times_ns, 1.0)).ravel())
    if not errors:
        return None
    every = np.concatenate(errors)
    return FillError(float(every.mean()), float(np.quantile(every, 0.99)), every.size)


def _is_measured(point: SweepPoint, known: Known) -> bool:
    return point in known and known[point].is_measured


def _measured(points: Sequence[SweepPoint], known: Known) -> list[SweepPoint]:
    return [point for point in points if _is_measured(point, known)]


def _lanes(points: Sequence[SweepPoint]) -> tuple[list[list[SweepPoint]], list[SweepPoint]]:
    """Points between which latency can be interpolated, by length: of one series and alignment each.

    Those that lie on no series come apart.
    """
    lanes: dict[tuple[str, bool], list[SweepPoint]] = {}
    alone: list[SweepPoint] = []
    for point in sorted(points):
        name = series_of(point)
        if name is None:
            alone.append(point)
        else:
            aligned = SERIES[name].varies == "input_len" and point.input_len % ALIGNMENT == 0
            lanes.setdefault((name, aligned), []).append(point)
    return list(lanes.values()), alone


def _before(failed: Collection[SweepPoint], lane: Sequence[SweepPoint]) -> list[SweepPoint]:
    return list(takewhile(lambda point: point not in failed, lane))


def _towards_failure(lane: Sequence[SweepPoint], known: Known) -> SweepPoint | None:
    """The middle between the last measured point of a lane and its end, where it ends before a failed point."""
    after = max((at + 1 for at, point in enumerate(lane) if _is_measured(point, known)), default=0)
    return lane[(after + len(lane)) // 2] if after < len(lane) else None


def _edges(lanes: Sequence[Sequence[SweepPoint]], most: int) -> set[SweepPoint]:
    """Both ends of each lane, and its points on both sides of each tile's edge, for tiles that leave at most `most`."""
    tile = TILE
    while True:
        chosen = {end for lane in lanes for end in (lane[0], lane[-1])}
        for lane in lanes:
            for one, other in pairwise(lane):
                if (one.cache_len - 1) // tile != (other.cache_len - 1) // tile:
                    chosen |= {one, other}
        if len(chosen) <= max(most, 2 * len(lanes)):
            return chosen
        tile *= 2


def _gaps(lane: Sequence[SweepPoint], known: Known) -> Iterator[tuple[float, SweepPoint]]:
    """The middle of each gap between measured points that may hide something, and how much is to be gained there."""
    measured = _measured(lane, known)
    if len(measured) < 2:
        return
    rows = _rows(measured, known)
    times_ns, off_ns = _misses(measured, known, rows)
    inner = np.where(off_ns > IGNORED_NS, off_ns / np.maximum(times_ns, 1.0), 0.0).mean(axis=1)
    missed = [*inner[:1], *inner, *inner[-1:]] if len(inner) else [1.0, 1.0]
    places = [bisect_left(lane, point) for point in measured]
    for (one, other), (start, end), miss in zip(
        pairwise(measured), pairwise(places), map(max, pairwise(missed)), strict=True
    ):
        inside = end - start - 1
        step = any(_kernels(known[one], row) != _kernels(known[other], row) for row in rows)
        if inside and (step or miss > TOLERANCE):
            yield max(miss, TOLERANCE) * inside * (STEP_WEIGHT if step else 1), lane[(start + end) // 2]


def _rows(measured: Sequence[SweepPoint], known: Known) -> list[str]:
    return list(dict.fromkeys(row for point in measured for row in known[point].rows))


def _misses(measured: Sequence[SweepPoint], known: Known, rows: Sequence[str | None]) -> tuple[FloatArray, FloatArray]:
    """For all points but the two ends, [point, row]: latency, and how far off its interpolation is, in ns."""
    times_ns = np.array([[_time_ns(known[point], row) for row in rows] for point in measured])  # [point, row]
    at = np.array([point.cache_len for point in measured], dtype=np.float64)
    share = ((at[1:-1] - at[:-2]) / (at[2:] - at[:-2]))[:, np.newaxis]
    off_ns = np.abs(times_ns[:-2] * (1 - share) + times_ns[2:] * share - times_ns[1:-1])
    return times_ns[1:-1], off_ns


def _time_ns(record: PointRecord, row: str | None) -> float:
    """Of a row, which took no time if it launched nothing; None: of the whole pass."""
    if row is None:
        return record.whole_pass.trimmed_mean_ns
    return record.rows[row].measurement.trimmed_mean_ns if row in record.rows else 0.0


def _kernels(record: PointRecord, row: str) -> tuple[str, ...]:
    return record.rows[row].kernels if row in record.rows else ()


def _between(one: SweepPoint, point: SweepPoint, other: SweepPoint, known: Known, run: int) -> PointRecord:
    """The record of `point` on the lines from one neighbour to the other; what is no time is the nearer one's."""
    share = (point.cache_len - one.cache_len) / (other.cache_len - one.cache_len)
    near = known[one if share <= 0.5 else other]
    rows = dict(near.rows) | {row: r for row, r in known[one].rows.items() if row not in near.rows}

    def interpolated(of_one: float, of_other: float) -> Measurement:
        unknown = math.nan  # of passes that nobody ran
        return Measurement(0, of_one * (1 - share) + of_other * share, *[unknown] * 5)

    return replace(
        near,
        rows={
            name: replace(row, measurement=interpolated(_time_ns(known[one], name), _time_ns(known[other], name)))
            for name, row in rows.items()
        },
        whole_pass=interpolated(known[one].whole_pass.trimmed_mean_ns, known[other].whole_pass.trimmed_mean_ns),
        timed_by="interpolation",
        sm_clock_mhz=None,
        overlap=0.0,
        notes=(),
        run=run,
        source=FILLED,
    )
