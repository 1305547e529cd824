"""The report of a table: what it gathers, whether its numbers are the table's, what it refuses."""

import csv
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import run_profile
from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.report import curves
from llm_profile.report.contents import gather
from llm_profile.report.curves import row_weights, series_curves, thinned
from llm_profile.report.facts import gaps
from llm_profile.report.packing import packed
from llm_profile.report.page import default_path, report_page, write_report
from llm_profile.store.files import read_table
from llm_profile.sweep import DECODE, PREFILL
from llm_profile.validation.estimate import Estimate
from tests.fake_command import CSV, OPTIONS
from tests.report_samples import LLAMA, OPT, changed, data_of, finished, unpack, validated, validation_json
from tests.table_samples import measure, paths_in, sample, sweep_points, write, writer

MOST_BYTES = 500_000
"""Of the page of the README's sweep."""


@pytest.fixture(scope="module")
def llama() -> dict[str, Any]:
    """The numbers of the page of the README's table."""
    return data_of(report_page(gather(LLAMA)))


# ---- numbers


@given(st.lists(st.integers(-(2**62), 2**62)))
def test_packed_numbers_are_read_back(numbers: list[int]) -> None:
    assert unpack(packed(numbers)) == numbers


def test_smooth_curves_take_a_byte_a_number() -> None:
    assert len(packed(range(1, 3001))) == 4000, "base64 has four letters for three bytes"


def test_the_page_has_every_number_of_the_csv(llama: dict[str, Any]) -> None:
    with open(LLAMA, newline="", encoding="utf-8") as file:
        wanted = {
            (row["layer_name"], int(row["input"]), int(row["kv_cache"])): int(row["latency(ns)"])
            for row in csv.DictReader(file)
        }
    shown = {}
    for series in llama["series"]:
        lengths = unpack(series["lengths"])
        for row, curve in zip(llama["rows"], series["rows"], strict=True):
            for length, ns in zip(lengths, unpack(curve["ns"]), strict=True):
                key = (length, 0) if series["name"] == "prefill" else (1, length)
                assert shown.setdefault((row["name"], *key), ns) == ns
    assert shown == wanted and len(shown) == 19 * 4096


def test_stacked_rows_add_up_to_the_estimate(llama: dict[str, Any]) -> None:
    estimate = Estimate.of(read_table(LLAMA))
    for series, wanted in zip(llama["series"], (estimate.prefill_ns, estimate.decode_ns), strict=True):
        curves_ns = [np.array(unpack(curve["ns"])) for curve in series["rows"]]
        if series["head"] is not None:
            curves_ns[series["head"]] = np.full_like(curves_ns[series["head"]], curves_ns[series["head"]][0])
        total = sum(row["weight"] * ns for row, ns in zip(llama["rows"], curves_ns, strict=True))
        np.testing.assert_allclose(total, wanted(unpack(series["lengths"])), rtol=1e-12)
    assert [series["head"] is None for series in llama["series"]] == [False, True]


def test_quartiles_are_averaged_over_neighbours(llama: dict[str, Any]) -> None:
    table = read_table(LLAMA)
    series, row = llama["series"][0], 0
    name, every = llama["rows"][row]["name"], series["every"]
    assert every == 4 and len(unpack(series["rows"][row]["below"])) == 512
    first = [table.records[SweepPoint(n, 0)].rows[name].measurement for n in range(1, 1 + every)]
    below, above = (unpack(series["rows"][row][side])[0] for side in ("below", "above"))
    assert below == round(np.mean([m.trimmed_mean_ns - m.q1_ns for m in first]))
    assert above == round(np.mean([m.q3_ns - m.trimmed_mean_ns for m in first]))


def test_kernels_are_those_of_the_table(llama: dict[str, Any]) -> None:
    table, names = read_table(LLAMA), llama["kernels"]["names"]
    sets = [tuple(names[name] for name in members) for members in llama["kernels"]["sets"]]
    series = llama["series"][0]
    for row, curve in zip(llama["rows"], series["rows"], strict=True):
        starts, ends = unpack(curve["starts"]), [*unpack(curve["starts"])[1:], 2048]
        found: list[Any] = []
        for start, end, chosen, launches in zip(
            starts, ends, unpack(curve["sets"]), unpack(curve["launches"]), strict=True
        ):
            found += [(sets[chosen], launches)] * (end - start)
        records = (table.records[SweepPoint(n, 0)].rows[row["name"]] for n in range(1, 2049))
        assert found == [(record.kernels, record.launches) for record in records]


