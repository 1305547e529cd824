"""Time left, against a clock that is simulated: points and steps take times of which the estimate knows nothing."""

import random
from collections.abc import Callable, Sequence

import pytest

from llm_profile.cli.sweep_time_left import SweepTimeLeft
from llm_profile.cli.validation_time_left import Part, ValidationTimeLeft, parts_of
from llm_profile.points import SweepPoint
from llm_profile.request import ScalingRequest
from llm_profile.sweep import Sweep
from llm_profile.timing.grid import GRIDS, most_measured
from llm_profile.validation.processes import ProcessReality
from llm_profile.validation.validate import validate_over_depths
from tests.fake_reality import make_table
from tests.test_processes import Host

FROM, TO, OFF = 0.1, 0.95, 0.2
"""Between these shares of the time, the time left is to be right to within this ratio."""

Cost = Callable[[SweepPoint], float]


def cost(seed: int, prompt: tuple[float, float] = (14, 20), decode: tuple[float, float] = (12, 0.3)) -> Cost:
    """Seconds of a point: milliseconds of any, and further ones at 2,048 tokens, with noise and some slow points."""
    chance = random.Random(seed)

    def seconds(point: SweepPoint) -> float:
        fixed, more = prompt if point.kv_len == 0 else decode
        return (fixed + more * point.total_len / 2048) / 1e3 * chance.choice([1] * 20 + [3]) * chance.uniform(0.8, 1.2)

    return seconds


def worst(
    asked: Sequence[SweepPoint], rounds: Sequence[Sequence[SweepPoint]], most: int, of: Cost, session: int = 1
) -> float:
    """Largest relative error of the time left, at the last result of each session. The first one needs more time."""
    sessions = [points[at : at + session] for points in rounds for at in range(0, len(points), session)]
    took_s = [sum(map(of, points)) for points in sessions]
    took_s[0] += 0.02 * sum(took_s)
    estimate, now_s, whole_s = SweepTimeLeft(asked, most, started_s=100.0), 0.0, sum(took_s)
    errors = []
    for points, seconds in zip(sessions, took_s, strict=True):
        now_s += seconds
        for point in points:
            estimate.result(point, 100.0 + now_s)
        if FROM <= now_s / whole_s <= TO:
            left_s = estimate.left_s(100.0 + now_s)
            assert left_s is not None
            errors.append(left_s / (whole_s - now_s) - 1)
    assert len(errors) > 20
    return max(map(abs, errors))


def in_order(order: str, seed: int, points: Sequence[SweepPoint] = tuple(Sweep().points())) -> list[SweepPoint]:
    shuffled = random.Random(seed).sample(points, len(points))
    first = {"mixed": "", "decode first": "decode", "prefill first": "prefill"}[order]
    return sorted(shuffled, key=lambda point: first not in ("", point.kind))


