import csv
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.measurement import Measurement, RowSample
from llm_profile.points import SweepPoint
from llm_profile.records import ROW_SCHEMA, PointRecord, RowRecord
from llm_profile.store.files import read_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.rows_file import COLUMNS
from llm_profile.store.table import LatencyTable
from tests.table_samples import CONDITIONS, measure, paths_in, sample, sweep_points, write, writer

META = {
    "row_schema": ROW_SCHEMA,
    "hardware": "H200",
    "model": "m",
    "origin": "measured",
    "clock": "gpu-kernel",
    "conditions": CONDITIONS,
    "kinds": [],
    "runs": [{"index": 0}],
}


def record(rows: dict[str, float], n: int = 10) -> PointRecord:
    def measured(ns: float) -> Measurement:
        return Measurement(n, ns, ns, ns, ns, ns, ns)

    made = {name: RowRecord(measured(ns), 1, 2, ("kernel",)) for name, ns in rows.items()}
    return PointRecord(made, measured(sum(rows.values())), "fake", None, 0.0, (), 0)


def table(records: dict[SweepPoint, PointRecord]) -> LatencyTable:
    return LatencyTable("H200", "m", dict(META), records)


def test_csv_contract(tmp_path: Path) -> None:
    """Rows in pass order, prefill before decode, whole numbers, batch 1 only, a row that launched nothing is 0."""
    known = table(
        {
            SweepPoint(1, 10): record({"q_proj": 3.5, "attn": 9.49}),
            SweepPoint(1, 2): record({"q_proj": 2.5, "rope": 4.0, "attn": 1.0}),
            SweepPoint(2, 0): record({"q_proj": 1e6, "attn": 2.0}),
            SweepPoint(1, 0): record({"q_proj": 0.4999, "attn": 7.0}),
            SweepPoint(1, 2, batch=4): record({"q_proj": 8.0}),
        }
    )
    paths = TablePaths.beside(tmp_path / "m.csv")
    write(known, paths)
    assert paths.csv.read_bytes() == (
        b"hardware,model,layer_name,input,kv_cache,latency(ns)\n"
        b"H200,m,q_proj,1,0,0\n"
        b"H200,m,q_proj,2,0,1000000\n"
        b"H200,m,q_proj,1,2,3\n"
        b"H200,m,q_proj,1,10,4\n"
        b"H200,m,attn,1,0,7\n"
        b"H200,m,attn,2,0,2\n"
        b"H200,m,attn,1,2,1\n"
        b"H200,m,attn,1,10,9\n"
        b"H200,m,rope,1,0,0\n"
        b"H200,m,rope,2,0,0\n"
        b"H200,m,rope,1,2,4\n"
        b"H200,m,rope,1,10,0\n"
    )


def test_names_with_commas_are_quoted(tmp_path: Path) -> None:
    known = table({SweepPoint(1, 0): record({"q_proj": 1.0})})
    known.hardware = 'A100, "80 GB"'
    paths = TablePaths.beside(tmp_path / "m.csv")
    write(known, paths)
    with open(paths.csv, newline="") as file:
        assert list(csv.reader(file))[1] == ['A100, "80 GB"', "m", "q_proj", "1", "0", "1"]
    assert json.loads(paths.meta.read_text())["hardware"] == 'A100, "80 GB"'


def test_latency_of_a_row_and_of_the_pass() -> None:
    known = table({SweepPoint(1, 0): record({"q_proj": 3.0}), SweepPoint(1, 1): record({"q_proj": 3.0, "attn": 8.6})})
    known.learn(SweepPoint(1, 2), "out of memory")
    assert known.latency_ns("attn", SweepPoint(1, 1)) == 9
    assert known.latency_ns("attn", SweepPoint(1, 0)) == 0
    assert known.pass_ns(SweepPoint(1, 1)) == 12
    with pytest.raises(LookupError, match="no row rope; it has q_proj, attn"):
        known.latency_ns("rope", SweepPoint(1, 1))
    with pytest.raises(LookupError, match=r"input 1, kv_cache 2 is missing \(out of memory\)"):
        known.latency_ns("attn", SweepPoint(1, 2))
    with pytest.raises(LookupError, match="input 5, kv_cache 0 is not in the table"):
        known.pass_ns(SweepPoint(5, 0))


def test_what_is_known_never_becomes_missing() -> None:
    known = table({})
    point = SweepPoint(1, 0)
    assert known.learn(point, "out of memory")
    assert not known.learn(point, "out of memory")
    assert known.learn(point, "CUDA error")
    assert known.learn(point, record({"attn": 1.0}))
    assert not known.missing
    assert not known.learn(point, "out of memory")
    assert not known.missing


