import csv
import inspect
import io
import json
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from llm_profile.cli import table_validation
from llm_profile.cli.parsing import OneLineParser
from llm_profile.cli.scaling_options import add_scaling_arguments, parse_scaling
from llm_profile.cli.table_validation import known_validation
from llm_profile.errors import UsageError
from llm_profile.measurement import Measurement, PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord
from llm_profile.store.files import CSV_HEADER, read_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Sweep
from llm_profile.validation.estimate import Estimate, Factors
from llm_profile.validation.measured_steps import MeasuredSteps
from llm_profile.validation.report_text import milliseconds, print_report
from llm_profile.validation.scaled_table import scaled_table
from llm_profile.validation.scaling import Scaling
from llm_profile.validation.validate import fit_and_judge, validate_over_depths
from tests.fake_reality import ROWS, FakeReality, make_table, true_kernels_ns, write_table
from validation import apply_scaling_to_latency_csv, compute_average_scaling_factor, main

TABLE = make_table()
PAIRS = [(i, o) for i in (32, 64, 96, 128) for o in (16, 32, 48, 64)]


def overhead(point, depth):
    """A host that needs 700 us to begin a prompt and 400 us a step, and 3 us a block."""
    return (700_000 if point.kv_len == 0 else 400_000) + 3_000 * depth


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the two documented functions


def test_documented_signatures():
    factor = inspect.signature(compute_average_scaling_factor)
    assert list(factor.parameters) == ["table", "measured", "pairs", "depth"]
    apply = inspect.signature(apply_scaling_to_latency_csv)
    assert list(apply.parameters)[:4] == ["csv_path", "scaling_factor", "output_path", "add_new_column"]
    assert (apply.parameters["output_path"].default, apply.parameters["add_new_column"].default) == (None, False)
    assert "mean over `pairs` of measured / estimated total" in compute_average_scaling_factor.__doc__
    assert "`<model>-scaled.csv`" in apply_scaling_to_latency_csv.__doc__


def test_the_average_factor_is_of_totals():
    measured = {
        SweepPoint(4, 0): [2 * true_kernels_ns(SweepPoint(4, 0), 6)] * 3,
        SweepPoint(1, 4): [4 * true_kernels_ns(SweepPoint(1, 4), 6)] * 3,
        SweepPoint(1, 5): [4 * true_kernels_ns(SweepPoint(1, 5), 6)] * 3,
    }
    assert compute_average_scaling_factor(TABLE, measured, [(4, 1)]) == pytest.approx(2)
    kernels = Estimate.of(TABLE).pair((4, 3))
    total = (2 * kernels.ttft_ns + 4 * 2 * kernels.tpot_ns) / kernels.total_ns
    assert compute_average_scaling_factor(TABLE, measured, [(4, 1), (4, 3)]) == pytest.approx((2 + total) / 2)
    steps = MeasuredSteps.of(measured)
    assert compute_average_scaling_factor(TABLE, steps, [(4, 3)]) == pytest.approx(total)
    with pytest.raises(UsageError, match="--decode-max"):
        compute_average_scaling_factor(TABLE, measured, [(4, 400)])
    with pytest.raises(UsageError, match="no prefill of 5 tokens"):
        compute_average_scaling_factor(TABLE, measured, [(5, 1)])


def test_one_factor_scales_every_row_of_a_new_table(tmp_path):
    source = write_table(tmp_path)
    before = contents(tmp_path)
    scaled = apply_scaling_to_latency_csv(source, 1.5)
    assert scaled == source.with_name("fake-scaled.csv")
    assert {path: path.read_bytes() for path in before} == before, "the measured table is never touched"
    rows, new_rows = read_csv(source), read_csv(scaled)
    assert len(rows) == len(new_rows) == len(ROWS) * (256 + 320)
    for row, new in zip(rows, new_rows, strict=True):
        assert {**new, "latency(ns)": ""} == {**row, "latency(ns)": ""}
        assert int(new["latency(ns)"]) == np.floor(1.5 * int(row["latency(ns)"]) + 0.5)
    scaling = json.loads(TablePaths.beside(scaled).meta.read_bytes())["scaling"]
    assert (scaling["mode"], scaling["factor"], scaling["batch"], scaling["source"]) == ("global", 1.5, 1, "fake.csv")
    assert read_table(scaled).latency_ns("full.attn", SweepPoint(1, 7)) == 13_532  # 1.5 x 9,021, rounded half up


def test_every_statistic_is_scaled_and_the_pass_by_what_its_rows_come_to():
    """A block's attn takes 20 ns by its trimmed mean (10 by its median), twice that when scaled; q_proj takes 60."""
    point = SweepPoint(1, 0)
    rows = {"attn": RowSample((20, 20, 20, 80, 160), blocks=2), "q_proj": RowSample((60,) * 5)}
    record = PointRecord.of(PointSample(point, rows, (80, 80, 80, 140, 220), "fake"), run=0)
    twice = Factors(np.array([1]), step=np.array([1.0]), request=np.array([2.0]))
    table = LatencyTable("Fake1", "org/fake", {}, {point: record})
    scaled = scaled_table(table, Scaling("curve", 1, twice, twice, {}), {}).records[point]
    assert scaled.rows["attn"].measurement == Measurement(
        n=5, trimmed_mean_ns=40, min_ns=20, q1_ns=20, median_ns=20, q3_ns=80, max_ns=160
    )
    assert scaled.rows["q_proj"] == record.rows["q_proj"]
    assert record.whole_pass.trimmed_mean_ns == 100
    assert scaled.whole_pass.statistics_ns == pytest.approx([1.4 * ns for ns in record.whole_pass.statistics_ns])


