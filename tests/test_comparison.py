"""Two tables compared: ratios, intervals and verdicts of known times, what is told of the tables, exit codes."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import run_profile
from llm_profile.comparison.compare import ComparedPhase, Comparison, compare
from llm_profile.comparison.page import comparison_page
from llm_profile.comparison.ratio import STUDENT_T, Ratio, Verdict, ratio_of_sums
from llm_profile.errors import EXIT_COMPLETE, EXIT_SLOWER, EXIT_USAGE
from llm_profile.measurement import PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.store.paths import TablePaths
from tests.report_samples import BLOCK_ROWS, HOSTILE, LLAMA, changed, finished, hostile
from tests.table_samples import NOT_FLAT, paths_in, sweep_points, write, writer
from tests.test_report_page import parsed

ROOT = Path(__file__).parent.parent

POINTS = sweep_points(40, 40)
NOISE = np.linspace(-0.004, 0.004, 10)
"""Of the passes of a point: a spread of 0.8 %."""

BASE = {"embedding": 2_000, "q_proj": 30_000, "attn": 10_000, "o_proj": 20_000, "lm_head": 50_000}
"""Row -> nanoseconds of one block at the shortest length."""

Times = Callable[[str, SweepPoint], float]
"""Nanoseconds of a row at a point, of one block."""


def base(row: str, point: SweepPoint) -> float:
    return BASE[row] * (1 + 0.01 * point.total_len)


def times_of(**factors: float) -> Times:
    """`base`, with these rows slower by their factor."""
    return lambda row, point: base(row, point) * factors.get(row, 1.0)


def sample(point: SweepPoint, times: Times, rows: tuple[str, ...]) -> PointSample:
    """Passes with NOISE; rows of blocks are measured in two of them."""
    made = {}
    for number, row in enumerate(rows):
        blocks = 2 if row in BLOCK_ROWS else 1
        noise = np.roll(NOISE, 3 * number + point.total_len)
        passes = tuple(int(ns) for ns in times(row, point) * blocks * (1 + noise))
        made[row] = RowSample(passes, blocks, 1, (f"{row}_kernel",))
    whole = tuple(sum(column) for column in zip(*(row.pass_ns for row in made.values()), strict=True))
    return PointSample(point, made, whole, "fake", 1980.0)


def table(
    folder: Path, times: Times = base, points: list[SweepPoint] = POINTS, rows: tuple[str, ...] = (*BASE,), **more: Any
) -> Path:
    """The CSV of a table with these times."""
    with writer(folder, points, **more) as made:
        for point in points:
            made.add(sample(point, times, rows))
        made.table.meta["block_rows"] = {row: kind for row, kind in BLOCK_ROWS.items() if row in rows}
        made.finish()
    return paths_in(folder).csv


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table(tmp_path_factory.mktemp("a"))


def verdicts(phase: ComparedPhase) -> dict[str, Verdict]:
    return {row.name: row.verdict for row in (*phase.rows, phase.sum)}


# ---- ratios


def exact(*values: float) -> Any:
    return np.array(values), np.zeros(len(values))


def test_the_ratio_is_that_of_the_sums() -> None:
    (a_ns, error), (b_ns, _) = exact(100.0, 300.0), exact(110.0, 330.0)
    assert ratio_of_sums(a_ns, b_ns, error, error) == Ratio(
        *(pytest.approx(1.1),) * 5  # type: ignore[arg-type]
    )


def test_the_noise_of_passes_gives_the_interval_where_lengths_agree() -> None:
    """Of one length with standard errors of 1 %: 2.576 standard deviations of a difference of two."""
    (a_ns, _), (b_ns, _) = exact(1000.0), exact(1200.0)
    found = ratio_of_sums(a_ns, b_ns, np.array([10.0]), np.array([12.0]))
    width = 2.5758 * math.sqrt(2) * 0.01
    assert (found.low, found.high) == pytest.approx((1.2 * math.exp(-width), 1.2 * math.exp(width)), rel=1e-4)


def test_what_differs_between_lengths_gives_the_interval_where_passes_agree() -> None:
    """Three lengths of 100 ns: each in turn is left out; t(2) = 9.925 at 99 %."""
    (a_ns, error), (b_ns, _) = exact(100.0, 100.0, 100.0), exact(110.0, 90.0, 100.0)
    left_out = [math.log(two / 200) for two in (190, 210, 200)]
    width = 9.925 * math.sqrt(2 / 3 * sum((log - sum(left_out) / 3) ** 2 for log in left_out))
    found = ratio_of_sums(a_ns, b_ns, error, error)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, math.exp(-width), math.exp(width)))
    assert (found.least, found.most) == (0.9, 1.1)


def test_of_a_single_pass_nothing_is_known() -> None:
    (a_ns, _), (b_ns, _), unknown = exact(100.0), exact(300.0), np.array([math.nan])
    found = ratio_of_sums(a_ns, b_ns, unknown, unknown)
    assert (found.low, found.high) == (0.0, math.inf) and found.verdict(0.02) is Verdict.UNDECIDED


@pytest.mark.parametrize("lengths", [3, 20, 500])
def test_the_interval_holds_the_ratio_as_often_as_it_says(lengths: int) -> None:
    """Of 400 pairs of made-up tables with a true ratio of 1.05: at least 96.5 % (99 % are meant).

    The worst are few lengths of which one has nearly all of the time.
    """
    random = np.random.default_rng(lengths)
    true_ns, held = np.geomspace(1e4, 1e6, lengths), 0
    for _ in range(400):
        a_ns, b_ns = (true_ns * factor * (1 + 0.02 * random.standard_normal(lengths)) for factor in (1.0, 1.05))
        found = ratio_of_sums(a_ns, b_ns, 0.001 * a_ns, 0.001 * b_ns)
        held += found.low <= 1.05 <= found.high
    assert held >= 386


TIMES = st.lists(st.tuples(*[st.floats(1, 1e6)] * 2), min_size=1, max_size=150)


@given(TIMES, st.floats(0, 0.05))
def test_a_against_b_is_the_mirror_of_b_against_a(times: list[tuple[float, float]], error: float) -> None:
    a_ns, b_ns = np.array(times).T
    one = ratio_of_sums(a_ns, b_ns, a_ns * error, b_ns * error)
    other = ratio_of_sums(b_ns, a_ns, b_ns * error, a_ns * error)
    assert one.value * other.value == pytest.approx(1)
    if one.low > 0 and other.low > 0:
        assert one.low * other.high == pytest.approx(1) and one.high * other.low == pytest.approx(1)
    assert one.low <= one.value <= one.high


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.99, 1.01, Verdict.SAME),
        (1.001, 1.019, Verdict.SAME),  # known to differ, and by too little to matter
        (1.01, 1.03, Verdict.UNDECIDED),
        (0.9, 1.1, Verdict.UNDECIDED),
        (0.97, 0.99, Verdict.UNDECIDED),
        (1.03, 1.04, Verdict.SLOWER),
        (0.90, 0.97, Verdict.FASTER),
    ],
)
def test_verdicts(low: float, high: float, verdict: Verdict) -> None:
    assert Ratio(math.sqrt(low * high), low, high, low, high).verdict(tolerance=0.02) is verdict


def test_quantiles_of_student_are_those_of_tables() -> None:
    """They fall with the degrees of freedom, towards the normal one."""
    values = [STUDENT_T[degrees] for degrees in sorted(STUDENT_T)]
    assert values == sorted(values, reverse=True) and values[-1] > 2.5758
    assert [STUDENT_T[degrees] for degrees in (1, 5, 10, 30)] == [63.66, 4.032, 3.169, 2.750]


# ---- tables


def test_rows_of_known_factors(a: Path, tmp_path: Path) -> None:
    b = table(tmp_path, times_of(q_proj=1.10, attn=0.90, o_proj=1.01))
    found = compare(a, b, tolerance=0.02)
    assert [phase.name for phase in found.phases] == ["prefill", "decode"] and found.differing == ()
    for phase in found.phases:
        assert verdicts(phase) == {
            "embedding": Verdict.SAME,
            "q_proj": Verdict.SLOWER,
            "attn": Verdict.FASTER,
            "o_proj": Verdict.SAME,
            "lm_head": Verdict.SAME,
            "sum": Verdict.SLOWER,
        }
        ratios = {row.name: row.ratio for row in phase.rows}
        assert ratios["q_proj"].value == pytest.approx(1.10, abs=1e-3)
        assert ratios["attn"].value == pytest.approx(0.90, abs=1e-3)
        assert phase.lengths == tuple(range(1, 41))
        assert (phase.only_in_a, phase.only_in_b, phase.rows_only_in_a, phase.rows_only_in_b) == (0, 0, (), ())


def test_sums_are_of_the_full_model_and_prompts_pay_one_logit(a: Path, tmp_path: Path) -> None:
    """32 blocks; in prefill `lm_head` is that of the prompt of one token at every length."""
    found = compare(a, table(tmp_path, times_of(q_proj=1.10)), tolerance=0.02)
    assert found.of_full_model
    blocks, other = 32 * (BASE["q_proj"] + BASE["attn"] + BASE["o_proj"]), BASE["embedding"]
    growth = {"prefill": 1 + 0.01 * 20.5, "decode": 1 + 0.01 * 21.5}  # of total lengths 1 to 40, and 2 to 41
    for phase in found.phases:
        head = BASE["lm_head"] * (1.01 if phase.name == "prefill" else growth["decode"])
        whole = (blocks + other) * growth[phase.name] + head
        assert phase.sum.a_ns == pytest.approx(whole, rel=1e-3)
        more = 0.10 * 32 * BASE["q_proj"] * growth[phase.name]
        assert phase.sum.ratio.value == pytest.approx(1 + more / whole, abs=1e-3)


def test_only_common_measured_lengths_are_compared(a: Path, tmp_path: Path) -> None:
    points = [SweepPoint(n, 0) for n in (1, 8, 24, 64)] + [SweepPoint(1, 8)]
    paths = TablePaths.beside(table(tmp_path, points=points))
    filled = read_table(paths.csv)
    filled.records[SweepPoint(24, 0)] = replace(filled.records[SweepPoint(24, 0)], source="filled")
    write(filled, paths)
    prefill, decode = compare(a, paths.csv, tolerance=0.02).phases
    assert (prefill.lengths, prefill.only_in_a, prefill.only_in_b) == ((1, 8), 38, 1)
    assert (decode.lengths, decode.only_in_a, decode.only_in_b) == ((8,), 39, 0)


def test_rows_of_one_table_are_named(a: Path, tmp_path: Path) -> None:
    def times(row: str, point: SweepPoint) -> float:
        return base("attn" if row == "q_norm" else row, point)

    b = table(tmp_path, times, rows=("embedding", "q_proj", "q_norm", "attn", "lm_head"))
    for phase in compare(a, b, tolerance=0.02).phases:
        assert (phase.rows_only_in_a, phase.rows_only_in_b) == (("o_proj",), ("q_norm",))
        assert [row.name for row in phase.rows] == ["embedding", "q_proj", "attn", "lm_head"]


def test_points_of_several_sequences_are_counted(tmp_path: Path) -> None:
    csv = finished(tmp_path).csv
    assert compare(csv, csv, tolerance=0.02).several_sequences == len(NOT_FLAT)


def test_a_table_is_the_same_as_itself() -> None:
    found = compare(LLAMA, LLAMA, tolerance=0.02)
    assert found.differing == () and found.warnings == ()
    for phase in found.phases:
        assert {*verdicts(phase).values()} == {Verdict.SAME}
        assert all(row.ratio.value == 1 and not row.other_kernels for row in phase.rows)


def test_conditions_that_differ_come_first(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conditions = {"dtype": "float16", "torch": "2.14.0", "num_layers": 1, "seed": 0, "driver": "600.1"}
    b = table(tmp_path, conditions=conditions, config={"model_type": "llama", "hidden_size": 64, "vocab_size": 9})
    told = {name: (x, y) for name, x, y in compare(a, b, tolerance=0.02).differing}
    assert told == {
        "dtype": ("bfloat16", "float16"),
        "torch": ("2.13.0", "2.14.0"),
        "driver": ("-", "600.1"),
        "config.vocab_size": ("-", "9"),
        "config.rope_parameters.rope_theta": ("10000.0", "-"),
    }
    assert run_profile.main(["compare", str(a), str(b)]) == EXIT_COMPLETE
    said = capsys.readouterr().out
    assert said.index("600.1") < said.index("q_proj")


def test_other_kernels_are_marked(a: Path, tmp_path: Path) -> None:
    paths = TablePaths.beside(table(tmp_path))
    other = read_table(paths.csv)
    for point, record in other.records.items():
        rows = record.rows | {"attn": replace(record.rows["attn"], kernels=("flash",))}
        other.records[point] = replace(record, rows=rows)
    write(other, paths)
    for phase in compare(a, paths.csv, tolerance=0.02).phases:
        assert [row.name for row in phase.rows if row.other_kernels] == ["attn"]


def test_an_unfinished_table_says_so_on_top(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with writer(tmp_path, POINTS) as begun:
        for point in POINTS[:30]:
            begun.add(sample(point, base, (*BASE,)))
    found = compare(a, paths_in(tmp_path).csv, tolerance=0.02)
    assert found.b.notes[0].startswith("Unfinished: 30 points so far") and not found.of_full_model
    (phase,) = found.phases
    per_block = sum(BASE[row] * (2 if row in BLOCK_ROWS else 1) for row in BASE if row != "lm_head")
    assert phase.sum.a_ns == pytest.approx(per_block * (1 + 0.01 * 15.5) + BASE["lm_head"] * 1.01, rel=1e-3)
    assert run_profile.main(["compare", str(a), str(paths_in(tmp_path).csv)]) == EXIT_COMPLETE
    said = capsys.readouterr().out.splitlines()
    assert "Unfinished" in said[3] and not any("q_proj" in line for line in said[:4])


@pytest.mark.parametrize(
    ("meta", "words"),
    [({"clock": "cpu-wall"}, "The clocks differ"), ({"scaling": {"mode": "global"}}, "One table is scaled")],
)
def test_tables_of_different_quantities_are_not_judged(
    a: Path, tmp_path: Path, meta: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = TablePaths.beside(table(tmp_path))
    changed(paths, **meta)
    (said,) = compare(a, paths.csv, tolerance=0.02).incomparable
    assert said.startswith(words)
    refused(a, paths.csv, said, capsys)


PREFILL, DECODE = ([point for point in POINTS if (point.kv_len > 0) == decode] for decode in (False, True))


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (PREFILL, "Only B has decode, which is not compared."),
        (DECODE, "Only B has prefill, which is not compared."),
        ([SweepPoint(1, 0), *DECODE], "Only B has prefill of more than one token."),
        ([*PREFILL, SweepPoint(1, 50)], "No length of decode was measured in both tables, so it is not compared."),
    ],
)
def test_a_phase_of_one_table_is_not_judged(
    a: Path, tmp_path: Path, points: list[SweepPoint], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    less = table(tmp_path, points=points)
    assert run_profile.main(["compare", str(less), str(a)]) == EXIT_COMPLETE
    said = capsys.readouterr().out
    assert said.index(words) < said.index("q_proj")
    refused(less, a, words, capsys)
    assert compare(less, less, tolerance=0.02).incomparable == ()


def refused(a: Path, b: Path, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--fail-above ends with 2 and one line, as text and as JSON."""
    assert run_profile.main(["compare", str(a), str(b), "--fail-above", "5%"]) == EXIT_USAGE
    said = capsys.readouterr()
    assert not said.out and len(said.err.splitlines()) == 1 and "no verdict" in said.err and why in said.err
    assert run_profile.main(["compare", str(a), str(b), "--fail-above", "5%", "--json"]) == EXIT_USAGE
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == EXIT_USAGE and why in document["error"]


