import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.sweep import DECODE, GRID_NAMES, MODES, PREFILL, SERIES, Series, Sweep, every, plan, series_of
from tests.table_samples import NOT_FLAT

LENGTHS = st.integers(1, 300)


def test_readme_sweep_has_every_length_once() -> None:
    points = Sweep().points()
    assert points[:2048] == [SweepPoint(n, 0) for n in range(1, 2049)]
    assert points[2048:] == [SweepPoint(1, k) for k in range(1, 2049)]


@given(step=LENGTHS, first=st.integers(0, 50), last=st.integers(50, 400))
def test_grid_has_both_ends_and_every_multiple(step: int, first: int, last: int) -> None:
    grid = every(step, first, last)
    assert grid == sorted(set(grid))
    assert (grid[0], grid[-1]) == (first, last)
    assert set(range(first, last + 1, 1)) & {m * step for m in range(last + 1)} <= set(grid)
    assert all(n % step == 0 for n in grid[1:-1])


@given(mode=st.sampled_from(["prefill", "decode", "both"]), prefill=LENGTHS, decode=LENGTHS, a=LENGTHS, b=LENGTHS)
def test_points_are_unique_and_one_token_pass_is_shared(mode: str, prefill: int, decode: int, a: int, b: int) -> None:
    points = Sweep(mode, prefill, decode, a, b).points()
    assert len(points) == len(set(points))
    assert SweepPoint(1, 0) in points
    assert all(p.kv_len == 0 or p.input_len == 1 for p in points)
    assert (SweepPoint(prefill, 0) in points) == (mode != "decode" or prefill == 1)
    assert (SweepPoint(1, decode) in points) == (mode != "prefill")


def test_learned_positions_end_the_sweep() -> None:
    laid_out = plan(Sweep(), learned_positions=2048)
    assert len(laid_out.points) == 4096
    assert list(laid_out.unrunnable) == [SweepPoint(1, 2048)]
    assert len(laid_out.left([])) == 4095
    assert plan(Sweep()).unrunnable == {}


def test_left_drops_what_is_known_and_keeps_order() -> None:
    laid_out = plan(Sweep("prefill", prefill_max=5))
    assert laid_out.left([SweepPoint(2, 0), SweepPoint(4, 0)]) == [SweepPoint(1, 0), SweepPoint(3, 0), SweepPoint(5, 0)]


@pytest.mark.parametrize("field", ["prefill_max", "decode_max", "prefill_step", "decode_step"])
def test_ranges_are_refused_by_option_name(field: str) -> None:
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} 0"):
        Sweep(**{field: 0})


def test_unknown_mode_names_the_modes() -> None:
    with pytest.raises(UsageError, match="prefill, decode, both"):
        Sweep("sideways")


SWEEPS = st.builds(Sweep, st.sampled_from([*MODES]), *[st.integers(1, 40)] * 4, st.sampled_from(GRID_NAMES))


@pytest.mark.parametrize(
    ("point", "names", "counts_to"),
    [
        (SweepPoint(1, 0), ["prefill", "decode"], "prefill"),
        (SweepPoint(9, 0), ["prefill"], "prefill"),
        (SweepPoint(1, 9), ["decode"], "decode"),
        *((point, [], None) for point in NOT_FLAT),
    ],
    ids=str,
)
def test_points_lie_on_series(point: SweepPoint, names: list[str], counts_to: str | None) -> None:
    assert [name for name, series in SERIES.items() if series.has(point)] == names
    assert series_of(point) == counts_to


def test_a_series_picks_its_points_by_length() -> None:
    points = [SweepPoint(1, 9), SweepPoint(12, 0), *NOT_FLAT, SweepPoint(1, 0), SweepPoint(3, 0), SweepPoint(1, 2)]
    assert PREFILL.of(points) == [SweepPoint(1, 0), SweepPoint(3, 0), SweepPoint(12, 0)]
    assert DECODE.of(points) == [SweepPoint(1, 0), SweepPoint(1, 2), SweepPoint(1, 9)]


@pytest.mark.parametrize(
    ("series", "length", "point"),
    [
        (Series(SweepPoint(2, 512), "input_len"), 64, SweepPoint(64, 512)),
        (Series(SweepPoint(1, 1024), "batch"), 64, SweepPoint(1, 1024, 64)),
        (Series(SweepPoint(1, 16, 64), "kv_len"), 99, SweepPoint(1, 99, 64)),
    ],
    ids=str,
)
def test_chunks_and_batches_can_be_series_too(series: Series, length: int, point: SweepPoint) -> None:
    assert series.at(length) == point and series.has(point) and series.length(point) == length
    assert series.at(series.first) == series.start
    assert not series.has(SweepPoint(1, 0)) and not any(map(series.has, NOT_FLAT))


@given(SWEEPS)
def test_a_sweep_knows_its_points_without_laying_them_out(sweep: Sweep) -> None:
    near = {SweepPoint(n, 0) for n in range(1, 45)} | {SweepPoint(1, k) for k in range(45)}
    assert {point for point in [*near, *NOT_FLAT] if point in sweep} == {*sweep.points()}


@given(SWEEPS)
def test_a_sweep_is_what_its_record_says(sweep: Sweep) -> None:
    assert Sweep.of_record(json.loads(json.dumps(sweep.record()))) == sweep


def test_sweeps_of_before_the_grids_measured_every_point() -> None:
    record = {"mode": "both", "prefill_max": 9, "decode_max": 8, "prefill_step": 2, "decode_step": 4}
    assert Sweep.of_record(record) == Sweep("both", 9, 8, 2, 4, "full")


@pytest.mark.parametrize(
    "record",
    [
        None,
        3,
        "both",
        [],
        {"mode": "sideways"},
        {"mode": []},
        {"prefill_max": "9"},
        {"prefill_max": 0},
        {"axes": ["x"]},
    ],
    ids=str,
)
def test_what_is_no_sweep_has_no_points(record: object) -> None:
    assert Sweep.of_record(record) is None