def test_a_new_column_keeps_the_measured_one(tmp_path):
    source = write_table(tmp_path)
    target = tmp_path / "elsewhere" / "both.csv"
    assert apply_scaling_to_latency_csv(str(source), 0.5, str(target), add_new_column=True) == target
    rows, new_rows = read_csv(source), read_csv(target)
    assert list(new_rows[0]) == [*CSV_HEADER, "scaled_latency(ns)"]
    for row, new in zip(rows, new_rows, strict=True):
        assert new["latency(ns)"] == row["latency(ns)"]
        assert int(new["scaled_latency(ns)"]) == np.floor(0.5 * int(row["latency(ns)"]) + 0.5)
    assert json.loads(TablePaths.beside(target).meta.read_bytes())["scaling"]["column"] == "scaled_latency(ns)"


@pytest.mark.parametrize("add_new_column", [False, True])
def test_a_second_scaling_is_refused(tmp_path, add_new_column):
    source = write_table(tmp_path)
    scaled = apply_scaling_to_latency_csv(source, 1.5, add_new_column=add_new_column)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"scaled already.*fake\.csv"):
        apply_scaling_to_latency_csv(scaled, 1.5)
    assert contents(tmp_path) == before


def test_only_a_scaled_table_gives_way_to_a_new_one(tmp_path):
    source = write_table(tmp_path)
    apply_scaling_to_latency_csv(source, 1.5)
    scaled = apply_scaling_to_latency_csv(source, 2.0)
    assert json.loads(TablePaths.beside(scaled).meta.read_bytes())["scaling"]["factor"] == 2
    other = tmp_path / "notes.csv"
    other.write_text("mine")
    before = contents(tmp_path)
    for target in (source, other):
        with pytest.raises(UsageError, match="--scaling-output"):
            apply_scaling_to_latency_csv(source, 1.5, target)
    assert contents(tmp_path) == before


NO_NUMBERS = [
    "1.5",
    None,
    True,
    float("nan"),
    0,
    0.0,
    -1.0,
    float("inf"),
    -float("inf"),
    Decimal("NaN"),
    Decimal("sNaN"),
]
NO_NUMBERS += [
    np.float32("nan"),
    np.int64(0),
    np.bool_(True),
    1.5 + 0j,
    [1.5],
    b"1",
    "x\ny",
    10**400,
    10**5000,
    object(),
]


@pytest.mark.parametrize(
    "factor", [*NO_NUMBERS, 1e-7, 1e7, 2**63, Fraction(1, 10**9)], ids=lambda value: str(type(value))
)
@pytest.mark.parametrize("add_new_column", [False, True])
def test_factors_that_are_none_are_refused(tmp_path, small_table, factor, add_new_column):
    source = write_table(tmp_path, small_table)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="^scaling factor .*: must be a number from 1e-06 to 1e\\+06$") as refusal:
        apply_scaling_to_latency_csv(source, factor, add_new_column=add_new_column)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 200
    assert contents(tmp_path) == before


SAME_FACTORS = [
    1.5,
    Decimal("1.5"),
    Fraction(3, 2),
    np.float64(1.5),
    np.float32(1.5),
    np.float16(1.5),
    np.longdouble(1.5),
]


@pytest.mark.parametrize("factor", SAME_FACTORS, ids=lambda value: type(value).__name__)
def test_numbers_of_every_type_scale_alike(tmp_path, small_table, factor):
    scaled = apply_scaling_to_latency_csv(write_table(tmp_path, small_table), factor)
    assert json.loads(TablePaths.beside(scaled).meta.read_bytes())["scaling"]["factor"] == 1.5
    right = [int(np.floor(1.5 * int(row["latency(ns)"]) + 0.5)) for row in read_csv(tmp_path / "Fake1/org/fake.csv")]
    assert [int(row["latency(ns)"]) for row in read_csv(scaled)] == right


@pytest.mark.parametrize("factor", [2, np.int64(2), np.uint8(2), Decimal(2)])
def test_whole_numbers_are_factors(tmp_path, small_table, factor):
    scaled = apply_scaling_to_latency_csv(write_table(tmp_path, small_table), factor)
    assert json.loads(TablePaths.beside(scaled).meta.read_bytes())["scaling"]["factor"] == 2


