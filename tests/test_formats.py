"""Files of every age are read and added to, and flat points are written as they always were.

tests/data/tables has what three versions left of a run that was killed: `no-grid` is of before there were grids,
configurations and checksums, `no-checksums` and `checksums` are as they say. whole.csv is the table that the first of
them made in one run.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.exporters import EXPORTERS
from llm_profile.measurement import PointFailure
from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord
from llm_profile.store import conditions
from llm_profile.store.conditions import CONDITION_DEFAULTS, differences, differing_conditions
from llm_profile.store.files import read_table
from llm_profile.store.journal import Journal, JournalContents, read_journal
from llm_profile.store.paths import TablePaths
from llm_profile.store.rows_file import COLUMNS, read_rows, write_rows
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Sweep
from tests.table_samples import CONDITIONS, NOT_FLAT, measure, paths_in, sample, sweep_points, write, writer
from tests.test_points import POINTS

ROOT = Path(__file__).parent.parent
OLD = ROOT / "tests" / "data" / "tables"
AGES = ("no-grid", "no-checksums", "checksums")
SWEEP = Sweep("both", 4, 4)
ROWS = ("embedding", "attn", "lm_head")
RUN = {"repeat": 100, "sweep": SWEEP.record()}
COMMITTED = sorted((ROOT / "H200").rglob("*.rows.parquet")) + sorted((ROOT / "H200").rglob("*.measured.parquet"))
LATER = "a_later_condition"
"""A condition that is yet to come."""


def old_table(age: str, folder: Path) -> TablePaths:
    shutil.copytree(OLD / age, folder, dirs_exist_ok=True)
    return paths_in(folder)


def committed_table(rows: Path, folder: Path) -> LatencyTable:
    """A table of H200/; of measured points, there is no CSV."""
    stem = rows.name.removesuffix(".parquet").removesuffix(".rows").removesuffix(".measured")
    meta = rows.name.replace(".rows.parquet", ".meta.json").replace(".parquet", ".meta.json")
    shutil.copy(rows, folder / f"{stem}.rows.parquet")
    shutil.copy(rows.with_name(meta), folder / f"{stem}.meta.json")
    return read_table(folder / f"{stem}.csv")


# ---- old files


@pytest.mark.parametrize("age", AGES)
def test_a_run_that_was_killed_goes_on_whatever_its_age(tmp_path: Path, age: str) -> None:
    paths, points = old_table(age, tmp_path), SWEEP.points()
    before = read_table(paths.csv)
    assert before.points() == points[:6] and before.missing == dict.fromkeys(points[-2:], "out of memory")
    with writer(tmp_path, points, run=RUN) as resumed:
        assert resumed.done() == {*points[:6]}
        for point in points[6:]:
            resumed.add(sample(point, ROWS))
        resumed.finish()
    assert paths.csv.read_bytes() == (OLD / "whole.csv").read_bytes()
    after = read_table(paths.csv)
    assert (after.missing, after.notices) == ({}, [])
    assert [run["points"] for run in after.meta["runs"]] == [3, 3, 2]


@pytest.mark.parametrize("age", AGES)
def test_what_an_old_table_was_asked_for_is_known(tmp_path: Path, age: str) -> None:
    known = read_table(old_table(age, tmp_path).csv)
    assert known.covers(SWEEP.points()) and known.covers(Sweep("decode", 1, 3).points(), "adaptive")
    assert not known.covers(Sweep("both", 5, 4).points())
    assert not any(known.covers([point]) for point in NOT_FLAT)


def test_flat_points_are_written_as_before(tmp_path: Path) -> None:
    """Byte by byte, but for Parquet, whose bytes depend on the release of pyarrow."""
    points, old = SWEEP.points(), paths_in(OLD / "checksums")
    for first, end, missing in ((0, 3, points[-1]), (3, 6, points[-2])):
        with writer(tmp_path, points, run=RUN) as part:
            for point in points[first:end]:
                part.add(sample(point, ROWS))
            part.add(PointFailure(missing, "out of memory"))
            if not first:
                part.finish()
    paths = paths_in(tmp_path)
    assert paths.csv.read_bytes() == old.csv.read_bytes()
    assert paths.journal.read_bytes() == old.journal.read_bytes()
    assert read_rows(paths.rows) == read_rows(old.rows)
    now, then = paths.meta.read_text(), old.meta.read_text()
    assert without_rows_sum(now) == without_rows_sum(then) and list(json.loads(now)) == list(json.loads(then))


def without_rows_sum(meta: str) -> str:
    return "\n".join(line for line in meta.splitlines() if '"rows": "' not in line)


def test_a_table_of_flat_points_has_no_later_columns(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    assert pq.ParquetFile(measure(tmp_path, [*sweep_points(3, 3), *NOT_FLAT[:4]]).rows).schema_arrow.names == [*COLUMNS]


@pytest.mark.parametrize("rows", COMMITTED, ids=lambda path: path.name)
def test_committed_tables_are_read_and_written_as_they_are(tmp_path: Path, rows: Path) -> None:
    table = committed_table(rows, tmp_path)
    assert table.notices == [] and all(point.is_flat for point in table.points())
    csv = rows.with_name(rows.name.replace(".rows.parquet", ".csv"))
    if csv.suffix == ".csv":
        assert EXPORTERS["csv"](table) == csv.read_bytes()
    paths = TablePaths.beside(tmp_path / "again.csv")
    write(table, paths)
    again = read_table(paths.csv)
    assert (again.records, again.missing) == (table.records, table.missing)
    assert {name: value for name, value in again.meta.items() if name != "runs"} == {
        name: value for name, value in table.meta.items() if name != "runs"
    }


# ---- later conditions


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of older versions were all measured under `model`."""
    monkeypatch.setitem(conditions.CONDITION_DEFAULTS, LATER, "model")


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("rows", COMMITTED, ids=lambda path: path.name)
def test_a_later_condition_does_not_make_committed_tables_strange(tmp_path: Path, rows: Path) -> None:
    table = committed_table(rows, tmp_path)
    now = table.meta | {"conditions": table.meta["conditions"] | {LATER: "model"}}
    assert differences(table.meta, now) == differences(now, table.meta) == []
    assert table.conditions == CONDITION_DEFAULTS | now["conditions"]
    fused = now | {"conditions": now["conditions"] | {LATER: "fused"}}
    assert differences(table.meta, fused) == [f'{LATER} is "model" there and "fused" now']
    assert differing_conditions(fused["conditions"], {LATER: "model"}) == [f'{LATER} is "fused" there and "model" now']


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("age", AGES)
def test_a_table_goes_on_under_a_condition_that_it_lacks(tmp_path: Path, age: str) -> None:
    paths = old_table(age, tmp_path)
    with (
        pytest.raises(UsageError, match=f'{LATER} is "model" there and "fused" now'),
        writer(tmp_path, SWEEP.points(), run=RUN, conditions=CONDITIONS | {LATER: "fused"}),
    ):
        pass
    with writer(tmp_path, SWEEP.points(), run=RUN, conditions=CONDITIONS | {LATER: "model"}) as resumed:
        for point in SWEEP.points():
            if point not in resumed.done():
                resumed.add(sample(point, ROWS))
        resumed.finish()
    assert paths.csv.read_bytes() == (OLD / "whole.csv").read_bytes()
    assert read_table(paths.csv).conditions[LATER] == "model"


