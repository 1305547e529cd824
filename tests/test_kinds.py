"""What each that takes points makes of chunks, batches and compositions: it handles them, or refuses them by name."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from llm_profile.cli import planning, summary
from llm_profile.errors import UsageError
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.models.hub import ModelSource
from llm_profile.passes.runner import PassRunner
from llm_profile.points import KINDS, SweepPoint
from llm_profile.records import PointRecord
from llm_profile.request import Request
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Plan, Sweep
from llm_profile.timing.backends.cpu_wall import CpuWallBackend
from llm_profile.timing.backends.fake import ROWS, FakeBackend, row_ns
from llm_profile.timing.grid import GRIDS, Grid, filled, leave_one_out, most_measured
from llm_profile.timing.loop import in_measuring_order, measure, slow_points
from llm_profile.validation.estimate import Estimate, check_pairs
from llm_profile.validation.judgement import judge_batches
from llm_profile.validation.measured_steps import MeasuredSteps
from llm_profile.validation.scaled_table import scaled_table
from tests import tiny
from tests.fake_reality import make_table
from tests.table_samples import NOT_FLAT, paths_in, writer

SWEEP = Sweep("both", 700, 500)
CHUNK = SweepPoint(4, 8)
ONCE = StoppingRule(2, 0.0)


def named(point: SweepPoint) -> str:
    return re.escape(str(point))


def fake_record(point: SweepPoint) -> PointRecord:
    (sample,) = FakeBackend().sample([point], ONCE, 0)
    assert isinstance(sample, PointSample)
    return PointRecord.of(sample, 0)


# ---- the grid and the loop


def test_an_adaptive_grid_measures_all_that_lies_on_no_series_and_fills_the_rest() -> None:
    flat, grid = SWEEP.points(), GRIDS["adaptive"]
    points = [*NOT_FLAT, *flat]
    assert grid.next_points(points, {}, ()) == sorted(NOT_FLAT)
    known = {point: fake_record(point) for point in NOT_FLAT[1:]}
    failed = {NOT_FLAT[0]: "out of memory"}
    assert grid.next_points(points, known, failed) == grid.next_points(flat, {}, ()) != []
    assert grid.most(points) == most_measured(len(flat)) + len(NOT_FLAT)
    while asked := grid.next_points(points, known, failed):
        known |= {point: fake_record(point) for point in asked}
    assert sum(point.is_flat for point in known) <= most_measured(len(flat))
    assert {*filled(points, known, failed, 0)} == {*flat} - {*known}
    assert leave_one_out(points, known) == leave_one_out(flat, known)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_sweep_of_all_kinds_comes_to_its_end(tmp_path: Path, grid: Grid) -> None:
    laid_out = Plan((*SWEEP.points(), *NOT_FLAT), {})
    with writer(tmp_path, list(laid_out.points)) as table:
        measure(FakeBackend(), laid_out, table, ONCE, 0, 0, grid=grid)
        table.finish()
    known = read_table(paths_in(tmp_path).csv)
    assert {*known.records} == {*laid_out.points} and not known.missing
    assert all(known.records[point].is_measured for point in NOT_FLAT)


def test_every_kind_has_a_place_in_the_order() -> None:
    points = [*NOT_FLAT, *SWEEP.points()]
    order = in_measuring_order(points, seed=3)
    assert sorted(order) == sorted(points) and {point.kind for point in order} == {*KINDS}


def test_clocks_are_held_against_points_of_like_load() -> None:
    small = {SweepPoint(1, 1000 + n, 2): 1980.0 for n in range(9)}
    large = {SweepPoint(1, 1000 + n, 64): 1700.0 for n in range(9)}
    assert slow_points(small | large) == []
    assert slow_points(large | {SweepPoint(1, 1020, 64): 1500.0}) == [SweepPoint(1, 1020, 64)]


# ---- who runs points


@pytest.mark.parametrize("point", NOT_FLAT, ids=str)
def test_the_fake_device_makes_up_times_of_all_tokens(point: SweepPoint) -> None:
    record = fake_record(point)
    for row, (_in_block, base, per_input, per_cached) in ROWS.items():
        of_sequences = sum(per_input * tokens + per_cached * history for tokens, history in point.sequences)
        assert row_ns(row, point) == base + of_sequences
        assert record.rows[row].measurement.trimmed_mean_ns == pytest.approx(base + of_sequences, rel=0.03)


@pytest.fixture(scope="module")
def llama() -> Iterator[CpuWallBackend]:
    backend = CpuWallBackend(tiny.subject("llama", num_layers=4))
    yield backend
    backend.close()


@pytest.mark.parametrize("point", [*NOT_FLAT[1:], SweepPoint(33, 0)], ids=str)
def test_no_runner_takes_a_point_for_another(llama: CpuWallBackend, point: SweepPoint) -> None:
    with pytest.raises(ValueError, match=f"{named(point)}: this runner has 1 sequences of one length, of 32 tokens"):
        llama.subject.runner.run(point)
    with pytest.raises(ValueError, match=named(point)):
        list(llama.sample([point], ONCE, 0))


def test_a_runner_of_a_batch_runs_it_and_nothing_else(llama: CpuWallBackend) -> None:
    subject = llama.subject
    with PassRunner(subject.model, 8, 16, seed=0, batch=4) as runner:
        assert runner.run(SweepPoint(1, 12, 4)).logits.shape[:2] == (4, 1)
        assert runner.run(SweepPoint(8, 0, 4)).logits.shape[:2] == (4, 8)
        for point in (SweepPoint(1, 12), SweepPoint(1, 12, 3), NOT_FLAT[-1]):
            with pytest.raises(ValueError, match=f"{named(point)}: this runner has 4 sequences"):
                runner.run(point)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral"])
def test_a_chunk_is_the_end_of_a_prompt(name: str) -> None:
    """Where the chunk feeds the prompt's last tokens behind a cache of its first ones."""
    model = tiny.subject(name, num_layers=4, routing="model")
    tokens, history = CHUNK.input_len, CHUNK.kv_len
    ids = model.runner.input_ids
    ids[:, history : history + tokens] = ids[:, :tokens].clone()
    whole = model.runner.run(SweepPoint(history + tokens, 0)).logits[:, history:].clone()
    torch.testing.assert_close(model.runner.run(CHUNK).logits, whole, rtol=1e-3, atol=1e-4)
    model.close()


