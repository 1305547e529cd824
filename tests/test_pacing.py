"""How long the device rests, against made-up GPUs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.pacing import CLOCK_DROP, LEAST_REST, LONGER, MOST_REST, Pacing

TOP_MHZ = 1980.0


def clocks(needed: float, share: float) -> list[tuple[float, bool]]:
    """Of a session's points on a GPU whose clock falls unless it rests so long; short prompts need less."""
    return [(TOP_MHZ - 200 * max(0.0, needed * part - share), True) for part in (0.1, 0.4, 0.7, 1.0)]


@pytest.mark.parametrize("needed", [0.0, 0.3, LEAST_REST])
def test_a_clock_that_stays_up_asks_for_no_more_rest(needed: float) -> None:
    pacing = Pacing()
    for _ in range(20):
        pacing.heed(clocks(needed, pacing.share))
    assert pacing.share == pacing.most == LEAST_REST


def test_it_rests_longer_until_the_clock_is_up_and_no_longer_than_that() -> None:
    needed = 1.9
    pacing = Pacing()
    shares = []
    for _ in range(60):
        seen = clocks(needed, pacing.share)
        shares.append(pacing.share)
        pacing.heed(seen)
    assert sorted(seen)[1][0] >= (1 - 2 * CLOCK_DROP) * TOP_MHZ
    assert 1.0 < sum(shares[20:]) / 40 < needed, "as long as needed, not as long as allowed"
    for _ in range(60):
        pacing.heed([(TOP_MHZ, True)])
    assert pacing.share == LEAST_REST and pacing.most == max(shares), "back again once there is no need"


def test_a_hopeless_clock_costs_no_more_than_the_longest_rest() -> None:
    pacing = Pacing()
    pacing.heed([(TOP_MHZ, True)])
    for _ in range(50):
        pacing.heed([(0.8 * TOP_MHZ, True)])
    assert pacing.share == pacing.most == MOST_REST


def test_one_slow_point_of_a_session_is_no_reason() -> None:
    pacing = Pacing()
    pacing.heed([(1500.0, True)] + [(TOP_MHZ, True)] * 7)
    assert pacing.share == LEAST_REST


def test_points_that_need_no_rest_say_how_high_the_clock_can_be_and_nothing_else() -> None:
    pacing = Pacing()
    pacing.heed([(TOP_MHZ, False), (0.8 * TOP_MHZ, False)])
    assert pacing.share == LEAST_REST
    pacing.heed([(0.98 * TOP_MHZ, True)])
    assert pacing.share == LEAST_REST * LONGER


@given(st.lists(st.lists(st.tuples(st.none() | st.floats(1, 4000), st.booleans()), max_size=8), max_size=20))
def test_whatever_the_clocks_the_rest_stays_in_bounds(sessions: list[list[tuple[float | None, bool]]]) -> None:
    pacing = Pacing()
    for session in sessions:
        before = pacing.share
        pacing.heed(session)
        assert LEAST_REST <= pacing.share <= pacing.most <= MOST_REST
        if not any(clock and needs_rest for clock, needs_rest in session):
            assert pacing.share == before, "nothing known, nothing changed"