def test_latencies_that_no_table_holds_are_refused(tmp_path, small_table):
    point = SweepPoint(1, 0)
    small_table.records[point] = PointRecord.of(
        PointSample(point, {"attn": RowSample((10**13,))}, (10**13,), "fake"), 0
    )
    source = write_table(tmp_path, small_table)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"a latency of 1e\+19 ns, where a table holds less than 9.22337e\+18"):
        apply_scaling_to_latency_csv(source, 1e6)
    assert contents(tmp_path) == before
    apply_scaling_to_latency_csv(source, 9e5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0, 1e7])
def test_a_fitted_scaling_with_a_factor_that_is_none_is_refused(tmp_path, small_table, value):
    fine, wrong = np.ones(2), np.array([1.0, value])
    for step, request in ((wrong, fine), (fine, wrong)):
        factors = Factors(np.array([1, 2]), step=step, request=request)
        with pytest.raises(UsageError, match="^scaling factor "):
            apply_scaling_to_latency_csv(write_table(tmp_path, small_table), Scaling("curve", 6, factors, factors, {}))


@pytest.mark.parametrize("name", ["", "table.txt", "."])
def test_an_output_without_a_name_is_refused(tmp_path, small_table, name):
    with pytest.raises(UsageError, match="must end in .csv"):
        apply_scaling_to_latency_csv(write_table(tmp_path, small_table), 1.5, name)


@pytest.fixture
def small_table():
    return make_table(Sweep(prefill_max=2, decode_max=2))


STEPS = {SweepPoint(4, 0): [1_000_000.0] * 3, SweepPoint(1, 4): [500_000.0] * 3, SweepPoint(1, 5): [500_000.0] * 3}


@pytest.mark.parametrize("as_type", [int, float, Decimal, Fraction, np.float64, np.float32, np.int64])
def test_times_and_pairs_of_every_type_of_number(as_type):
    steps = {point: tuple(as_type(ns) for ns in times) for point, times in STEPS.items()}
    pairs = [(np.int64(4), np.uint8(3))]
    assert compute_average_scaling_factor(TABLE, steps, pairs) == compute_average_scaling_factor(TABLE, STEPS, [(4, 3)])
    arrays = {point: np.asarray(times, dtype=np.float64) for point, times in STEPS.items()}
    assert compute_average_scaling_factor(TABLE, arrays, np.array(pairs), np.int64(6)) > 1


@pytest.mark.parametrize("wrong", [*NO_NUMBERS, 1e16], ids=lambda value: str(type(value)))
def test_times_that_are_none_are_refused(wrong):
    with pytest.raises(UsageError, match="^measured at input 1, kv_cache 4: .*: must be a number") as refusal:
        compute_average_scaling_factor(TABLE, STEPS | {SweepPoint(1, 4): [1e6, wrong]}, [(4, 3)])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("wrong", [5.0, None, "123", [], (), np.float64(1), b""])
def test_times_that_are_no_list_are_refused(wrong):
    with pytest.raises(UsageError, match="^measured at input 1, kv_cache 4: .*one per repeat$"):
        compute_average_scaling_factor(TABLE, STEPS | {SweepPoint(1, 4): wrong}, [(4, 3)])


@pytest.mark.parametrize("wrong", [None, [1.0], "steps", 3, {(4, 0): [1e6]}])
def test_steps_that_are_none_are_refused(wrong):
    with pytest.raises(UsageError, match="^measured.* SweepPoint"):
        compute_average_scaling_factor(TABLE, wrong, [(4, 1)])


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        None,
        4,
        [4],
        [(4,)],
        [(4, 1, 1)],
        [(0, 1)],
        [(4, -1)],
        [("4", "1")],
        [(4.0, 1.0)],
        [(4, True)],
        [(4, None)],
        "41",
    ],
)
def test_pairs_that_are_none_are_refused(pairs):
    with pytest.raises(UsageError, match="^pair"):
        compute_average_scaling_factor(TABLE, STEPS, pairs)


@pytest.mark.parametrize("depth", [0, -1, 7, 2.0, "2", True, float("nan")])
def test_depths_that_are_none_are_refused(depth):
    with pytest.raises(UsageError, match="--scaling-num-layers .*choose 1..6"):
        compute_average_scaling_factor(TABLE, STEPS, [(4, 1)], depth)


@pytest.mark.parametrize("mode", ["global", "phase", "curve"])
def test_a_scaled_table_implies_what_was_judged(tmp_path, mode):
    report = fit_and_judge(TABLE, FakeReality(overhead), PAIRS, mode=mode)
    scaled = apply_scaling_to_latency_csv(write_table(tmp_path), report.scaling)
    estimate = Estimate.of(read_table(scaled))
    for result in report.pairs:
        pair = estimate.pair((result.scaled.input_len, result.scaled.output_len))
        assert pair.total_ns == pytest.approx(result.scaled.total_ns, rel=1e-4)
        assert pair.ttft_ns == pytest.approx(result.scaled.ttft_ns, rel=1e-4)