def test_a_chunk_is_timed_on_a_cpu(llama: CpuWallBackend) -> None:
    (sample,) = llama.sample([CHUNK], ONCE, 0)
    assert isinstance(sample, PointSample) and sample.point == CHUNK
    assert sum(row.pass_ns[0] for row in sample.rows.values()) == sample.pass_ns[0]


# ---- what is made of tables


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    """A table of all kinds, in which everything but prefill and decode would spoil an estimate."""
    known = make_table()
    known.records |= {point: fake_record(point) for point in NOT_FLAT}
    return known


def test_an_estimate_picks_its_series(table: LatencyTable) -> None:
    flat, estimate = Estimate.of(make_table()), Estimate.of(table)
    for name in ("prefill", "decode"):
        for field in ("lens", "step_ns", "head_ns", "request_ns"):
            assert list(getattr(getattr(estimate, name), field)) == list(getattr(getattr(flat, name), field))


def test_pairs_need_no_other_points() -> None:
    points = make_table().records
    lost = dict.fromkeys(NOT_FLAT, "out of memory")
    check_pairs([(16, 2), (8, 9)], [*points, *NOT_FLAT], lost)
    with pytest.raises(UsageError, match="the table ends at 320"):
        check_pairs([(200, 200)], [*points, SweepPoint(8, 9999), SweepPoint(1, 9999, 4)], lost)


@pytest.mark.parametrize("point", NOT_FLAT, ids=str)
def test_measured_steps_are_of_one_sequence(point: SweepPoint) -> None:
    with pytest.raises(UsageError, match=f"measured: {named(point)}; prefill is at"):
        MeasuredSteps.of({point: [1.0]})


@pytest.mark.parametrize("point", [SweepPoint(8, 16), SweepPoint(8, 0, 2), NOT_FLAT[-1]], ids=str)
def test_only_batches_of_decodes_are_composed(point: SweepPoint) -> None:
    with pytest.raises(ValueError, match=named(point)):
        judge_batches(Estimate.of(make_table()), {point: [1.0]})


def test_a_scaled_table_has_what_its_factors_hold_for(table: LatencyTable) -> None:
    scaled = scaled_table(table, 2.0, {"source": "m.csv"})
    assert {*scaled.records} == {*make_table().records}


# ---- what is said


def test_a_summary_tells_the_kinds_apart(table: LatencyTable) -> None:
    assert list(summary.row_shares(table)) == ["prefill", "decode", "chunk", "batch", "mixed"]
    assert summary.row_shares(table)["decode"] == summary.row_shares(make_table())["decode"]
    table.meta["runs"] = [{"index": 0}]
    laid_out = Plan((SweepPoint(1, 0), SweepPoint(3, 0), SweepPoint(1, 7), *NOT_FLAT), {})
    assert summary.largest_ranges(laid_out) == "--prefill-max 3 --decode-max 7"
    noise = next(summary.noise_lines(table))
    assert "of prefill" in noise and "of mixed" in noise


def test_a_plan_has_the_memory_of_all_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(planning, "memory_bytes", lambda *arguments: asked.append((arguments[3], arguments[5])))
    source, request = ModelSource("m", tiny.CONFIGS["llama"], "folder"), Request("m", device="cpu")

    def longest_and_packed(points: Sequence[SweepPoint]) -> tuple[int, int]:
        planning._memory(request, source, Plan((*points,), {}))
        return asked[-1]

    assert longest_and_packed([SweepPoint(9, 0), SweepPoint(1, 12)]) == (13, 0)
    assert longest_and_packed([SweepPoint(1, 12, 4), SweepPoint(1, 12)]) == (13, 52)
    assert longest_and_packed([SweepPoint.of([(8, 0), (1, 16), (1, 16)])]) == (10, 42)


def test_a_failure_of_any_kind_is_told(tmp_path: Path) -> None:
    with writer(tmp_path, list(NOT_FLAT)) as table:
        for point in NOT_FLAT:
            table.add(PointFailure(point, "out of memory"))
        laid_out = Plan(NOT_FLAT, {})
        said = list(summary.missing_lines(table.table, laid_out))
    assert f"missing: 6 of 6 points: out of memory (first: {NOT_FLAT[0]})" in said