def damaged(folder: Path) -> Path:
    paths = TablePaths.beside(table(folder))
    paths.rows.write_bytes(paths.rows.read_bytes()[:-100])
    return paths.csv


def of_another_schema(folder: Path) -> Path:
    paths = TablePaths.beside(table(folder))
    paths.meta.write_text(json.dumps(json.loads(paths.meta.read_text()) | {"row_schema": 1}))
    return paths.csv


def without_kinds_counted(folder: Path) -> Path:
    paths = TablePaths.beside(table(folder))
    paths.meta.write_text(json.dumps(json.loads(paths.meta.read_text()) | {"kinds": [{"name": "block"}]}))
    return paths.csv


def somebody_elses(folder: Path) -> Path:
    (folder / "other.csv").write_text("a,b\n1,2\n")
    return folder / "other.csv"


def nowhere(folder: Path) -> Path:
    return folder / "none.csv"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (damaged, "model-1.5.rows.parquet is missing or damaged"),
        (of_another_schema, "row_schema is 1 there"),
        (without_kinds_counted, "model-1.5.meta.json is damaged"),
        (somebody_elses, "other.csv: not a table of LLM-Profile"),
        (nowhere, "no latency table there"),
    ],
)
@pytest.mark.parametrize("place", [0, 1], ids=["A", "B"])
def test_what_is_no_table_ends_with_one_line(
    a: Path, make: Callable[[Path], Path], words: str, place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(a)]
    files.insert(place, str(make(tmp_path)))
    assert run_profile.main(["compare", *files]) == EXIT_USAGE
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and words in said.err