def test_the_page_of_the_readme_sweep_is_small_and_needs_nothing(tmp_path: Path) -> None:
    path = write_report(LLAMA, tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size <= MOST_BYTES
    assert "src=" not in page and "url(" not in page and "@import" not in page and "<link" not in page
    assert "uPlot 1.6.32" in page and "The MIT License" in page and "Leon Sorokin" in page
    assert "default-src 'none'" in page


def test_the_committed_page_has_the_numbers_of_the_committed_table(llama: dict[str, Any]) -> None:
    """`python3 run_profile.py report H200/meta-llama/Llama-3.1-8B.csv` writes it anew."""
    committed = default_path(LLAMA).read_text(encoding="utf-8")
    assert data_of(committed) == llama and len(committed.encode()) <= MOST_BYTES


def test_long_series_are_thinned_and_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MOST_LENGTHS", 5)
    monkeypatch.setattr(curves, "MOST_BANDS", 2)
    contents = gather(finished(tmp_path, sweep_points(9, 3)).csv)
    prefill, decode = contents.curves
    assert prefill.lengths == (1, 3, 5, 7, 9) and prefill.left_out == 4 and prefill.every == 3
    assert len(prefill.whole_pass.band.below_ns) == 2
    assert decode.lengths == (0, 1, 2, 3) and decode.left_out == 0
    assert "4 lengths of the table left out of this page" in report_page(contents)


def test_thinned_keeps_both_ends() -> None:
    points = sweep_points(100, 0)
    few = thinned(points, 7)
    assert len(few) == 7 and few[0] == points[0] and few[-1] == points[-1]
    assert thinned(points, 100) == points


def test_rows_of_blocks_count_as_often_as_the_model_has_them(tmp_path: Path) -> None:
    table = read_table(finished(tmp_path).csv)
    assert row_weights(table) == {"embedding": 1, "q_proj": 32, "attn": 32, "o_proj": 32, "lm_head": 1}
    table.meta.pop("block_rows")
    assert row_weights(table) == {"embedding": 1, "q_proj": 3, "attn": 3, "o_proj": 3, "lm_head": 1}


def test_a_row_that_runs_at_some_lengths_only(tmp_path: Path) -> None:
    points = sweep_points(4, 3)
    with writer(tmp_path, points) as table:
        for point in points:
            rows = ("embedding", "late") if point.input_len > 2 else ("embedding",)
            table.add(sample(point, rows))
        table.finish()
    prefill, decode = series_curves(read_table(paths_in(tmp_path).csv))
    late = prefill.rows["late"]
    assert late.latency_ns[:2] == (0, 0) and min(late.latency_ns[2:]) > 0
    assert [(stretch.start, stretch.launches) for stretch in late.stretches] == [(0, 0), (2, 2), (3, 2)]
    assert "late" not in decode.rows
    data = data_of(report_page(gather(paths_in(tmp_path).csv)))
    assert data["series"][1]["rows"][[row["name"] for row in data["rows"]].index("late")] is None


# ---- what it says


def text_of(contents_csv: Path) -> str:
    return report_page(gather(contents_csv))


def test_a_finished_table_says_what_it_has(tmp_path: Path) -> None:
    page = text_of(validated(tmp_path).csv)
    assert "<h1>org/model-1.5 on H200</h1>" in page
    assert "27 points of 5 rows, 1 of 32 blocks measured" in page
    assert 'class="banner">Unfinished' not in page
    for found in (
        "at worst 20\N{NO-BREAK SPACE}%",
        "runs differ by 1.0\N{NO-BREAK SPACE}%",
        "Over the tolerance of 5.0 %: TTFT.",
        "cuda-graph, decode steps from scaled rows, all rows at (1, k): 3.0 % / 3.0 % / 6.0 %".replace(" %", "\u00a0%"),
        "cuda-graph, TTFT extrapolated to 32 layers: 4.0 % / 4.0 % / 8.0 %".replace(" %", "\u00a0%"),
        "cuda-graph: scaling phase was not fitted: there is no decode step",
    ):
        assert found in page
    assert "2 requests of unseen lengths, scaling curve, 32 of 32 layers, 3 rounds in 2 processes, 2026-11-27" in page
    assert "Nothing is missing." in page


def test_steps_of_several_sequences_are_shown(tmp_path: Path) -> None:
    paths = validated(tmp_path)
    contents, table = gather(paths.csv), read_table(paths.csv)
    by_title = {grid.title: grid.pass_ns for grid in contents.grids}
    assert by_title["Steps of several sequences, 1 new token each"] == {(4, 16): table.pass_ns(SweepPoint(1, 16, 4))}
    assert set(by_title["Steps of several sequences, 8 new tokens each"]) == {(2, 0), (2, 16)}
    assert by_title["Chunks of a prompt on a history"] == {(8, 16): table.pass_ns(SweepPoint(8, 16))}
    assert contents.mixed.count == 2
    page = text_of(paths.csv)
    assert "3 sequences of input 3, kv_cache 34 in all" in page and "+50.0 %" in page


def test_what_is_missing_is_grouped_by_reason(tmp_path: Path) -> None:
    table = read_table(finished(tmp_path, sweep_points(4, 3)).csv)
    table.missing |= {SweepPoint(n, 0): "out of memory" for n in (5, 6, 7)} | {SweepPoint(1, 9): "beyond"}
    assert [(gap.reason, gap.count, gap.text) for gap in gaps(table)] == [
        ("out of memory", 3, "input 5, kv_cache 0 to input 7, kv_cache 0"),
        ("beyond", 1, "input 1, kv_cache 9"),
    ]
    write(table, paths_in(tmp_path))
    assert "3 points: out of memory (input 5, kv_cache 0 to input 7, kv_cache 0)" in text_of(paths_in(tmp_path).csv)


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        ({"origin": "predicted"}, "Predicted: these latencies were not measured."),
        ({"origin": "example"}, "An example that comes with LLM-Profile"),
        ({"clock": "cpu-wall"}, "Wall times of a CPU"),
        ({"clock": "fake"}, "Made up: the device is fake"),
        ({"scaling": {"source": "m.csv", "runtime": "eager"}}, "A scaled table, made of m.csv: "),
    ],
)
def test_what_a_table_is_stands_on_top(tmp_path: Path, meta: dict[str, Any], told: str) -> None:
    paths = finished(tmp_path)
    changed(paths, **meta)
    page = text_of(paths.csv)
    assert f'class="banner">{told}' in page
    assert page.index(told) < page.index("How far the estimate is off")