times = st.integers(0, 10**9) | st.floats(0, 1e9)
measurements = st.builds(Measurement, st.integers(1, 100), times, times, times, times, times, times)
row_records = st.builds(
    RowRecord, measurements, st.integers(1, 80), st.integers(0, 99), st.lists(st.sampled_from("abc")).map(tuple)
)
records = st.builds(
    PointRecord,
    st.dictionaries(st.sampled_from(["q_proj", "attn", "rope", "moe.attn"]), row_records),
    measurements,
    st.sampled_from(["eager", "graph-replay"]),
    st.none() | st.floats(0, 2000),
    st.floats(0, 1),
    st.lists(st.text(), max_size=2).map(tuple),
    st.just(0),
    st.sampled_from(["measured", "filled"]),
)
points = st.builds(SweepPoint, st.integers(1, 9), st.integers(0, 9), st.integers(1, 3))


@settings(deadline=None)  # the first example imports pyarrow
@given(st.dictionaries(points, records, max_size=5), st.dictionaries(points, st.text(), max_size=3))
def test_files_hold_everything(
    tmp_path_factory: pytest.TempPathFactory, known: dict[SweepPoint, PointRecord], missing: dict[SweepPoint, str]
) -> None:
    before = LatencyTable("H200", "m", META | {"future": {"kept": True}}, known)
    for point, reason in missing.items():
        before.learn(point, reason)
    paths = TablePaths.beside(tmp_path_factory.mktemp("table") / "m.csv")
    write(before, paths)
    after = read_table(paths.csv)
    assert after.records == before.records
    assert after.missing == before.missing
    assert after.row_names() == before.row_names()
    assert [list(after.records[p].rows) for p in after.points()] == [list(known[p].rows) for p in after.points()]
    assert after.meta["future"] == {"kept": True}
    content = [path.read_bytes() for path in (paths.csv, paths.rows, paths.meta)]
    write(after, paths)
    assert [path.read_bytes() for path in (paths.csv, paths.rows, paths.meta)] == content


def test_metadata_says_conditions_rows_runs_and_what_is_missing(tmp_path: Path) -> None:
    known = table({SweepPoint(1, 0): record({"q_proj": 3.0, "attn": 1.0})})
    known.meta["runs"] = [{"index": 0, "repeat": 5}, {"index": 1}]
    known.learn(SweepPoint(3, 0), "out of memory")
    paths = TablePaths.beside(tmp_path / "m.csv")
    write(known, paths)
    assert json.loads(paths.meta.read_text()) == META | {
        "sha256": {name: sha256(getattr(paths, name).read_bytes()).hexdigest() for name in ("csv", "rows")},
        "runs": [{"index": 0, "repeat": 5, "points": 1}, {"index": 1, "points": 0}],
        "rows": ["q_proj", "attn"],
        "missing": [{"input": 3, "kv_cache": 0, "batch": 1, "reason": "out of memory"}],
    }


def test_rows_file_is_readable_by_pandas(tmp_path: Path) -> None:
    import pandas as pd

    point = SweepPoint(2, 0)
    paths = measure(tmp_path, [point])
    frame = pd.read_parquet(paths.rows)
    assert list(frame.columns) == list(COLUMNS)
    made = sample(point)
    whole = frame[frame.layer_name == "pass"].iloc[0]
    assert whole.launches == sum(row.launches for row in made.rows.values())
    of_pass = Measurement.of(made.pass_ns)
    assert (whole.median_ns, whole.trimmed_mean_ns) == (of_pass.median_ns, of_pass.trimmed_mean_ns)
    assert whole.median_ns != whole.trimmed_mean_ns, "or the columns could be mistaken for each other"
    attn = frame[frame.layer_name == "attn"].iloc[0]
    assert (attn.n, attn.blocks, attn.launches, attn.timed_by, attn.source) == (11, 3, 3, "fake", "measured")
    assert list(attn.kernels) == ["gemm_2", "attn_kernel"]
    assert list(attn.notes) == ["a note"]
    assert attn.latency_ns == Measurement.of(made.rows["attn"].pass_ns, 3).latency_ns


def test_equal_kernel_names_are_one_object_after_reading(tmp_path: Path) -> None:
    paths = measure(tmp_path, sweep_points(5, 5))
    kernels = [row.kernels for r in read_table(paths.csv).records.values() for row in r.rows.values()]
    assert len({id(name) for names in kernels for name in names}) == len({name for names in kernels for name in names})


def test_an_unfinished_run_is_read_from_its_journal(tmp_path: Path) -> None:
    few = sweep_points(3, 0)
    measure(tmp_path, few)
    with writer(tmp_path, sweep_points(3, 3)) as unfinished:
        for point in sweep_points(3, 3)[3:]:
            unfinished.add(sample(point))
        assert read_table(paths_in(tmp_path).csv).records == unfinished.table.records
    assert read_table(paths_in(tmp_path).csv).points() == sweep_points(3, 3)


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _foreign(path: Path) -> None:
    path.write_text("a,b\n1,2\n")


def _no_conditions(path: Path) -> None:
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "conditions"}))


