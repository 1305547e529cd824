"""The measuring loop: order, what is measured again, and what is kept."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.measurement import StoppingRule
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Plan, Sweep, plan
from llm_profile.timing.loop import CLOCK_DROP, Progress, clocks_mhz, in_measuring_order, measure, slow_points
from tests.fake_command import TroubledBackend
from tests.table_samples import paths_in, writer

PLAN = plan(Sweep("both", 16, 16))
FULL_MHZ, LOW_MHZ = 1980.0, 1500.0


def measured(folder: Path, backend: TroubledBackend, laid_out: Plan = PLAN, seed: int = 0) -> LatencyTable:
    """A finished table of what the loop made of a backend."""
    with writer(folder, list(laid_out.points)) as table:
        measure(backend, laid_out, table, StoppingRule(2, 0.0), 0, seed)
        table.finish()
    return read_table(paths_in(folder).csv)


def test_every_point_is_measured_once_in_mixed_order(tmp_path: Path) -> None:
    backend = TroubledBackend()
    table = measured(tmp_path, backend)
    assert sorted(backend.asked) == sorted(PLAN.points) and table.points() == list(PLAN.points)
    assert all(
        {one.kind, two.kind} == {"decode", "prefill"}
        for one, two in zip(backend.asked[::2], backend.asked[1::2], strict=True)
    )
    assert [p for p in backend.asked if p.kv_len] != sorted(p for p in backend.asked if p.kv_len), "shuffled"


@given(st.integers(0, 2**63 - 1), st.integers(1, 40), st.integers(1, 40))
def test_the_order_depends_on_the_seed_alone(seed: int, prefill: int, decode: int) -> None:
    points = Sweep("both", prefill, decode).points()
    order = in_measuring_order(points, seed)
    assert order == in_measuring_order(points, seed)
    assert sorted(order) == sorted(points)
    for length in range(1, len(order) + 1):  # each beginning of the order has its share of both, to within one point
        share = sum(point.kind == "decode" for point in order[:length]) / length
        assert abs(share - decode / (decode + prefill)) * length <= 1


def test_progress_counts_points_and_not_results(tmp_path: Path) -> None:
    slow = SweepPoint(1, 9)
    told: list[Progress] = []
    with writer(tmp_path, list(PLAN.points)) as table:
        backend = TroubledBackend(clocks={slow: [LOW_MHZ, FULL_MHZ]})
        measure(backend, PLAN, table, StoppingRule(2, 0.0), 0, 0, told.append)
    assert [seen.done for seen in told] == [*range(1, 33), 32]
    assert {seen.total for seen in told} == {32}
    assert told[-1].result.point == slow


def test_a_point_at_a_low_clock_is_measured_again(tmp_path: Path) -> None:
    once, never = SweepPoint(1, 9), SweepPoint(12, 0)
    backend = TroubledBackend(clocks={once: [LOW_MHZ, FULL_MHZ], never: [LOW_MHZ, LOW_MHZ + 100, LOW_MHZ + 50]})
    table = measured(tmp_path, backend)
    assert Counter(backend.asked) == Counter(PLAN.points) + Counter({once: 1, never: 2}), "twice at most"
    assert backend.asked[32:] in ([once, never, never], [never, once, never])
    assert table.records[once].sm_clock_mhz == FULL_MHZ
    assert table.records[never].sm_clock_mhz == LOW_MHZ + 100, "the best of three"
    assert slow_points(clocks_mhz(table)) == [never], "and known to be doubtful"


def test_what_was_measured_again_is_told(tmp_path: Path) -> None:
    once, never = SweepPoint(1, 9), SweepPoint(12, 0)
    backend = TroubledBackend(clocks={once: [LOW_MHZ, FULL_MHZ], never: [LOW_MHZ]})
    with writer(tmp_path, list(PLAN.points)) as table:
        assert measure(backend, PLAN, table, StoppingRule(2, 0.0), 0, 0) == [never, once]
        assert measure(backend, PLAN, table, StoppingRule(2, 0.0), 0, 0) == [], "nothing was left"


def test_a_failure_does_not_undo_a_measurement(tmp_path: Path) -> None:
    slow = SweepPoint(16, 0)

    class OnceOnly(TroubledBackend):
        def sample(self, points, rule, warmup):  # type: ignore[no-untyped-def]
            yield from super().sample(points, rule, warmup)
            self._out_of_memory_at = 1

    table = measured(tmp_path, OnceOnly(clocks={slow: [LOW_MHZ]}))
    assert not table.missing and table.records[slow].sm_clock_mhz == LOW_MHZ


def test_an_unsteady_gpu_is_not_chased(tmp_path: Path) -> None:
    low = [SweepPoint(n, 0) for n in (9, 10, 11)] + [SweepPoint(1, k) for k in range(8, 14) if k != 10]
    backend = TroubledBackend(clocks={point: [LOW_MHZ] for point in low})
    in_group = slow_points({p: LOW_MHZ if p in low else FULL_MHZ for p in PLAN.points})
    assert 0 < len(in_group) <= 0.25 * 32
    measured(tmp_path / "some", backend)
    assert len(backend.asked) == 32 + len(in_group)
    many = [p for p in PLAN.points if p.total_len in (4, 5, 8, 9, 10, 16)]
    backend = TroubledBackend(clocks={point: [LOW_MHZ] for point in many})
    assert len(slow_points({p: LOW_MHZ if p in many else FULL_MHZ for p in PLAN.points})) > 0.25 * 32
    measured(tmp_path / "hopeless", backend)
    assert len(backend.asked) == 32


def test_points_of_an_earlier_run_are_what_clocks_are_held_against(tmp_path: Path) -> None:
    """One point that is left has no others of its run to be compared with."""
    last = SweepPoint(1, 9)
    with writer(tmp_path, list(PLAN.points)) as table:
        others = Plan(tuple(point for point in PLAN.points if point != last), {})
        measure(TroubledBackend(), others, table, StoppingRule(2, 0.0), 0, 0)
    backend = TroubledBackend(clocks={last: [LOW_MHZ, FULL_MHZ]})
    measured(tmp_path, backend)
    assert backend.asked == [last, last]


def test_points_that_cannot_run_are_missing_and_never_asked_for(tmp_path: Path) -> None:
    backend = TroubledBackend()
    table = measured(tmp_path, backend, plan(Sweep("both", 16, 16), learned_positions=10))
    assert max(point.total_len for point in backend.asked) == 10
    assert len(table.missing) == 13 and set(table.missing.values()) == {"beyond the model's 10 learned positions"}


def test_what_is_done_is_not_asked_for(tmp_path: Path) -> None:
    first = TroubledBackend(out_of_memory_at=14)
    with writer(tmp_path, list(PLAN.points)) as table:
        measure(first, PLAN, table, StoppingRule(2, 0.0), 0, 0)
    second = TroubledBackend()
    assert not measured(tmp_path, second).missing
    assert sorted(second.asked) == sorted(p for p in PLAN.points if p.total_len >= 14), "memory may have come free"


@given(st.dictionaries(st.integers(1, 64), st.floats(500, 2000), min_size=1, max_size=30))
def test_slow_points_are_below_the_median_of_their_like(clocks: dict[int, float]) -> None:
    of_points = {SweepPoint(n, 0): clock for n, clock in clocks.items()}
    slow = slow_points(of_points)
    assert slow == sorted(slow)
    for point, clock in of_points.items():
        alike = sorted(c for p, c in of_points.items() if p.total_len.bit_length() == point.total_len.bit_length())
        low, high = alike[(len(alike) - 1) // 2], alike[len(alike) // 2]
        assert (point in slow) == (clock < (1 - CLOCK_DROP) * (low + high) / 2)
    assert len(slow) <= len(clocks) / 2


def test_phases_and_lengths_have_clocks_of_their_own() -> None:
    clocks = {SweepPoint(n, 0): 1500.0 for n in range(64, 128)} | {SweepPoint(1, k): 1980.0 for k in range(64, 128)}
    clocks |= {SweepPoint(n, 0): 1800.0 for n in range(32, 64)}
    assert slow_points(clocks) == [] and slow_points({}) == []


@pytest.mark.parametrize("interval_s", [0.0, 60.0])
def test_the_journal_is_synced_along_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval_s: float
) -> None:
    monkeypatch.setattr("llm_profile.timing.loop.SYNC_INTERVAL_S", interval_s)
    synced: list[int] = []
    with writer(tmp_path, list(PLAN.points)) as table:
        sync = table.sync
        monkeypatch.setattr(table, "sync", lambda: (synced.append(len(table.done())), sync()))
        measure(TroubledBackend(), PLAN, table, StoppingRule(2, 0.0), 0, 0)
    assert synced == ([32] if interval_s else [*range(1, 33), 32])