def test_an_unfinished_table_is_shown_and_called_so(tmp_path: Path) -> None:
    points = sweep_points(6, 6)
    with writer(tmp_path, points) as table:
        for point in points[:8]:
            table.add(sample(point))
    contents = gather(paths_in(tmp_path).csv)
    assert contents.banners[0].startswith("Unfinished: 8 points so far.") and not contents.is_of_full_model
    assert "in a pass of the profiled blocks" in report_page(contents)


def test_an_interrupted_addition_to_a_table_is_unfinished_too(tmp_path: Path) -> None:
    paths = finished(tmp_path, sweep_points(4, 3))
    with writer(tmp_path, sweep_points(6, 3), append=True) as table:
        table.add(sample(SweepPoint(5, 0)))
    assert gather(paths.csv).banners[0].startswith("Unfinished: 8 points so far.")


def test_a_csv_that_was_edited_is_told_and_not_shown(tmp_path: Path) -> None:
    paths = finished(tmp_path)
    numbers = [curve.latency_ns for curve in gather(paths.csv).curves[0].rows.values()]
    paths.csv.write_text(paths.csv.read_text().replace("q_proj,1,0,", "q_proj,1,0,9"))
    contents = gather(paths.csv)
    assert "is damaged: its checksum is not that of" in contents.banners[0]
    assert [curve.latency_ns for curve in contents.curves[0].rows.values()] == numbers


def test_a_table_of_one_length_has_no_plots(tmp_path: Path) -> None:
    page = text_of(finished(tmp_path, [SweepPoint(1, 0)]).csv)
    assert 'id="latency"' not in page and "Prompts (prefill): none were measured, or one length only" in page


def test_without_a_validation_that_is_said(tmp_path: Path) -> None:
    page = text_of(finished(tmp_path).csv)
    assert "was not compared with the real model" in page and "<li>A comparison with the real model" in page


# ---- validations


def validation_beside(paths: Any, name: str, content: str) -> None:
    paths.csv.with_name(f"{paths.csv.stem}{name}.validation.json").write_text(content)


def test_all_runtimes_of_a_table_are_found() -> None:
    contents = gather(OPT)
    assert [(of.runtime, of.is_current, sum(of.held_out)) for of in contents.validations] == [
        ("cuda-graph", True, 49),
        ("eager", True, 49),
    ]
    for of in contents.validations:
        told = json.loads((OPT.parent / of.file).read_text())
        assert list(of.estimates) == ["kernels", "global", "phase", "curve"]
        for way, scaling in told["scalings"].items():
            held = [i for i, is_held_out in enumerate(of.held_out) if is_held_out]
            for quantity, wanted in scaling["held_out_errors"].items():
                errors = [
                    abs(getattr(of.estimates[way][i], f"{quantity}_ns") / getattr(of.measured[i], f"{quantity}_ns") - 1)
                    for i in held
                ]
                assert np.mean(errors) == pytest.approx(wanted["mean"], rel=1e-9), (of.runtime, way, quantity)