def test_a_curve_leaves_rope_and_attn_at_kernel_time(tmp_path):
    report = fit_and_judge(TABLE, FakeReality(overhead), PAIRS)
    scaled = read_table(apply_scaling_to_latency_csv(write_table(tmp_path), report.scaling))
    for point in (SweepPoint(1, 0), SweepPoint(1, 99), SweepPoint(77, 0)):
        for row in ROWS:
            factor = scaled.latency_ns(row, point) / TABLE.latency_ns(row, point)
            assert factor == 1 if row.endswith((".rope", ".attn")) else factor > 1.5


# ---- validation


def test_fitted_and_held_out_lengths_have_runs_of_their_own_in_the_same_rounds():
    reality = FakeReality(overhead)
    report = fit_and_judge(TABLE, reality, PAIRS, repeat=4)
    (asked,) = reality.asked
    prefill, decode = ([point for point in asked if (point.kv_len > 0) == is_decode] for is_decode in (False, True))
    held_out = {step.point for step in report.steps if step.held_out}
    fitted_on = {step.point for step in report.steps if not step.held_out}
    assert held_out and fitted_on and not held_out & fitted_on
    assert len(asked) == len(held_out | fitted_on), "no step is timed for both"
    assert {*asked} == held_out | fitted_on
    assert prefill == sorted(prefill) and decode == sorted(decode), "neither goes before the other"
    assert all(len(step.wall_ns) == 4 for step in report.steps)
    fitted = {(pair.measured.input_len, pair.measured.output_len) for pair in report.pairs if not pair.held_out}
    assert fitted == {*PAIRS}
    assert sum(pair.held_out for pair in report.pairs) == 9


def test_held_out_lengths_do_not_reach_the_fit():
    """Steps that are only held out may be anything: the factors stay, the errors show it."""
    honest = fit_and_judge(TABLE, FakeReality(overhead), PAIRS)
    held_out = {step.point for step in honest.steps if step.held_out}
    reality = FakeReality(lambda point, depth: overhead(point, depth) * (3 if point in held_out else 1))
    report = fit_and_judge(TABLE, reality, PAIRS)
    for mode, scaling in report.scalings.items():
        assert scaling.parameters == honest.scalings[mode].parameters
    assert honest.errors["curve"]["total"].worst < 1e-3
    assert report.errors["curve"]["total"].mean > 0.3
    assert (honest.exit_code, report.exit_code) == (0, 4)
    assert report.over_tolerance == ["ttft", "tpot", "total"]


def test_the_error_is_held_against_tolerance_and_spread():
    def bumpy(point, depth):
        """12 % more for prompts that are only held out, so that nothing can fit it."""
        return true_kernels_ns(point, depth) * (0.12 if point in held_out and not point.kv_len else 0)

    held_out = {step.point for step in fit_and_judge(TABLE, FakeReality(overhead), PAIRS).steps if step.held_out}
    calm = fit_and_judge(TABLE, FakeReality(bumpy), PAIRS)
    assert calm.over_tolerance == ["ttft"] and calm.exit_code == 4
    assert fit_and_judge(TABLE, FakeReality(bumpy), PAIRS, tolerance=0.13).exit_code == 0
    noisy = fit_and_judge(TABLE, FakeReality(bumpy, noise=0.2), PAIRS, repeat=9)
    assert 0.05 < noisy.errors["curve"]["ttft"].mean < noisy.spread["ttft"]
    assert noisy.exit_code == 0


def over_tolerance(ttft_error, tolerance, spread, between):
    """What a report says whose held-out prompts are off by so much."""
    report = fit_and_judge(TABLE, FakeReality(overhead), PAIRS)
    errors = {**report.errors["curve"], "ttft": replace(report.errors["curve"]["ttft"], mean=ttft_error)}
    spreads = {"tpot": 0.0, "total": 0.0}
    changed = replace(
        report,
        tolerance=tolerance,
        errors=report.errors | {"curve": errors},
        spread={"ttft": spread, **spreads},
        spread_between={"ttft": between, **spreads},
    )
    assert (changed.exit_code == 4) == bool(changed.over_tolerance or changed.noisy)
    return changed.over_tolerance


@pytest.mark.parametrize(
    ("tolerance", "spread", "between", "is_over"),
    [
        (0.05, 0.01, 0.02, True),
        (0.05, 0.06, None, True),
        (0.08, 0.01, 0.02, False),
        (0.05, 0.08, 0.02, False),
        (0.05, 0.01, 0.08, False),
        (0.05, 0.08, None, False),
        (0.06, 0.065, 0.069, True),
    ],
)
def test_the_error_is_held_against_both_spreads(tolerance, spread, between, is_over):
    assert over_tolerance(0.07, tolerance, spread, between) == (["ttft"] if is_over else [])


def noisy_report(speeds, **options):
    return fit_and_judge(TABLE, FakeReality(overhead, process_speeds=speeds), PAIRS, **options)


def test_a_host_whose_processes_differ_is_too_noisy():
    """No quantity is over the tolerance, since the spread is larger, and yet it is no success."""
    report = noisy_report((1.0, 1.1, 1.3))
    assert report.processes == 3 and report.over_tolerance == []
    assert report.noisy == pytest.approx(dict.fromkeys(("ttft", "tpot", "total"), 0.3 / 1.1), rel=1e-3)
    assert report.exit_code == 4
    told = report.as_json()
    assert told["noisy"] == report.noisy and told["processes"] == 3
    assert told["spread_between_processes"] == report.spread_between
    assert told["pairs"][0]["spread_between_processes"]["total"] == pytest.approx(0.3 / 1.1, rel=1e-3)