def test_tables_without_a_common_length_end_with_one_line(
    a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b = table(tmp_path, points=[SweepPoint(50, 0), SweepPoint(1, 50)])
    assert run_profile.main(["compare", str(a), str(b)]) == EXIT_USAGE
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "no length was measured in both" in said


# ---- the command


@pytest.mark.parametrize(
    ("factors", "options", "code"),
    [
        ({"attn": 1.10}, [], EXIT_COMPLETE),
        ({"attn": 1.10}, ["--fail-above", "5%"], EXIT_SLOWER),
        ({"attn": 1.10}, ["--fail-above", "5", "--json"], EXIT_SLOWER),
        ({"attn": 1.10}, ["--fail-above", "12%"], EXIT_COMPLETE),
        ({"attn": 0.50}, ["--fail-above", "5%"], EXIT_COMPLETE),
        (dict.fromkeys(BASE, 1.04), ["--fail-above", "3%"], EXIT_SLOWER),
    ],
)
def test_exit_codes_for_ci(
    factors: dict[str, float],
    options: list[str],
    code: int,
    a: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    b = table(tmp_path, times_of(**factors))
    assert run_profile.main(["compare", str(a), str(b), *options]) == code
    said = capsys.readouterr().err
    assert ("decidedly slower" in said) == (code == EXIT_SLOWER)
    if code == EXIT_SLOWER:
        rows = ", ".join([*(row for row in BASE if row in factors), *(["sum"] if len(factors) > 1 else [])])
        assert f"prefill: {rows}; decode: {rows}" in said


def test_the_sum_alone_fails_too(a: Path, tmp_path: Path) -> None:
    """Rows that only B has are in its sum."""

    def times(row: str, point: SweepPoint) -> float:
        return base("q_proj" if row == "q_norm" else row, point)

    b = table(tmp_path, times, rows=(*BASE, "q_norm"))
    found = compare(a, b, tolerance=0.02)
    assert found.slower_by(0.01) == {"prefill": ["sum"], "decode": ["sum"]}


@pytest.mark.parametrize("value", ["-1", "x", "nan", "inf", ""])
def test_percentages_that_are_none(a: Path, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_profile.main(["compare", str(a), str(a), f"--fail-above={value}"]) == EXIT_USAGE
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "--fail-above" in said and "is no percentage" in said


def test_json_is_one_document(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = table(tmp_path, times_of(attn=1.10))
    run_profile.main(["compare", str(a), str(b), "--json", "--fail-above", "5%", "--html", str(tmp_path / "c.html")])
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["exit_code"] == EXIT_SLOWER
    attn = told["phases"]["decode"]["rows"]["attn"]
    assert attn["verdict"] == "SLOWER" and attn["ratio"] == pytest.approx(1.10, abs=1e-3)
    assert attn["interval"][0] < attn["ratio"] < attn["interval"][1]
    assert told["slower"] == {"prefill": ["attn"], "decode": ["attn"]} and told["fail_above"] == 0.05
    assert told["phases"]["prefill"]["common_lengths"] == 40
    assert (told["a"]["path"], told["b"]["path"]) == (str(a), str(b))


def test_an_unknown_interval_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One pass at one length."""
    one = [SweepPoint(4, 0)]
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        with writer(path, one) as made:
            made.add(PointSample(one[0], {"attn": RowSample((1000,), 1, 1, ("k",))}, (1000,), "fake"))
            made.table.meta["block_rows"] = {}
            made.finish()
    assert run_profile.main(["compare", *(str(paths_in(path).csv) for path in paths), "--json"]) == EXIT_COMPLETE
    row = json.loads(capsys.readouterr().out)["phases"]["prefill"]["rows"]["attn"]
    assert row["interval"] is None and row["verdict"] == "UNDECIDED"


def test_the_text_fits_in_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = LLAMA.parents[1] / "microsoft" / "Phi-mini-MoE-instruct.csv"
    assert run_profile.main(["compare", str(LLAMA), str(other)]) == EXIT_COMPLETE
    lines = capsys.readouterr().out.splitlines()
    tables = [line for line in lines if "SLOWER" in line or "UNDECIDED" in line or "B/A" in line]
    assert len(tables) > 10 and max(map(len, tables)) <= 100
    assert any("rows in B only: experts" in line or "experts" in line for line in lines)


def test_the_page_is_escaped_and_needs_nothing(tmp_path: Path) -> None:
    plain = parsed(comparison_page(of_itself(finished(tmp_path / "plain").csv)))
    page = comparison_page(of_itself(hostile(tmp_path / "hostile").csv))
    broken = parsed(page)
    assert {tag for tag, _ in broken.found} <= {tag for tag, _ in plain.found} | {"p"}
    assert "script" not in {tag for tag, _ in broken.found} and "http" not in page.replace("http-equiv", "")
    assert broken.text.count(HOSTILE) > 10
    (policy,) = [attributes["content"] for tag, attributes in broken.found if "http-equiv" in attributes]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_page_has_no_control_characters(tmp_path: Path) -> None:
    found = of_itself(finished(tmp_path).csv)
    page = comparison_page(replace(found, a=replace(found.a, path=Path("\x1b[31m\x9b\udcff"))))
    assert "\\x1b[31m\\x9b\\udcff" in page and not {*"\x1b\x9b\udcff"} & {*page}


def of_itself(csv: Path) -> Comparison:
    return compare(csv, csv, tolerance=0.02)


def test_names_of_files_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = finished(tmp_path)
    steering = "\x1b[31m[red]row"
    made = read_table(paths.csv)
    made.model = steering
    for point, record in made.records.items():
        made.records[point] = replace(record, rows={f"{steering}{n}": row for n, row in record.rows.items()})
    made.meta["block_rows"] = {}
    write(made, paths)
    assert run_profile.main(["compare", str(paths.csv), str(paths.csv)]) == EXIT_COMPLETE
    said = capsys.readouterr().out
    assert "\x1b" not in said and "?[31m[red]row" in said


def test_names_that_were_typed_do_not_steer_the_terminal(a: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_profile.main(["compare", "/nowhere/\x1b[31mx.csv", str(a)]) == EXIT_USAGE
    said = capsys.readouterr().err
    assert "\x1b" not in said and "/nowhere/\\x1b[31mx.csv" in said


def piped(stdout: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "run_profile.py", "compare", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_reader_that_has_enough_changes_no_exit_code(options: list[str], a: Path, tmp_path: Path) -> None:
    slow = table(tmp_path, times_of(attn=1.10))
    for words, code in (([], EXIT_COMPLETE), (["--fail-above", "5%"], EXIT_SLOWER)):
        reader, pipe = os.pipe()
        os.close(reader)
        done = piped(pipe, *words, a, slow, *options)
        os.close(pipe)
        assert done.returncode == code
        assert len(done.stderr.splitlines()) == len(words) // 2, "what is slower, and nothing of the pipe"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_result_that_is_lost_is_an_error(options: list[str], a: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = piped(full, a, a, *options)
    os.close(full)
    (line,) = done.stderr.splitlines()
    assert done.returncode == EXIT_USAGE and "cannot write to stdout: No space left on device" in line


def test_a_page_replaces_no_table(a: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = a.read_bytes()
    assert run_profile.main(["compare", str(a), str(a), "--html", str(a)]) == EXIT_USAGE
    assert "must end in .html" in capsys.readouterr().err and a.read_bytes() == before