def test_the_errors_of_the_page_are_those_of_the_json(llama: dict[str, Any]) -> None:
    """From its packed times, as its script computes them."""
    by_runtime = {of["runtime"]: of for of in llama["validations"]}
    told = json.loads((LLAMA.parent / "Llama-3.1-8B-cuda-graph.validation.json").read_text())
    of = by_runtime["cuda-graph"]
    held = np.array(unpack(of["held_out"]), dtype=bool)
    for quantity, wanted in told["scalings"]["phase"]["held_out_errors"].items():
        measured, guess = (
            np.array(unpack(times[quantity]))[held] for times in (of["measured"], of["estimates"]["phase"])
        )
        assert np.mean(abs(guess / measured - 1)) == pytest.approx(wanted["mean"], rel=1e-4)


def test_validations_of_other_tables_are_not_taken(tmp_path: Path) -> None:
    paths = finished(tmp_path)
    table = read_table(paths.csv)
    for number, change in enumerate(({"model": "other"}, {"hardware": "H100"})):
        validation_beside(paths, f"-{number}", json.dumps(validation_json(table, paths.csv, **change)))
    other = validation_json(table, paths.csv.with_name("model-1.5-2.csv"))
    validation_beside(paths, "-2", json.dumps(other))
    contents = gather(paths.csv)
    assert not contents.validations and not contents.notices


def test_a_validation_of_an_earlier_state_is_shown_and_called_so(tmp_path: Path) -> None:
    paths = finished(tmp_path)
    told = validation_json(read_table(paths.csv), paths.csv)
    told["provenance"]["runs"] = []
    validation_beside(paths, "", json.dumps(told))
    (validation,) = gather(paths.csv).validations
    assert not validation.is_current and list(validation.estimates) == ["kernels", "curve"]
    assert "is of an earlier state of this table" in text_of(paths.csv)


def broken(told: dict[str, Any], path: str, value: Any) -> str:
    *holders, last = path.split(".")
    inner: Any = told
    for holder in holders:
        inner = inner[int(holder) if holder.isdigit() else holder]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(told)


BROKEN = [
    ("pairs.0.measured_ns", None),
    ("pairs.0.measured_ns.ttft", "fast"),
    ("pairs.0.measured_ns.ttft", 0),
    ("pairs.1.input", None),
    ("scalings", []),
    ("scalings.curve", {}),
    ("applied.mode", ...),
    ("tolerance", True),
    ("batched", [1]),
    ("pairs.0.input", 10**9),
    ("provenance", "none"),
]


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=lambda each: str(each)[:20])
def test_a_damaged_validation_is_left_out_and_told(tmp_path: Path, path: str, value: Any) -> None:
    paths = finished(tmp_path)
    validation_beside(paths, "", broken(validation_json(read_table(paths.csv), paths.csv), path, value))
    contents = gather(paths.csv)
    assert not contents.validations
    assert "model-1.5.validation.json is left out, as it is damaged" in contents.notices[0]
    assert contents.notices[0] in report_page(contents).replace("&#x27;", "'")


@pytest.mark.parametrize("content", ["", "[", "[]", "3", "{}", "[" * 10_000])
def test_what_is_no_validation_is_left_out_and_told(tmp_path: Path, content: str) -> None:
    paths = finished(tmp_path)
    validation_beside(paths, "", content)
    contents = gather(paths.csv)
    assert not contents.validations and len(contents.notices) == 1


def test_a_validation_of_another_schema_is_left_out_and_told(tmp_path: Path) -> None:
    paths = finished(tmp_path)
    validation_beside(paths, "", json.dumps(validation_json(read_table(paths.csv), paths.csv, schema=7)))
    assert gather(paths.csv).notices == ("model-1.5.validation.json is left out: its schema is 7, and 1 is read here",)


def test_errors_of_an_older_validation_have_no_spread_between_processes(tmp_path: Path) -> None:
    paths = finished(tmp_path)
    told = validation_json(read_table(paths.csv), paths.csv)
    for field in ("processes", "spread_between_processes", "noisy"):
        del told[field]
    validation_beside(paths, "", json.dumps(told))
    page = text_of(paths.csv)
    assert "3 rounds, 2026-11-27" in page and "processes by" not in page