def test_a_condition_without_a_default_is_not_recorded() -> None:
    known = {"conditions": {"torch": "2.13.0"}}
    for name, shown in ((LATER, "not recorded"), ("remote_code", "not recorded")):
        now = {"conditions": {"torch": "2.13.0", name: "x"}}
        assert differences(known, now) == [f'{name} is {shown} there and "x" now']
    assert differences(known, {"conditions": {"torch": "2.13.0", "remote_code": None}}) == []


# ---- points of all kinds


def records(points: list[SweepPoint]) -> dict[SweepPoint, PointRecord]:
    return {point: PointRecord.of(sample(point, ROWS), 0) for point in points}


@settings(deadline=None)  # the first example imports pyarrow
@given(st.lists(POINTS, unique=True, max_size=6), st.lists(POINTS, unique=True, max_size=3))
def test_every_file_holds_points_of_all_kinds(
    tmp_path_factory: pytest.TempPathFactory, points: list[SweepPoint], missing: list[SweepPoint]
) -> None:
    folder = tmp_path_factory.mktemp("kinds")
    paths = TablePaths.beside(folder / "m.csv")
    meta: dict[str, Any] = {"row_schema": 2, "hardware": "H", "model": "m", "origin": "measured", "clock": "fake"}
    table = LatencyTable("H", "m", meta | {"conditions": {}, "kinds": [], "runs": [{"index": 0}]}, records(points))
    for point in missing:
        table.learn(point, "out of memory")
    write(table, paths)
    again = read_table(paths.csv)
    assert (again.records, again.missing, again.points()) == (table.records, table.missing, table.points())

    journal = Journal(folder / "j", JournalContents())
    journal.write_header(meta | {"conditions": {}, "kinds": []})
    journal.write_run({"index": 0})
    results = [*table.records.items(), *table.missing.items()]
    for point, result in results:
        journal.write_result(point, result)
    journal.close()
    assert read_journal(folder / "j").results == results