def test_little_noise_is_none():
    for report in (noisy_report((1.0, 1.0, 1.09)), noisy_report((1.0,)), noisy_report((1.0, 1.3), tolerance=0.4)):
        assert report.noisy == {} and report.exit_code == 0
    assert noisy_report((1.0, 1.0, 1.11)).exit_code == 4
    assert noisy_report((1.0, 1.5), tolerance=0.3).exit_code == 4, "the tolerance is the limit where it is larger"


def test_noise_is_seen_where_nothing_is_held_out():
    report = fit_and_judge(TABLE, FakeReality(overhead, process_speeds=(1.0, 1.3)), [(1, 1)])
    assert not any(pair.held_out for pair in report.pairs)
    assert report.noisy == {name: pytest.approx(0.3 / 1.15, rel=1e-3) for name in ("ttft", "total")}
    assert report.exit_code == 4


def test_spread_above_ten_percent_names_the_pair_and_what_to_do():
    calm = fit_and_judge(TABLE, FakeReality(overhead, noise=0.02), PAIRS)
    assert calm.warnings == ()
    assert 0 < calm.spread["ttft"] < 0.04
    (warning,) = fit_and_judge(TABLE, FakeReality(overhead, noise=0.1), PAIRS, repeat=5).warnings
    assert "TTFT of (input " in warning and "more pairs" in warning and "--scaling-repeat" in warning


def test_a_clock_that_falls_is_told():
    (warning,) = fit_and_judge(TABLE, FakeReality(overhead, slower_per_repeat=0.03), PAIRS).warnings
    assert "6.0 % slower in the last repeat" in warning


@pytest.mark.parametrize("mode", ["global", "phase", "curve"])
def test_a_factor_below_one_is_applied_and_warned_about(mode):
    report = fit_and_judge(
        TABLE, FakeReality(lambda point, depth: -0.1 * true_kernels_ns(point, depth)), PAIRS, mode=mode
    )
    (warning,) = report.warnings
    assert "smallest factor is 0." in warning
    assert report.errors[mode]["total"].worst < 0.01


def test_sparse_tables_and_missing_ends_are_told():
    table = make_table(Sweep(prefill_max=256, decode_max=320, prefill_step=32, decode_step=32))
    (warning,) = fit_and_judge(table, FakeReality(overhead), PAIRS).warnings
    assert "sparse" in warning
    (warning,) = fit_and_judge(TABLE, FakeReality(overhead, fails=frozenset({SweepPoint(256, 0)})), PAIRS).warnings
    assert "beyond input 128" in warning


def test_without_anything_held_out_there_is_no_judgement():
    report = fit_and_judge(TABLE, FakeReality(overhead), [(1, 1)], mode="curve")
    assert report.errors["curve"]["ttft"] is None and report.exit_code == 0
    assert any("nothing was held out" in warning for warning in report.warnings)
    assert "--scaling-output-max" in report.not_fitted["phase"]
    json.dumps(report.as_json(), allow_nan=False)


def test_the_applied_mode_must_be_possible():
    with pytest.raises(UsageError, match="--scaling-output-max"):
        fit_and_judge(TABLE, FakeReality(overhead), [(32, 1), (64, 1)], mode="phase")


def test_batched_steps_are_reported():
    report = fit_and_judge(TABLE, FakeReality(overhead), PAIRS)
    inputs = sorted({pair[0] for pair in PAIRS})
    assert [(step.sequences, step.kv_len) for step in report.batched] == [
        (sequences, kv_len) for kv_len in (inputs[0], inputs[-1]) for sequences in (1, 4, 16, 64)
    ]
    assert [step["error"] for step in report.as_json()["batched"]] == [step.error for step in report.batched]


# ---- depth


class Opener:
    """Opens fake models, one at a time."""

    def __init__(self, **options):
        self.opened = []
        self.options = options

    def __call__(self, depth):
        assert all(reality.closed for reality in self.opened), "two models would not fit"
        self.opened.append(FakeReality(overhead, depth, **self.options))
        return self.opened[-1]


def test_the_full_depth_is_measured_alone():
    opener = Opener()
    report = validate_over_depths(TABLE, opener, PAIRS)
    assert [reality.depth for reality in opener.opened] == [6] and opener.opened[0].closed
    assert (report.depth, report.scaling.depth, report.measured_depths) == (6, 6, (6,))