# ---- the command


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_profile.main(["report", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_writes_the_page_beside_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv_path = finished(tmp_path).csv
    code, out, err = command(capsys, str(csv_path))
    page = csv_path.with_name("model-1.5.report.html")
    assert (code, out, err) == (0, f"report: {page}\n", "")
    assert page.read_text(encoding="utf-8") == text_of(csv_path)
    other = tmp_path / "elsewhere" / "page.html"
    assert command(capsys, str(csv_path), "--output", str(other))[0] == 0
    assert other.read_bytes() == page.read_bytes()


def damage(folder: Path, what: str) -> Path:
    """A table that cannot be read, and where it is."""
    paths = finished(folder)
    meta = json.loads(paths.meta.read_text())
    if what == "gone":
        shutil.rmtree(paths.csv.parent)
    if what == "somebody else's":
        paths.csv.write_text("a,b\n1,2\n")
    if what == "without metadata":
        paths.meta.unlink()
    if what == "no JSON":
        paths.meta.write_text("{")
    if what == "another schema":
        paths.meta.write_text(json.dumps(meta | {"row_schema": 1}))
    if what == "damaged rows":
        paths.rows.write_bytes(paths.rows.read_bytes()[:-9])
    if what == "kinds without a name":
        paths.meta.write_text(json.dumps(meta | {"kinds": [{"count": 3}]}))
    if what == "rows of no kind":
        paths.meta.write_text(json.dumps(meta | {"block_rows": {"attn": "elsewhere"}}))
    if what == "no name of a CSV":
        return paths.meta
    return paths.csv


REFUSED = {
    "gone": "no latency table there",
    "somebody else's": "not a table of LLM-Profile",
    "without metadata": "not a table of LLM-Profile",
    "no JSON": "is damaged",
    "another schema": "row_schema is 1 there and 2 in this version",
    "damaged rows": "is missing or damaged",
    "kinds without a name": ".meta.json is damaged",
    "rows of no kind": ".meta.json is damaged",
    "no name of a CSV": "it must end in .csv",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_table_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    path = damage(tmp_path, what)
    code, out, err = command(capsys, str(path))
    assert code == 2 and not out and err.count("\n") == 1
    assert err.startswith("run_profile.py: ") and REFUSED[what] in err
    assert not list(tmp_path.rglob("*.html"))


def test_a_sweep_ends_with_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_profile.main(["--output-dir", str(tmp_path), *OPTIONS]) == 0
    page = default_path(tmp_path / CSV)
    assert f"report: {page}" in capsys.readouterr().out.splitlines()
    assert "tiny-llama on FAKE" in page.read_text(encoding="utf-8")


def test_no_report_leaves_it_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_profile.main(["--output-dir", str(tmp_path), *OPTIONS, "--no-report"]) == 0
    assert "report: " not in capsys.readouterr().out and not list(tmp_path.rglob("*.html"))


def test_a_report_that_cannot_be_written_ends_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    default_path(tmp_path / CSV).mkdir(parents=True)
    assert run_profile.main(["--output-dir", str(tmp_path), *OPTIONS]) == 0
    assert "no report: cannot write" in capsys.readouterr().err


def test_the_report_of_a_table_that_is_resumed_is_written_anew(tmp_path: Path) -> None:
    points = sweep_points(6, 6)
    measure(tmp_path, points[:6])
    path = write_report(paths_in(tmp_path).csv)
    before = path.read_bytes()
    measure(tmp_path, points, append=True)
    assert write_report(paths_in(tmp_path).csv) == path and path.read_bytes() != before


def test_points_of_all_kinds_of_the_readme_series_are_drawn_once(llama: dict[str, Any]) -> None:
    lengths = {series["name"]: unpack(series["lengths"]) for series in llama["series"]}
    table, by_series = read_table(LLAMA), defaultdict(list)
    for name, series in (("prefill", PREFILL), ("decode", DECODE)):
        by_series[name] = [series.length(point) for point in series.of(table.records)]
    assert lengths == by_series


def test_gather_raises_for_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no latency table there"):
        gather(tmp_path / "none" / "table.csv")


@pytest.mark.parametrize("name", ["table.csv", "table.rows.parquet", "page"])
def test_a_page_takes_the_place_of_no_table(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("measured")
    with pytest.raises(UsageError, match=r"--output .*must end in \.html or \.htm"):
        run_profile._run(["report", str(tmp_path / "table.csv"), "--output", str(tmp_path / name)])
    assert (tmp_path / name).read_text() == "measured"