def _of_medians(path: Path) -> None:
    """Latencies were medians in tables of row schema 1."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"row_schema": 1}))


def _wild_origin(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"origin": "../example"}))


def _deep(path: Path) -> None:
    path.write_text('{"row_schema":' + "[" * 200_000)


def _with(field: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))

    change.__name__ = f"{field}={value}"
    return change


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("meta", _deep, "meta.json is damaged"),
        ("meta", _with("clock", float("nan")), "meta.json is damaged"),
        ("meta", _with("config", {"rope_theta": float("inf")}), "meta.json is damaged"),
        ("meta", _with("runs", [{}]), "meta.json is damaged"),
        ("meta", _with("runs", None), "meta.json is damaged"),
        ("meta", _with("missing", [{"input": 1}]), "meta.json is damaged"),
        ("meta", _with("missing", [{"input": 0, "kv_cache": -1, "batch": 1, "reason": ""}]), "meta.json is damaged"),
        ("meta", _with("missing", [{"input": "1", "kv_cache": 0, "batch": 1, "reason": ""}]), "meta.json is damaged"),
        ("meta", _with("sha256", []), "meta.json is damaged"),
        ("meta", _with("sha256", {"rows": "0"}), "rows.parquet is missing or damaged"),
        ("meta", _remove, "csv: not a table of LLM-Profile .no model-1.5.meta.json"),
        ("meta", _cut, "meta.json is damaged"),
        ("meta", _foreign, "meta.json is damaged"),
        ("meta", _no_conditions, "meta.json is damaged"),
        ("meta", _wild_origin, "meta.json is damaged"),
        ("meta", _of_medians, f"row_schema is 1 there and {ROW_SCHEMA} in"),
        ("rows", _remove, "rows.parquet is missing or damaged"),
        ("rows", _cut, "rows.parquet is missing or damaged"),
        ("rows", _foreign, "rows.parquet is missing or damaged"),
        ("csv", _foreign, "csv: not a table of LLM-Profile .its first line is 'a,b'"),
    ],
)
def test_damaged_and_foreign_files_are_refused(
    tmp_path: Path, name: str, damage: Callable[[Path], None], complaint: str
) -> None:
    paths = measure(tmp_path, sweep_points(3, 2))
    damage(getattr(paths, name))
    with pytest.raises(UsageError, match=complaint) as refusal:
        read_table(paths.csv)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UsageError, match=complaint), writer(tmp_path, sweep_points(3, 2)):
        pass
    assert not paths.lock.exists()


def test_a_lost_csv_is_derived_again(tmp_path: Path) -> None:
    paths = measure(tmp_path, sweep_points(3, 2))
    content = paths.csv.read_bytes()
    paths.csv.unlink()
    assert read_table(paths.csv).points() == sweep_points(3, 2)
    measure(tmp_path, sweep_points(3, 2))
    assert paths.csv.read_bytes() == content


COMMITTED = sorted((Path(__file__).parent.parent / "H200").rglob("*.rows.parquet"))


@pytest.mark.parametrize("rows", COMMITTED[:2], ids=lambda path: path.name)
def test_tables_without_checksums_are_read_without_a_word(rows: Path) -> None:
    csv = rows.with_name(rows.name.replace(".rows.parquet", ".csv"))
    meta = json.loads(csv.with_suffix(".meta.json").read_text())
    assert "sha256" not in meta
    known = read_table(csv)
    assert known.notices == []
    assert len(known.records) > 100


def test_any_flipped_byte_of_the_metadata_is_refused_or_read(tmp_path: Path) -> None:
    """And never another error."""
    paths = measure(tmp_path, sweep_points(2, 1))
    whole = paths.meta.read_bytes()
    for at in range(len(whole)):
        paths.meta.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 7]) + whole[at + 1 :])
        with suppress(UsageError):
            read_table(paths.csv)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no latency table there"):
        read_table(tmp_path / "m.csv")
    with pytest.raises(UsageError, match="cannot read"):
        read_table(tmp_path / ("m" * 300 + ".csv"))


def test_filled_points_are_known_but_not_measured(tmp_path: Path) -> None:
    paths = measure(tmp_path, [SweepPoint(1, 0), SweepPoint(3, 0)])
    known = read_table(paths.csv)
    known.learn(SweepPoint(2, 0), replace(PointRecord.of(sample(SweepPoint(2, 0)), 0), source="filled"))
    write(known, paths)
    with writer(tmp_path, [SweepPoint(1, 0), SweepPoint(3, 0)]) as again:
        assert again.done() == {SweepPoint(1, 0), SweepPoint(3, 0)}
        assert again.table.latency_ns("attn", SweepPoint(2, 0)) > 0


def test_a_row_seen_only_later_comes_last() -> None:
    late = replace(sample(SweepPoint(2, 0)), rows={"new": RowSample((1,) * 11), **sample(SweepPoint(2, 0)).rows})
    known = table(
        {SweepPoint(2, 0): PointRecord.of(late, 0), SweepPoint(1, 0): PointRecord.of(sample(SweepPoint(1, 0)), 0)}
    )
    assert known.row_names() == ["embedding", "q_proj", "attn", "o_proj", "lm_head", "new"]


def test_needs_neither_torch_nor_pandas_nor_pyarrow_to_start() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'pyarrow'}"
    code = f"import sys, llm_profile.store.writer; print(*{heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