def test_a_smaller_depth_is_extrapolated_from_two():
    opener = Opener()
    report = validate_over_depths(TABLE, opener, PAIRS, depth=4)
    assert [reality.depth for reality in opener.opened] == [2, 4]
    assert all(reality.closed for reality in opener.opened)
    assert (report.depth, report.scaling.depth, report.measured_depths) == (4, 6, (2, 4))
    assert report.errors["curve"]["total"].worst < 1e-4, "judged at 4 layers"
    scaled = report.scaling.applied_to(Estimate.of(TABLE))
    for point in (SweepPoint(100, 0), SweepPoint(1, 100)):
        step = scaled.decode_ns(point.kv_len) if point.kv_len else scaled.prefill_ns(point.input_len)
        assert float(step) == pytest.approx(true_kernels_ns(point, 6) + overhead(point, 6), rel=1e-4)
    (warning,) = report.warnings
    assert "factors for 6 layers are extrapolated from 2 and 4" in warning


def test_one_depth_alone_holds_for_itself():
    report = validate_over_depths(TABLE, Opener(), PAIRS, depth=1)
    assert report.scaling.depth == 1
    assert any("hold for 1 layers, not for the model's 6" in warning for warning in report.warnings)


def test_extrapolation_in_depth_is_judged_where_the_full_model_fits():
    report = validate_over_depths(TABLE, Opener(), PAIRS, other_depths=(2, 4))
    assert report.scaling.depth == 6 and report.warnings == ()
    assert {quantity: errors.worst < 1e-4 for quantity, errors in report.depth_errors.items()} == {
        "ttft": True,
        "tpot": True,
        "total": True,
    }


def test_other_depths_are_opened_once_each_and_never_beyond_the_model():
    opener = Opener()
    validate_over_depths(TABLE, opener, PAIRS, depth=4, other_depths=(4, 1, 1))
    assert [reality.depth for reality in opener.opened] == [1, 4]
    opener = Opener()
    with pytest.raises(UsageError, match="--scaling-other-depths 7: the model has 6 layers"):
        validate_over_depths(TABLE, opener, PAIRS, other_depths=(2, 7))
    assert opener.opened == []


def test_pairs_beyond_the_table_are_refused_before_a_model_is_opened():
    opener = Opener()
    for pairs, depth, named in (
        ([(300, 1)], None, "--prefill-max"),
        (PAIRS, 7, "--scaling-num-layers"),
        ([(256, 100)], None, "--decode-max"),
    ):
        with pytest.raises(UsageError, match=named):
            validate_over_depths(TABLE, opener, pairs, depth=depth)
    assert opener.opened == []


def test_a_model_is_closed_when_its_run_fails():
    opener = Opener(fails=frozenset({SweepPoint(128, 0)}))
    with pytest.raises(UsageError, match="prefill of 128"):
        validate_over_depths(TABLE, opener, PAIRS)
    assert opener.opened[0].closed


# ---- what is reported


def test_json_has_all_pairs_and_steps(tmp_path):
    report = fit_and_judge(TABLE, FakeReality(overhead, noise=0.01), PAIRS, provenance={"gpu": "none"})
    report.write(tmp_path / "fake.validation.json")
    told = json.loads((tmp_path / "fake.validation.json").read_bytes())
    assert {(pair["input"], pair["output"]) for pair in told["pairs"] if not pair["held_out"]} == {*PAIRS}
    step = next(step for step in told["steps"] if (step["input"], step["kv_cache"]) == (1, 0))
    assert step["kernels_ns"] == true_kernels_ns(SweepPoint(1, 0), 6)
    assert step["median_ns"] == sorted(step["wall_ns"])[1]
    assert told["applied"]["mode"] == "curve" and set(told["scalings"]) == {"global", "phase", "curve"}
    assert told["average_scaling_factor"] == told["scalings"]["global"]["factor"]
    assert set(told["scalings"]["curve"]["held_out_errors"]["tpot"]) == {"mean", "p90", "worst", "n"}
    assert told["provenance"] == {"gpu": "none", "seconds": {}}
    assert told["recombination"]["recombined"]["worst"] < 0.02


def test_people_see_pairs_modes_and_warnings():
    report = validate_over_depths(TABLE, Opener(noise=0.1), PAIRS, depth=4)
    out = io.StringIO()
    print_report(report, Console(file=out, width=80))
    text = out.getvalue()
    assert "…" not in text, "tables fit in 80 columns"
    pair = next(pair for pair in report.pairs if pair.held_out)
    for shown in (
        "4 of 6 layers",
        f"{pair.measured.ttft_ns / 1e6:,.3f}",
        f"{100 * (pair.scaled.ttft_ns / pair.measured.ttft_ns - 1):+.1f}",
        "curve (applied)",
        "run-to-run spread",
        "rope and attn at (1, k), the rest at (1, 0)",
        f"4 sequences at kv_cache {min(PAIRS)[0]}",
        "Warning:",
    ):
        assert shown in text


# ---- the command


@pytest.fixture
def real_model(monkeypatch):
    """Stands in for the processes of the real model. What they were told; their speeds, by their number."""
    opened = SimpleNamespace(told=[], speeds={})

    def open_reality(runtime, profiled, depth, device, token, trust_remote_code, *, processes, tell, tick):
        opened.told.append((runtime, profiled.meta["model"], depth, device, token, trust_remote_code, processes))
        return FakeReality(overhead, depth, process_speeds=opened.speeds.get(processes, (1.0,) * processes))

    monkeypatch.setattr(table_validation, "ProcessReality", open_reality)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return opened


