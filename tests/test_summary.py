"""What a run says at its end, from tables whose numbers are known."""

from dataclasses import replace
from pathlib import Path

import pytest

from llm_profile.cli import summary
from llm_profile.cli.ending import Swept, sweep_ending
from llm_profile.cli.messages import Verbosity, notice, tell
from llm_profile.measurement import PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Plan, Sweep, plan

PATHS = TablePaths.of(Path("out"), "H200", "org/model")
NOTHING = Plan((), {})
PREFILL, DECODE = SweepPoint(4, 0), SweepPoint(1, 4)


def record(
    clock: float | None = None, notes: tuple[str, ...] = (), run: int = 0, **rows: tuple[int, ...]
) -> PointRecord:
    """A point whose rows, but the `lm_head`, are of two blocks."""
    samples = {name: RowSample(times, 1 if name == "lm_head" else 2) for name, times in rows.items()}
    pass_ns = tuple(sum(column) for column in zip(*rows.values(), strict=True))
    return PointRecord.of(PointSample(PREFILL, samples, pass_ns, "eager", clock, 0.0, notes), run)


def table(**records: PointRecord) -> LatencyTable:
    made = LatencyTable("H200", "org/model", {"runs": [{"index": 0, "seconds": 3.0}]})
    made.records = {{"prefill": PREFILL, "decode": DECODE}[name]: value for name, value in records.items()}
    return made


def end_of_sweep(made: LatencyTable, laid_out: Plan = NOTHING) -> list[str]:
    return sweep_ending(made, PATHS, Swept(laid_out)).lines()


def test_shares_are_of_the_whole_pass_in_each_phase() -> None:
    made = table(
        prefill=record(attn=(60, 60), block_other=(20, 20), lm_head=(20, 20)),
        decode=record(attn=(10, 10), block_other=(0, 0), lm_head=(30, 30)),
    )
    assert summary.row_shares(made) == {
        "prefill": {"attn": 0.6, "block_other": 0.2, "lm_head": 0.2},
        "decode": {"attn": 0.25, "block_other": 0.0, "lm_head": 0.75},
    }
    assert end_of_sweep(made) == [
        "org/model on H200: 2 points, 3 rows each",
        "timed by: eager 2",
        "noise: 0.00% between quartiles of a pass (median point); unnamed rows (_other): 20.0% of prefill, 0.0% of "
        "decode",
        f"table: {PATHS.csv}, model.rows.parquet, model.meta.json",
    ]
    title, first, *others = summary.rows_text(made)
    assert title == "rows: share of the time of prefill and decode" and len(others) == 2
    assert first.split() == ["attn", "60.0%", "25.0%"]


def test_much_gpu_time_without_a_name_is_told_with_its_kernels() -> None:
    made = table(
        prefill=record(attn=(80, 80), block_other=(5, 5), model_other=(20, 20)),
        decode=record(attn=(95,), block_other=(5,)),
    )
    of_prefill = made.records[PREFILL]
    named = {name: replace(row, kernels=(f"{name} " + "x" * 99,)) for name, row in of_prefill.rows.items()}
    made.records[PREFILL] = replace(of_prefill, rows=named)
    assert not list(summary.unnamed_text(made)), "wall time, or nobody knows"
    made.meta["clock"] = "gpu-kernel"
    assert list(summary.unnamed_text(made)) == [
        "doubtful: in 1 of 2 points over 10% of the GPU time is in unnamed rows "
        f"(23.8% at input 4, kv_cache 0, most of it model_other: model_other {'x' * 48})"
    ]
    made.records.pop(PREFILL)
    assert not list(summary.unnamed_text(made)), "5 %"


def test_shares_are_of_the_numbers_that_tables_carry() -> None:
    made = table(prefill=record(attn=(10, 10, 10, 40, 90), lm_head=(20, 20, 20, 20, 20)))
    assert summary.row_shares(made) == {"prefill": {"attn": 0.5, "lm_head": 0.5}}, "20 each; attn's median is 10"


def test_a_row_of_one_phase_only_has_no_share_in_the_other() -> None:
    made = table(prefill=record(attn=(10,), lm_head=(10,)), decode=record(lm_head=(10,)))
    assert [line.split() for line in summary.rows_text(made)][1:] == [
        ["attn", "50.0%", "0.0%"],
        ["lm_head", "50.0%", "100.0%"],
    ]


