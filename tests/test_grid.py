"""Which points an adaptive grid measures, and what it makes of the others."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_profile.measurement import Measurement
from llm_profile.points import SweepPoint
from llm_profile.records import FILLED, PointRecord, RowRecord
from llm_profile.sweep import GRID_NAMES, Sweep
from llm_profile.timing import grid
from llm_profile.timing.grid import GRIDS, ROUND, filled, leave_one_out, most_measured, next_points

Latency = Callable[[SweepPoint], tuple[float, str]]
"""Nanoseconds of the one row at a point, and its kernel."""

OOM = "out of memory"


def record(time_ns: float, kernel: str = "k") -> PointRecord:
    one = Measurement(10, time_ns, *[time_ns] * 5)
    return PointRecord({"row": RowRecord(one, 1, 1, (kernel,))}, one, "fake", 1980.0, 0.0, (), run=0)


def line(point: SweepPoint) -> tuple[float, str]:
    return 10_000.0 + 700 * point.total_len, "k"


def explore(
    points: list[SweepPoint],
    latency: Latency,
    fails_from: int | None = None,
    known: dict[SweepPoint, PointRecord] | None = None,
) -> tuple[dict[SweepPoint, PointRecord], dict[SweepPoint, str]]:
    """What an adaptive grid measures of a device that is known, and what fails there."""
    known = dict(known or {})
    failed: dict[SweepPoint, str] = {}
    while asked := next_points(points, known, failed):
        assert len(set(asked)) == len(asked) and not {*asked} & {*known, *failed} and {*asked} <= {*points}
        for point in asked:
            if fails_from is not None and point.total_len >= fails_from:
                failed[point] = OOM
            else:
                known[point] = record(*latency(point))
    return known, failed


FULL = Sweep("both", 2048, 2048).points()


def test_every_name_has_its_grid() -> None:
    assert tuple(GRIDS) == GRID_NAMES


def test_a_full_grid_is_every_point_once() -> None:
    points, full = Sweep("both", 9, 9).points(), GRIDS["full"]
    known = {point: record(1.0) for point in points[:5]}
    assert full.next_points(points, known, {points[7]}) == [*points[5:7], *points[8:]]
    assert full.left(points, known) == (len(points) - 5, len(points))
    assert full.next_points(points, {point: record(1.0) for point in points}, ()) == []


def test_short_sweeps_are_measured_whole() -> None:
    points = Sweep("both", 32, 32).points()
    assert len(points) == ROUND
    assert next_points(points, {}, {}) == points
    known, failed = explore(points, line)
    assert len(known) == ROUND and not filled(points, known, failed, 0)


@pytest.mark.parametrize(
    "points",
    [
        FULL,
        Sweep("prefill", 5000).points(),
        Sweep("both", 4096, 300).points(),
        Sweep("both", 2048, 2048, 8, 8).points(),
    ],
)
def test_at_most_its_share_is_measured_and_the_rest_is_on_the_line(points: list[SweepPoint]) -> None:
    known, failed = explore(points, line)
    assert len(known) <= most_measured(len(points)) < len(points)
    made = filled(points, known, failed, run=3)
    assert {*made, *known} == {*points} and not {*made} & {*known}
    for point, of_point in made.items():
        assert isinstance(of_point, PointRecord)
        assert (of_point.source, of_point.run, of_point.timed_by, of_point.sm_clock_mhz) == (
            FILLED,
            3,
            "interpolation",
            None,
        )
        assert of_point.rows["row"].measurement.n == 0
        assert of_point.rows["row"].measurement.trimmed_mean_ns == pytest.approx(line(point)[0])
        assert of_point.whole_pass.trimmed_mean_ns == pytest.approx(line(point)[0])
    error = leave_one_out(points, known)
    assert error is not None and error.p99 < 1e-9


@given(st.integers(66, 1983))
@settings(max_examples=30, deadline=None)
def test_a_step_is_found_to_the_token(at: int) -> None:
    """Where another kernel takes over, both sides are measured, in each lane that has the step."""

    def step(point: SweepPoint) -> tuple[float, str]:
        time_ns, _ = line(point)
        return (time_ns, "short") if point.total_len < at else (1.5 * time_ns, "long")

    known, failed = explore(FULL, step)
    for of_point, made in filled(FULL, known, failed, 0).items():
        assert isinstance(made, PointRecord)
        assert made.rows["row"].measurement.trimmed_mean_ns == pytest.approx(step(of_point)[0])
        assert made.rows["row"].kernels == (step(of_point)[1],)


def test_aligned_prompts_have_a_line_of_their_own() -> None:
    def latency(point: SweepPoint) -> tuple[float, str]:
        time_ns, _ = line(point)
        aligned = point.kind == "prefill" and point.input_len % 8 == 0
        return (0.8 * time_ns, "aligned") if aligned else (time_ns, "other")

    known, failed = explore(FULL, latency)
    for of_point, made in filled(FULL, known, failed, 0).items():
        assert isinstance(made, PointRecord)
        assert made.rows["row"].measurement.trimmed_mean_ns == pytest.approx(latency(of_point)[0])


def test_points_go_where_interpolation_misses() -> None:
    def bent(point: SweepPoint) -> tuple[float, str]:
        over = max(0, point.total_len - 1500) if point.kind == "prefill" else 0
        return 20_000.0 + 0.5 * over**2, "k"

    known, _ = explore(FULL, bent)
    more = [p for p in known if p.kind == "prefill" and p.input_len % 64 not in (0, 1, 8, 63)]
    assert more and min(p.input_len for p in more) > 1400, "none where the line is straight"


@pytest.mark.parametrize("fails_from", [2, 70, 1000, 1500, 2048])
def test_memory_that_ends_is_searched_for_and_every_point_accounted_for(fails_from: int) -> None:
    known, failed = explore(FULL, line, fails_from)
    made = filled(FULL, known, failed, 0)
    assert sorted([*known, *failed, *made]) == sorted(FULL)
    for point, of_point in made.items():
        fits = point.total_len < fails_from
        assert isinstance(of_point, PointRecord) == fits
        assert fits or of_point == f"{OOM} at a shorter length"
    assert max(point.total_len for point in known) == fails_from - 1
    assert len(failed) < most_measured(len(FULL))


def test_nothing_fits() -> None:
    known, failed = explore(FULL, line, fails_from=1)
    assert not known and set(filled(FULL, known, failed, 0).values()) == {f"{OOM} at a shorter length"}


@given(st.sets(st.sampled_from(FULL), max_size=300))
@settings(max_examples=20, deadline=None)
def test_whatever_is_known_already_it_comes_to_an_end(before: set[SweepPoint]) -> None:
    known, failed = explore(FULL, line, known={point: record(*line(point)) for point in before})
    made = filled(FULL, known, failed, 0)
    assert {*known, *made} == {*FULL} and all(isinstance(of_point, PointRecord) for of_point in made.values())
    assert len(known) <= max(most_measured(len(FULL)), len(before) + most_measured(len(FULL)) // 2)


def test_filled_points_count_as_unknown() -> None:
    known, failed = explore(FULL, line)
    made = {
        point: of_point
        for point, of_point in filled(FULL, known, failed, 0).items()
        if isinstance(of_point, PointRecord)
    }
    assert next_points(FULL, known | made, failed) == []
    assert GRIDS["full"].next_points(FULL, known | made, failed) == [point for point in FULL if point in made]
    assert filled(FULL, known | made, failed, 1).keys() == made.keys()
    assert GRIDS["adaptive"].left(FULL, known | made) == (0, most_measured(len(FULL)))


def test_a_row_that_launched_nothing_took_no_time() -> None:
    points = Sweep("prefill", 512).points()
    known, failed = explore(points, line)
    bare = max(known)
    known[bare] = PointRecord({}, known[bare].whole_pass, "fake", None, 0.0, (), 0)
    between = [
        point for one, other in pairwise(sorted(known)) if other == bare for point in points if one < point < other
    ]
    for point in between:
        made = filled(points, known, failed, 0)[point]
        assert isinstance(made, PointRecord)
        assert 0 < made.rows["row"].measurement.trimmed_mean_ns < line(point)[0]


def test_the_error_of_filling_is_that_of_leaving_one_out() -> None:
    points = [SweepPoint(n, 0) for n in (1, 2, 3)]
    known = {point: record(time_ns) for point, time_ns in zip(points, (100.0, 150.0, 100.0), strict=True)}
    error = leave_one_out(points, known)
    assert error is not None
    assert (error.mean, error.p99, error.n) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 1)
    longer = {point: replace(r, whole_pass=record(1000.0).whole_pass) for point, r in known.items()}
    assert leave_one_out(points, longer) == error
    whole = leave_one_out(points, longer, whole_passes=True)
    assert whole is not None and (whole.mean, whole.n) == (0.0, 1)
    assert leave_one_out(points[:2], known) is None


def test_tiles_grow_until_their_edges_are_few() -> None:
    points = Sweep("both", 2048, 2048, 8, 8).points()
    first = next_points(points, {}, {})
    assert 2 < len(first) <= most_measured(len(points)) // 2
    assert {SweepPoint(1, 0), SweepPoint(2048, 0), SweepPoint(1, 2048)} <= {*first}
    assert grid.TILE == 64 and {SweepPoint(64, 0), SweepPoint(65, 0)} <= {*next_points(FULL, {}, {})}
