import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.measurement import Measurement, StoppingRule

PASSES = st.lists(st.integers(1, 10**9), min_size=1, max_size=60)


@given(PASSES, st.integers(1, 8))
def test_median_is_per_block_and_rounded_half_up(pass_ns: list[int], blocks: int) -> None:
    measured = Measurement.of(pass_ns, blocks)
    assert measured.median_ns == pytest.approx(statistics.median(pass_ns) / blocks)
    assert abs(measured.latency_ns - measured.median_ns) <= 0.5
    assert measured.min_ns <= measured.q1_ns <= measured.median_ns <= measured.q3_ns <= measured.max_ns
    assert measured.n == len(pass_ns)


def test_half_a_nanosecond_rounds_up() -> None:
    assert Measurement.of([2, 3]).latency_ns == 3
    assert Measurement.of([5], 2).latency_ns == 3


def test_nothing_measured_is_not_zero() -> None:
    with pytest.raises(ValueError, match="no passes"):
        Measurement.of([])


def run(rule: StoppingRule, draw: random.Random, noise: float) -> int:
    """Passes that a rule asks for when each pass has normal noise."""
    passes: list[int] = []
    while wanted := rule.passes_wanted(passes):
        passes += [round(1e6 * (1 + noise * draw.gauss(0, 1))) for _ in range(wanted)]
    return len(passes)


@pytest.mark.parametrize(("noise", "least", "most"), [(0.001, 10, 10), (0.04, 12, 60), (0.5, 100, 100)])
def test_quiet_points_stop_early_and_hopeless_noise_ends(noise: float, least: int, most: int) -> None:
    counts = [run(StoppingRule(), random.Random(seed), noise) for seed in range(20)]
    assert least <= statistics.median(counts) <= most
    assert max(counts) <= 100


def test_median_reaches_the_precision_that_was_asked_for() -> None:
    draw, errors = random.Random(1), []
    for _ in range(200):
        passes: list[int] = []
        rule = StoppingRule(repeat=10_000, precision=0.01)
        while wanted := rule.passes_wanted(passes):
            passes += [round(1e6 * (1 + 0.05 * draw.gauss(0, 1))) for _ in range(wanted)]
        errors.append(Measurement.of(passes).median_ns / 1e6 - 1)
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
