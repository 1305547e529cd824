"""A model of serving steps against simulated kernels (simulated_attention.py), whose formula is not the model's."""

import random

import numpy as np
import pytest

from llm_profile.errors import UsageError
from llm_profile.exporters.step_attention import EXTRAPOLATED, StepAttention
from llm_profile.points import SweepPoint
from llm_profile.records import FILLED, MEASURED
from llm_profile.serving.composition import AttentionShape, AttentionWork, kind_of
from llm_profile.serving.step_model import StepModel
from llm_profile.sweep import SHARED_POINT
from llm_profile.validation.estimate import Estimate
from tests.simulated_attention import BLOCK_ROWS, DEPTH, compositions, record, simulated_table


@pytest.fixture(scope="module")
def model() -> StepModel:
    return StepModel.fit(simulated_table())


def real_ns(point: SweepPoint) -> int:
    return sum(
        (DEPTH if row in BLOCK_ROWS else 1) * kept.measurement.latency_ns for row, kept in record(point).rows.items()
    )


def errors_at(model: StepModel, points: list[SweepPoint]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for point in points:
        found.setdefault(kind_of(point), []).append(abs(model.estimate_ns(point).ns / real_ns(point) - 1))
    return found


def test_steps_that_were_not_measured_are_near(model: StepModel) -> None:
    """Compositions of another seed."""
    errors = errors_at(model, compositions(random.Random(7), 150))
    assert np.mean(errors["decode"]) < 0.02 and max(errors["decode"]) < 0.05
    for kind in ("prompts", "chunk", "mixed"):
        assert np.median(errors[kind]) < 0.02, kind
        assert np.mean(errors[kind]) < 0.05, kind


def test_held_out_errors_tell_those_of_steps_that_were_not_measured(model: StepModel) -> None:
    errors = errors_at(model, compositions(random.Random(8), 150))
    for kind, told in model.held_out().items():
        assert np.mean(errors[kind]) < 2.5 * told.errors.mean() + 0.002, kind


def test_intervals_hold_most_steps(model: StepModel) -> None:
    points = compositions(random.Random(9), 150)
    found = [(model.estimate_ns(point), real_ns(point)) for point in points]
    assert 0.8 < np.mean([each.low_ns <= real <= each.high_ns for each, real in found]) <= 1.0


def test_a_batch_of_one_is_the_point_of_the_flat_table(model: StepModel) -> None:
    estimate = Estimate.of(model.table)
    for point in filter(lambda point: point.is_flat, model.table.points()):
        whole = estimate.prefill_ns(point.input_len) if point.kind == "prefill" else estimate.decode_ns(point.kv_len)
        assert model.estimate_ns(point).ns == pytest.approx(float(whole))
        for row, kept in model.table.records[point].rows.items():
            at = SHARED_POINT if row == "lm_head" and point.kind == "prefill" else point
            assert model.rows_ns(point)[row] == model.table.latency_ns(row, at), kept


def test_the_head_follows_the_sequences(model: StepModel) -> None:
    few, many = SweepPoint(96, 100, 2), SweepPoint(1, 100, 192)
    assert model.row_ns("q_proj", few) == pytest.approx(model.row_ns("q_proj", many), rel=0.02)
    assert model.row_ns("lm_head", few) == pytest.approx(record(few).rows["lm_head"].measurement.latency_ns, rel=0.05)


def test_packed_rows_that_differ_from_prompts_are_named_and_followed() -> None:
    table = simulated_table(60)
    assert not StepModel.fit(table).packing_lines()
    for point in table.points():
        if point.is_flat:
            kept = table.records[point].rows["q_proj"].measurement
            object.__setattr__(kept, "trimmed_mean_ns", kept.trimmed_mean_ns / 1.25)
    slower = StepModel.fit(table)
    assert slower.packing_lines() == ["q_proj: packed passes take 1.25 of a prompt of as many tokens"]
    step = SweepPoint(1, 333, 77)
    assert slower.row_ns("q_proj", step) == pytest.approx(record(step).rows["q_proj"].measurement.latency_ns, rel=0.01)


def test_exporters_fill_steps_from_the_model(model: StepModel) -> None:
    attention = StepAttention(model.table)
    (measured, *_others) = (point for point in model.compositions if kind_of(point) == "decode")
    assert attention.at(decodes=measured.batch, cache=measured.kv_len).source == MEASURED
    step = attention.at(chunk=500, history=300, decodes=20, cache=700)
    assert step.source == FILLED
    assert step.attention_ns == model.row_ns("attn", SweepPoint.of([(500, 300), *[(1, 700)] * 20]))
    assert attention.at(decodes=20, cache=40_000).source == EXTRAPOLATED
    assert "390 measured compositions" in attention.notes[0]


def test_few_compositions_are_refused() -> None:
    with pytest.raises(UsageError, match="has 5 compositions .* --axes"):
        StepModel.fit(simulated_table(5))


@pytest.mark.parametrize("window", [None, 3, 10])
@pytest.mark.parametrize(("tokens", "history"), [(1, 0), (1, 9), (7, 0), (7, 2), (7, 30)])
def test_pairs_are_counted_one_by_one(tokens: int, history: int, window: int | None) -> None:
    counted = sum(min(history + query + 1, window or 10**9) for query in range(tokens))
    assert AttentionWork.of(SweepPoint(tokens, history, 3), AttentionShape(4, 2, 8, window)).pairs == 3 * counted
