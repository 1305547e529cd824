import random
import statistics
from dataclasses import astuple
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.measurement import IQR_TO_SIGMA, MIN_PASSES, Measurement, StoppingRule

PASSES = st.lists(st.integers(1, 10**9), min_size=1, max_size=60)


def trimmed(pass_ns: list[int], blocks: int) -> Fraction:
    """The trimmed mean, exactly: of 1 to 2 passes none is dropped, of 3 to 19 one at each end, of 20 to 29 two."""
    kept = sorted(pass_ns)
    for _ in range(0 if len(pass_ns) < 3 else 1 if len(pass_ns) < 20 else len(pass_ns) // 10):
        kept.remove(min(kept))
        kept.remove(max(kept))
    return Fraction(sum(kept), len(kept) * blocks)


@given(PASSES, st.integers(1, 8))
def test_statistics_are_per_block(pass_ns: list[int], blocks: int) -> None:
    measured = Measurement.of(pass_ns, blocks)
    assert measured.n == len(pass_ns)
    assert measured.trimmed_mean_ns == pytest.approx(float(trimmed(pass_ns, blocks)), rel=1e-15)
    assert measured.median_ns == pytest.approx(statistics.median(pass_ns) / blocks)
    assert measured.min_ns <= measured.q1_ns <= measured.median_ns <= measured.q3_ns <= measured.max_ns
    assert measured.min_ns <= measured.trimmed_mean_ns <= measured.max_ns
    assert astuple(measured) == (measured.n, *measured.statistics_ns, None), "only predictions have intervals"


@given(PASSES, st.integers(1, 8))
def test_tables_carry_the_trimmed_mean_rounded_half_up(pass_ns: list[int], blocks: int) -> None:
    exact = trimmed(pass_ns, blocks) + Fraction(1, 2)
    assert Measurement.of(pass_ns, blocks).latency_ns == exact.numerator // exact.denominator


def test_half_a_nanosecond_rounds_up() -> None:
    assert Measurement.of([2, 3]).latency_ns == 3
    assert Measurement.of([5], 2).latency_ns == 3


@given(PASSES, st.randoms())
def test_the_order_of_passes_does_not_matter(pass_ns: list[int], chance: random.Random) -> None:
    assert Measurement.of(chance.sample(pass_ns, len(pass_ns)), 3) == Measurement.of(pass_ns, 3)


def test_two_modes_do_not_flip_the_number() -> None:
    """A pass more in one of the modes of a short kernel moves its median from mode to mode, its trimmed mean little."""
    fast, slow = [1_250] * 4, [1_450] * 4
    for more, median_ns, trimmed_mean_ns in (
        ([1_250, 1_250], 1_250, 1_325),  # five fast and three slow ones are left of ten
        ([1_250, 1_450], 1_350, 1_350),
        ([1_450, 1_450], 1_450, 1_375),
    ):
        measured = Measurement.of([*fast, *more, *slow])
        assert (measured.median_ns, measured.trimmed_mean_ns) == (median_ns, trimmed_mean_ns)


@pytest.mark.parametrize(
    ("pass_ns", "expected"),
    [
        ([7], 7),
        ([7, 90], 48.5),
        ([7, 90, 8], 8),  # three: the median
        ([7, 90, 8, 10], 9),
        ([*[10] * 17, 1_000, 1_000], 10 + 990 / 17),  # nineteen: one is dropped at each end
        ([*[10] * 18, 1_000, 1_000], 10),  # twenty: two
    ],
)
def test_how_many_passes_are_dropped(pass_ns: list[int], expected: float) -> None:
    assert Measurement.of(pass_ns).trimmed_mean_ns == pytest.approx(expected)


def test_relative_error_is_that_of_a_mean() -> None:
    """Sixteen passes, quartiles at 90 and 110: a sigma of 20 / 1.349, a quarter of it for the mean of 100."""
    measured = Measurement.of([90] * 8 + [110] * 8)
    assert measured.relative_error == pytest.approx(20 / IQR_TO_SIGMA / 4 / 100)
    lopsided = Measurement.of([100] * 7 + [200] * 3)  # two of the three are left: 125, whatever the median
    assert lopsided.relative_error == pytest.approx(75 / IQR_TO_SIGMA / 10**0.5 / 125)
    assert Measurement.of([0, 0, 0]).relative_error == 0


def test_nothing_measured_is_not_zero() -> None:
    with pytest.raises(ValueError, match="no passes"):
        Measurement.of([])


def run(rule: StoppingRule, draw: random.Random, noise: float, pass_ns: float = 1e5) -> int:
    """Passes that a rule asks for when each pass has normal noise."""
    passes: list[int] = []
    while wanted := rule.passes_wanted(passes):
        passes += [round(pass_ns * (1 + noise * draw.gauss(0, 1))) for _ in range(wanted)]
    return len(passes)


@pytest.mark.parametrize(("noise", "least", "most"), [(0.001, MIN_PASSES, MIN_PASSES), (0.04, 12, 60), (0.5, 100, 100)])
def test_quiet_points_stop_early_and_hopeless_noise_ends(noise: float, least: int, most: int) -> None:
    counts = [run(StoppingRule(), random.Random(seed), noise) for seed in range(20)]
    assert least <= statistics.median(counts) <= most
    assert max(counts) <= 100


@pytest.mark.parametrize(("pass_ns", "noise", "passes"), [(2e6, 0.001, 3), (2e6, 0.02, 6), (1e6, 0.001, 6)])
def test_three_long_passes_are_enough_if_they_are_alike(pass_ns: float, noise: float, passes: int) -> None:
    counts = [run(StoppingRule(), random.Random(seed), noise, pass_ns) for seed in range(20)]
    assert statistics.median(counts) == pytest.approx(passes, abs=1 if passes > 3 and noise > 0.01 else 0)


def test_the_number_reaches_the_precision_that_was_asked_for() -> None:
    draw, errors = random.Random(1), []
    for _ in range(200):
        passes: list[int] = []
        rule = StoppingRule(repeat=10_000, precision=0.01)
        while wanted := rule.passes_wanted(passes):
            passes += [round(1e6 * (1 + 0.05 * draw.gauss(0, 1))) for _ in range(wanted)]
        errors.append(Measurement.of(passes).trimmed_mean_ns / 1e6 - 1)
    assert statistics.pstdev(errors) < 0.015


@given(PASSES, st.integers(1, 100))
def test_zero_precision_asks_for_exactly_repeat(pass_ns: list[int], repeat: int) -> None:
    wanted = StoppingRule(repeat, 0.0).passes_wanted(pass_ns)
    assert wanted == max(0, repeat - len(pass_ns))


@given(PASSES, st.integers(1, 100), st.floats(0.0001, 0.5))
def test_never_asks_beyond_repeat(pass_ns: list[int], repeat: int, precision: float) -> None:
    wanted = StoppingRule(repeat, precision).passes_wanted(pass_ns)
    assert wanted >= 0
    assert wanted == 0 or len(pass_ns) + wanted <= repeat


def test_repeat_below_ten_is_respected() -> None:
    assert StoppingRule(repeat=3).passes_wanted([]) == 3
    assert StoppingRule(repeat=3).passes_wanted([1, 2, 9]) == 0