def test_a_table_of_all_kinds_is_measured_and_resumed(tmp_path: Path) -> None:
    points = [*sweep_points(4, 4), *NOT_FLAT]
    with writer(tmp_path / "parts", points) as part:
        for point in points[3:-2]:
            part.add(sample(point))
    paths, whole = measure(tmp_path / "parts", points), measure(tmp_path / "whole", points)
    assert paths.csv.read_bytes() == whole.csv.read_bytes()
    assert read_table(paths.csv).records.keys() == {*points}


def test_what_is_not_flat_stands_in_the_rows_file_alone(tmp_path: Path) -> None:
    import pandas as pd

    flat = sweep_points(4, 4)
    paths = measure(tmp_path / "all", [*flat, *NOT_FLAT])
    assert paths.csv.read_bytes() == measure(tmp_path / "flat", flat).csv.read_bytes()
    frame = pd.read_parquet(paths.rows)
    assert list(frame.columns) == [*COLUMNS, "sequences"]
    mixed = frame[frame.input.isna()]
    assert {tuple(map(tuple, groups)) for groups in mixed.sequences} == {
        ((1, 9, 2), (1, 16, 1)),
        ((1, 16, 1), (8, 0, 1)),
    }
    assert frame[~frame.input.isna()].sequences.isna().all()


def test_the_csv_has_no_rows_of_other_kinds_only() -> None:
    table = LatencyTable("H", "m", {}, records([SweepPoint(1, 0)]))
    table.records[SweepPoint(1, 16, 4)] = PointRecord.of(sample(SweepPoint(1, 16, 4), (*ROWS, "sampler")), 0)
    assert b"sampler" not in EXPORTERS["csv"](table)


def test_a_rows_file_with_a_broken_composition_is_damaged(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "m.rows.parquet"
    path.write_bytes(write_rows(records([NOT_FLAT[-1]]).items()))
    assert list(read_rows(path)) == [NOT_FLAT[-1]]
    table = pq.ParquetFile(path).read()
    broken = pa.array([[[0, 0, 1]]] * table.num_rows, table.schema.field("sequences").type)
    pq.write_table(table.set_column(table.num_columns - 1, "sequences", broken), path)
    with pytest.raises(UsageError, match="missing or damaged"):
        read_rows(path)