def test_noise_is_the_median_spread_of_passes() -> None:
    made = table(prefill=record(attn=(90, 100, 110)), decode=record(attn=(100, 100, 100)))
    assert summary.noise(made) == pytest.approx(0.05)
    assert summary.noise(table()) is None
    assert summary.noise(table(prefill=record(attn=(0, 0)))) is None, "no time, no share of it"


def test_an_empty_table_says_what_is_missing() -> None:
    made = table()
    made.missing = {PREFILL: "out of memory", DECODE: "out of memory"}
    said = [*end_of_sweep(made, Plan((PREFILL, DECODE), {})), *summary.rows_text(made)]
    assert "missing: 2 of 2 points: out of memory (first: input 4, kv_cache 0)" in said


def test_missing_points_are_those_asked_for() -> None:
    made = table(prefill=record(attn=(1,)))
    made.missing = {DECODE: "out of memory", SweepPoint(9, 0): "asked for in another run"}
    laid_out = Plan((PREFILL, DECODE), {})
    assert summary.missing_points(made.missing, laid_out) == {DECODE: "out of memory"}


def test_points_that_cannot_run_come_with_the_ranges_that_do() -> None:
    laid_out = plan(Sweep("both", 8, 8), learned_positions=6)
    made = table()
    made.missing = dict(laid_out.unrunnable)
    said = end_of_sweep(made, laid_out)
    assert "missing: 5 of 16 points: beyond the model's 6 learned positions (first: input 7, kv_cache 0)" in said
    assert "  they cannot be measured on this model; --prefill-max 6 --decode-max 5 leaves them out" in said
    assert not plan(Sweep("both", 6, 5), learned_positions=6).unrunnable
    assert summary.largest_ranges(plan(Sweep("decode", decode_max=8), 6)) == "--prefill-max 1 --decode-max 5"


def test_doubts_are_told() -> None:
    made = table(prefill=record(1980.0, ("kernels overlap",), attn=(1,)))
    for kv_len in (5, 6, 7):
        made.records[SweepPoint(1, kv_len)] = record(1980.0, attn=(1,))
    made.records[DECODE] = record(1500.0, ("kernels overlap",), attn=(1,))
    said = end_of_sweep(made)
    assert "doubtful: 1 of 5 points ran at a low SM clock (first: input 1, kv_cache 4)" in said
    below = "clock: 1 of 5 points ran over 2% below 1980 MHz, the highest of the table, the slowest at 1500 MHz"
    assert below in said
    assert "doubtful: 2 of 5 points: kernels overlap" in said


def test_how_far_a_plan_has_come() -> None:
    assert summary.resuming_text(11, 11) is None
    assert summary.resuming_text(4, 11) == "going on: 7 of 11 points are there already"
    assert str(summary.resuming_text(0, 11)).startswith("complete: ")


def test_what_the_latest_run_measured() -> None:
    made = table(prefill=record(attn=(1,)), decode=record(attn=(1,)))
    assert summary.measured_text(4, 0.2) == "points measured: 4 in 0.2 s (50.0 ms each)"
    assert summary.measured_text(0, 0.2) is None and summary.measured_text(0, None) is None
    first = sweep_ending(made, PATHS, Swept(Plan((), {}), 4, 0.2)).lines()[0]
    assert first == "org/model on H200: 2 points, 1 rows each; points measured: 4 in 0.2 s (50.0 ms each)"


def test_notices_are_one_line_without_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    notice(None)
    notice("")
    notice("two\nlines of hf_abcdefghijklmnopqrstuvwxyz")
    assert capsys.readouterr().err == "two lines of hf_***\n"


def test_lines_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    steering = "a\x1b[31m\x07\x7f\x9b\udcff b\u00a0\u00e9"
    written = "a\\x1b[31m\\x07\\x7f\\x9b\\udcff b\u00a0\u00e9\n"
    notice(steering)
    Verbosity(json=True).summarise([steering])
    tell([steering])
    said = capsys.readouterr()
    assert (said.err, said.out) == (written * 2, written)


def test_conditions_that_do_not_apply_are_left_out() -> None:
    text = summary.conditions_text({"gpu": None, "dtype": "float32", "seed": 0})
    assert text == "conditions: dtype float32, seed 0"