GRID = ["--scaling-input-min", "32", "--scaling-input-max", "128", "--scaling-input-step", "32"]


def scaling_request(*options):
    parser = OneLineParser()
    add_scaling_arguments(parser)
    return parse_scaling(parser.parse_args(options))


def known_code(table, source, wanted):
    known = known_validation(table, source, wanted)
    return known and known.outcome.exit_code


def test_the_command_scales_reports_and_exits(tmp_path, real_model, capsys):
    source = write_table(tmp_path)
    argv = ["--csv", str(source), *GRID, "--device", "cuda:1", "--hf-token", "hf_secret"]
    assert main([*argv, "--scaling-runtime", "cuda-graph"]) == 0
    assert real_model.told == [("cuda-graph", "org/fake", 6, "cuda:1", "hf_secret", False, 1)]
    told = json.loads(source.with_name("fake.validation.json").read_bytes())
    assert len([pair for pair in told["pairs"] if not pair["held_out"]]) == 16
    scaling = json.loads(source.with_name("fake-scaled.meta.json").read_bytes())["scaling"]
    assert (scaling["mode"], scaling["runtime"]) == ("curve", "fake")
    assert scaling["held_out_errors"]["total"]["worst"] < 0.01
    assert "scaling curve, in %:" in capsys.readouterr().out
    assert not [path for path, data in contents(tmp_path).items() if b"hf_secret" in data]
    assert main([*argv, "--scaling-mode", "global", "--scaling-tolerance", "0.01"]) == 4
    assert main([*argv, "--trust-remote-code", "--scaling-processes", "5"]) == 0
    assert [told[0] for told in real_model.told[1:]] == ["eager", "eager"]
    assert [told[-2:] for told in real_model.told[1:]] == [(False, 3), (True, 5)]


def test_noise_is_told_first_and_last_and_kept_with_the_table(tmp_path, real_model, capsys):
    source = write_table(tmp_path)
    real_model.speeds[3] = (1.0, 1.1, 1.3)
    argv = ["--csv", str(source), *GRID]
    wanted = [scaling_request(*GRID, *more) for more in ([], ["--scaling-processes", "1"])]
    assert main(argv) == 4
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == last
    assert last.startswith("Too noisy: the same steps differ between processes: TTFT by 27.3 %, TPOT by 27.3 %, total")
    assert "No error below 10.0 % can be told" in last
    scaling = json.loads(source.with_name("fake-scaled.meta.json").read_bytes())["scaling"]
    assert scaling["noisy"] is True and scaling["processes"] == 3
    assert scaling["spread_between_processes"]["ttft"] == pytest.approx(0.3 / 1.1, rel=1e-3)
    table = read_table(source)
    assert [known_code(table, source, request) for request in wanted] == [4, None]
    assert main([*argv, "--scaling-processes", "1"]) == 0
    assert "Too noisy" not in capsys.readouterr().out
    scaling = json.loads(source.with_name("fake-scaled.meta.json").read_bytes())["scaling"]
    assert scaling["noisy"] is False
    assert scaling["spread_between_processes"] == {"ttft": None, "tpot": None, "total": None}
    assert [known_code(table, source, request) for request in wanted] == [None, 0]


