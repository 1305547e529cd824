import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.sweep import Sweep, every, plan

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