HOSTS: dict[str, dict[str, tuple[float, float]]] = {
    "as assumed": {},
    "three times slower": {"prompt": (42, 60), "decode": (36, 1)},
    "long prompts": {"prompt": (14, 28)},
    "slow decode": {"decode": (13, 0.4)},
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("order", ["mixed", "decode first", "prefill first"])
@pytest.mark.parametrize("session", [1, 16])
def test_the_time_left_of_a_sweep_is_right_after_a_tenth(order: str, host: str, session: int) -> None:
    for seed in range(3):
        points = in_order(order, seed)
        assert worst(points, [points], len(points), cost(seed, **HOSTS[host]), session) < OFF


@pytest.mark.parametrize(
    "host",
    [
        {"prompt": (5.0, 80.0)},  # steep
        {"prompt": (60.0, 1.0), "decode": (3.0, 0.0)},
        {"prompt": (2.0, 4.0), "decode": (30.0, 20.0)},
    ],
)
def test_mixed_orders_need_no_right_assumption(host: dict[str, tuple[float, float]]) -> None:
    points = in_order("mixed", 1)
    assert worst(points, [points], len(points), cost(1, **host)) < OFF


def test_points_of_later_rounds_are_counted_before_they_are_known() -> None:
    """An adaptive grid whose later rounds have more prompts, as these have more steps."""
    points = Sweep().points()
    first = GRIDS["adaptive"].next_points(points, {}, ())
    most = most_measured(len(points))
    assert len(first) < most
    chance = random.Random(3)
    prompts = chance.sample([p for p in points if p.kv_len == 0 and p not in first], 2 * (most - len(first)) // 3)
    decode = chance.sample([p for p in points if p.kv_len and p not in first], most - len(first) - len(prompts))
    later = chance.sample([*prompts, *decode], most - len(first))
    rounds = [in_order("mixed", 3, points) for points in (first, later[:64], later[64:128], later[128:])]
    assert worst(first, rounds, most, cost(3), session=8) < OFF


def test_a_resumed_sweep_counts_what_is_left() -> None:
    left = [point for point in in_order("mixed", 5) if point.kv_len == 0][:500]
    assert worst(left, [left], len(left), cost(5)) < OFF


def test_time_goes_on_between_results_and_what_is_measured_again_is_not_counted() -> None:
    one, other = SweepPoint(8, 0), SweepPoint(9, 0)
    estimate = SweepTimeLeft([one, other], 2, started_s=0.0)
    assert estimate.left_s(5.0) is None, "nothing is known"
    estimate.result(one, 50.0)
    assert estimate.left_s(50.0) is None, "that may have been what is done once"
    estimate.result(one, 60.0)
    assert estimate.left_s(60.0) == pytest.approx(10, rel=0.01)
    assert estimate.left_s(64.0) == pytest.approx(6, rel=0.02) and estimate.left_s(99.0) == 0
    estimate.result(other, 70.0)
    estimate.result(one, 80.0)
    assert estimate.left_s(80.0) is None, "only points that are measured again"


# ---- validation


TABLE = make_table()
PAIRS = tuple((i, o) for i in (32, 64, 96, 128) for o in (16, 32, 48, 64))


@pytest.mark.parametrize(("depth", "other_depths"), [(None, None), (4, None), (6, (2, 3))])
def test_the_parts_are_those_that_are_done(depth: int | None, other_depths: tuple[int, ...] | None) -> None:
    wanted = ScalingRequest(PAIRS, num_layers=depth, other_depths=other_depths, repeat=2, processes=3)
    done: list[str] = []

    def open_at(of: int) -> ProcessReality:
        return Host().reality(3, of, tick=done.append)

    validate_over_depths(TABLE, open_at, PAIRS, depth=depth, other_depths=other_depths, repeat=2)
    assert [part.sort for part in parts_of(TABLE, wanted)] == done


def test_the_time_left_of_a_validation() -> None:
    """Right once one process has run a round, and none before its model is open."""
    parts = parts_of(TABLE, ScalingRequest(PAIRS, repeat=3, processes=3))
    took_s = {"open": 15.0, "prepare": 7.0, "round": 4.0, "batched": 0.8}
    estimate, now_s = ValidationTimeLeft(parts, 0.0), 0.0
    whole_s = sum(took_s[part.sort] for part in parts)
    seen = []
    for part in parts:
        now_s += took_s[part.sort]
        estimate.part_done(part.sort, now_s)
        seen.append((part.sort, now_s, estimate.left_s(now_s)))
    assert seen[0][2] is None
    assert seen[1][2] == pytest.approx(whole_s - seen[1][1], rel=0.2), "assumed of rounds: half of the first time"
    for _sort, at_s, left_s in seen[2:-2]:
        assert left_s == pytest.approx(whole_s - at_s, rel=0.2)
    assert seen[-1][2] == 0 and estimate.done_steps == estimate.total_steps > 0


def test_parts_of_another_depth_take_as_much_longer() -> None:
    parts = [Part("open", 0, 2), Part("prepare", 10, 20), Part("round", 10, 20)]
    parts += [Part("open", 0, 4), Part("prepare", 10, 40), Part("round", 10, 40)]
    estimate = ValidationTimeLeft(parts, 0.0)
    for sort, now_s in (("open", 3.0), ("prepare", 5.0), ("round", 6.0)):
        estimate.part_done(sort, now_s)
    assert estimate.left_s(6.0) == pytest.approx(2 * 6.0) and estimate.left_s(8.0) == pytest.approx(10.0)