def test_a_report_of_a_version_that_knew_no_noise_is_made_anew(tmp_path, real_model):
    source = write_table(tmp_path)
    assert main(["--csv", str(source), *GRID]) == 0
    table, wanted = read_table(source), scaling_request(*GRID)
    assert known_code(table, source, wanted) == 0
    path = source.with_name("fake.validation.json")
    told = json.loads(path.read_bytes())
    del told["noisy"]
    path.write_text(json.dumps(told))
    assert known_code(table, source, wanted) is None


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([*GRID, "--scaling-input-max", "512", "--scaling-output-max", "32"], "--prefill-max"),
        ([*GRID, "--scaling-output-max", "999"], "--decode-max"),
        ([*GRID, "--scaling-num-layers", "7"], "--scaling-num-layers 7"),
        (["--scaling-input-min", "200", "--scaling-input-max", "100"], "--scaling-input-max 100"),
        (["--scaling-input-step", "0"], "--scaling-input-step 0"),
        (["--scaling-output-min", "0"], "--scaling-output-min 0"),
        (["--scaling-repeat", "0"], "--scaling-repeat 0"),
        (["--scaling-processes", "0"], "--scaling-processes 0"),
        (["--scaling-tolerance", "-1"], "--scaling-tolerance -1"),
        (["--scaling-mode", "magic"], "--scaling-mode"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tmp_path, real_model, capsys, argv, named):
    assert main(["--csv", str(write_table(tmp_path)), *argv]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert real_model.told == []


@pytest.mark.parametrize("closed", ["table", "output"])
def test_folders_that_take_no_files_are_told_before_anything_is_measured(
    tmp_path, real_model, capsys, monkeypatch, closed
):
    """Root may write everywhere, so the answer of the system is made up."""
    folders = {"table": tmp_path / "tables", "output": tmp_path / "scaled"}
    for folder in folders.values():
        folder.mkdir()
    source = write_table(folders["table"])
    closed_folder = source.parent if closed == "table" else folders["output"]
    monkeypatch.setattr("os.access", lambda path, mode: path != closed_folder)
    output = folders["output"] / "scaled.csv"
    assert main(["--csv", str(source), *GRID, "--scaling-output", str(output)]) == 2
    error = capsys.readouterr().err
    assert f"{closed_folder} is no folder that you may write to" in error and error.count("\n") == 1
    assert real_model.told == [] and list(folders["output"].iterdir()) == []


@pytest.mark.parametrize(
    ("clock", "argv", "complaint"),
    [
        ("gpu-kernel", ["--device", "tpu"], "--device tpu: use cuda, cuda:N or cpu"),
        ("gpu-kernel", ["--device", ""], "--device : use cuda, cuda:N or cpu"),
        ("gpu-kernel", ["--device", "cuda:-1"], "--device cuda:-1: use"),
        ("gpu-kernel", ["--device", "cuda:00"], "--device cuda:00: use"),
        ("gpu-kernel", ["--device", "cuda:4294967296"], "--device cuda:4294967296: use"),
        ("gpu-kernel", ["--device", "fake"], "--device fake: use cuda"),
        ("gpu-kernel", ["--device", "cpu"], "clock is gpu-kernel there and cpu-wall now; use --device cuda"),
        ("cpu-wall", ["--device", "cuda"], "clock is cpu-wall there and gpu-kernel now; use --device cpu"),
        ("cpu-wall", ["--scaling-runtime", "cuda-graph"], "a CPU has no CUDA graphs; use --scaling-runtime eager"),
        ("fake", [], "its clock is fake, so there is no real model"),
        ("fake", ["--device", "cpu"], "its clock is fake, so there is no real model"),
        ("predicted-ns", ["--device", "cuda"], "its clock is predicted-ns, so there is no real model"),
    ],
)
def test_devices_that_a_table_cannot_be_held_against(tmp_path, real_model, capsys, clock, argv, complaint):
    table = make_table()
    table.meta["clock"] = clock
    before = contents(tmp_path)
    assert main(["--csv", str(write_table(tmp_path, table)), *GRID, *argv]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert real_model.told == [] and before.items() <= contents(tmp_path).items()


def test_a_refused_device_is_told_before_torch_is_imported(tmp_path):
    script = "import sys, validation; code = validation.main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    argv = ["--csv", str(write_table(tmp_path)), *GRID, "--device", "tpu"]
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"


def test_a_damaged_csv_is_told_and_its_rows_are_used(tmp_path, real_model, capsys):
    source = write_table(tmp_path)
    source.write_bytes(source.read_bytes()[:5000])
    assert main(["--csv", str(source), *GRID]) == 0
    assert "fake.csv is damaged: its checksum" in capsys.readouterr().err
    assert len(read_csv(source.with_name("fake-scaled.csv"))) == len(ROWS) * (256 + 320)


def test_a_table_without_a_point_is_one_line(tmp_path, real_model, capsys):
    table = make_table()
    table.missing = dict.fromkeys(table.records, "out of memory")
    table.records = {}
    assert main(["--csv", str(write_table(tmp_path, table)), *GRID]) == 2
    error = capsys.readouterr().err
    assert "which the table lacks: out of memory" in error and error.count("\n") == 1
    assert real_model.told == []


def test_a_scaled_table_is_not_validated(tmp_path, real_model, capsys):
    scaled = apply_scaling_to_latency_csv(write_table(tmp_path), 1.5)
    assert main(["--csv", str(scaled), *GRID]) == 2
    assert "scaled already" in capsys.readouterr().err
    assert main(["--csv", str(tmp_path / "none.csv"), *GRID]) == 2
    assert real_model.told == []


def test_nothing_is_measured_for_an_output_that_cannot_be(tmp_path, real_model, capsys):
    source = write_table(tmp_path)
    assert main(["--csv", str(source), *GRID, "--scaling-output", str(source)]) == 2
    assert "--scaling-output" in capsys.readouterr().err
    assert real_model.told == []


def test_output_lengths_take_the_grid_of_inputs():
    default = scaling_request()
    assert default.pairs == tuple((i, o) for i in range(128, 1025, 128) for o in range(128, 1025, 128))
    assert (default.num_layers, default.repeat, default.mode, default.tolerance) == (None, 3, "curve", 0.05)
    assert (default.runtime, default.processes) == ("eager", None)
    own = scaling_request("--scaling-output-min", "1", "--scaling-output-max", "10")
    assert {output for _input, output in own.pairs} == {1}


def test_milliseconds_have_four_figures():
    shown = [milliseconds(latency_ns) for latency_ns in (1_234, 7_273_400, 60_384_000, 812_345_000, 20_123_456_000)]
    assert shown == ["0.001", "7.273", "60.38", "812.3", "20,123"]
