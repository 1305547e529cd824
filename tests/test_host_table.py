"""`<model>.host.csv`: what each step takes beside its kernels."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.measurement import PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable
from llm_profile.validation.host_table import write_host_table
from llm_profile.validation.report import StepResult, ValidationReport
from llm_profile.validation.validate import fit_and_judge
from tests import table_samples
from tests.fake_reality import FakeReality, make_table

FIRST = "hardware,model,runtime,num_layers,input,kv_cache,wall(ns),kernels(ns),host(ns)"


def small_table() -> LatencyTable:
    """Two blocks. A pass of n tokens on k in the cache: 100 n outside the blocks, 10 n + k each, 7 n of the head."""
    kind = {"name": "block", "count": 2, "layers": [0, 1], "profiled": [0]}
    meta: dict[str, Any] = {"kinds": [kind], "block_rows": {"attn": "block"}, "runs": [], "clock": "gpu-kernel"}
    table = LatencyTable("Fake1", "org/fake", meta)
    for point in (SweepPoint(1, 0), SweepPoint(2, 0), SweepPoint(3, 0), SweepPoint(1, 1), SweepPoint(1, 5)):
        n, k = point.input_len, point.kv_len
        rows = {
            name: RowSample((ns,)) for name, ns in (("embedding", 100 * n), ("attn", 10 * n + k), ("lm_head", 7 * n))
        }
        table.records[point] = PointRecord.of(PointSample(point, rows, (1,), "fake"), run=0)
    return table


TEMPLATE = fit_and_judge(make_table(), FakeReality(lambda *_: 0), [(8, 2)])


def report_of(runtime: str, depth: int, steps: dict[SweepPoint, tuple[float, ...]]) -> ValidationReport:
    results = [StepResult(point, False, walls, 0.0, 0.0) for point, walls in steps.items()]
    return replace(TEMPLATE, runtime=runtime, depth=depth, steps=tuple(results))


EAGER = {
    SweepPoint(1, 5): (900.0, 1000.0, 5000.0),
    SweepPoint(3, 0): (2000.0, 1000.0),
    SweepPoint(1, 3): (500.0,),
    SweepPoint(1, 0): (130.4,),
}
EAGER_LINES = [
    # 100 + 2 x 10 + 7, a wall of 130.4; 300 + 2 x 30 + 7 of one token, the median of 1,000 and 2,000
    "Fake1,org/fake,eager,2,1,0,130,127,3",
    "Fake1,org/fake,eager,2,3,0,1500,367,1133",
    # halfway between 100 + 2 x 11 + 7 and 100 + 2 x 15 + 7
    "Fake1,org/fake,eager,2,1,3,500,133,367",
    "Fake1,org/fake,eager,2,1,5,1000,137,863",
]
GRAPH_LINES = ["Fake1,org/fake,cuda-graph,2,2,0,200,247,-47"]
SHALLOW_LINES = ["Fake1,org/fake,eager,1,2,0,400,227,173"]


def lines_in(path: Path) -> list[str]:
    first, *lines = path.read_text().splitlines()
    assert first == FIRST
    return lines


def test_values_by_hand(tmp_path: Path) -> None:
    path = write_host_table(small_table(), tmp_path / "fake.csv", report_of("eager", 2, EAGER))
    assert path == tmp_path / "fake.host.csv" == TablePaths.beside(tmp_path / "fake.csv").host
    assert lines_in(path) == EAGER_LINES
    assert path.read_bytes().endswith(b"863\n")
    row = next(csv.DictReader(path.open(newline="")))
    assert int(row["wall(ns)"]) == int(row["kernels(ns)"]) + int(row["host(ns)"])


def test_runtimes_and_depths_stand_beside_each_other_and_replace_their_own(tmp_path: Path) -> None:
    table, at = small_table(), tmp_path / "fake.csv"
    path = write_host_table(table, at, report_of("eager", 2, EAGER))
    write_host_table(table, at, report_of("cuda-graph", 2, {SweepPoint(2, 0): (200.0,)}))
    assert lines_in(path) == [*GRAPH_LINES, *EAGER_LINES]
    write_host_table(table, at, report_of("eager", 1, {SweepPoint(2, 0): (400.0,)}))
    assert lines_in(path) == [*GRAPH_LINES, *SHALLOW_LINES, *EAGER_LINES]
    write_host_table(table, at, report_of("eager", 2, {SweepPoint(1, 0): (129.0,)}))
    assert lines_in(path) == [*GRAPH_LINES, *SHALLOW_LINES, "Fake1,org/fake,eager,2,1,0,129,127,2"]


def test_kernels_are_those_of_the_table_as_it_is_now(tmp_path: Path) -> None:
    table, at = small_table(), tmp_path / "fake.csv"
    path = write_host_table(table, at, report_of("eager", 2, EAGER))
    rows = {"embedding": RowSample((100,)), "attn": RowSample((40,)), "lm_head": RowSample((7,))}
    table.records[SweepPoint(1, 3)] = PointRecord.of(PointSample(SweepPoint(1, 3), rows, (1,), "fake"), run=1)
    write_host_table(table, at, report_of("cuda-graph", 2, {SweepPoint(2, 0): (200.0,)}))
    measured = "Fake1,org/fake,eager,2,1,3,500,187,313"
    assert lines_in(path) == [*GRAPH_LINES, *EAGER_LINES[:2], measured, EAGER_LINES[3]]


NOT_OURS = {
    "nothing": b"",
    "bytes": b"\xff\xfe\x00",
    "another table": b"my,own,numbers\n1,2,3\n",
    "of another GPU": f"{FIRST}\nH100,org/fake,cuda-graph,2,2,0,200,247,-47\n".encode(),
    "of another model": f"{FIRST}\nFake1,org/else,cuda-graph,2,2,0,200,247,-47\n".encode(),
    "a line that ends early": f"{FIRST}\nFake1,org/fake,cuda-graph,2,2\n".encode(),
    "no number": f"{FIRST}\nFake1,org/fake,cuda-graph,2,2,0,many,247,-47\n".encode(),
    "more blocks than there are": f"{FIRST}\nFake1,org/fake,cuda-graph,3,2,0,200,247,-47\n".encode(),
    "no block": f"{FIRST}\nFake1,org/fake,cuda-graph,0,2,0,200,247,-47\n".encode(),
    "a prompt beyond the table": f"{FIRST}\nFake1,org/fake,cuda-graph,2,4,0,200,247,-47\n".encode(),
    "a step beyond the table": f"{FIRST}\nFake1,org/fake,cuda-graph,2,1,6,200,247,-47\n".encode(),
    "a length that is none": f"{FIRST}\nFake1,org/fake,cuda-graph,2,{'9' * 5000},0,200,247,-47\n".encode(),
    "a NUL": f"{FIRST}\nFake1,org/fake,cuda-graph,2,2,0,2\x0000,247,-47\n".encode(),
    "a field without an end": f'{FIRST}\nFake1,org/fake,"{"x" * 200_000}'.encode(),
}


@pytest.mark.parametrize("content", NOT_OURS.values(), ids=NOT_OURS)
def test_a_file_that_is_damaged_or_anothers_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fake.host.csv").write_bytes(content)
    assert lines_in(write_host_table(small_table(), tmp_path / "fake.csv", report_of("eager", 2, EAGER))) == EAGER_LINES


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, 250), at=st.integers(0, 250), junk=st.binary(max_size=9))
def test_any_damage_is_survived(tmp_path: Path, cut: int, at: int, junk: bytes) -> None:
    """Whatever is left of a file, the new steps are in it, and what else is in it is of this table."""
    table, csv_path = small_table(), tmp_path / "fake.csv"
    whole = "\n".join([FIRST, *GRAPH_LINES, *SHALLOW_LINES, ""]).encode()
    (tmp_path / "fake.host.csv").write_bytes(whole[: min(at, cut)] + junk + whole[min(at, cut) + len(junk) : cut])
    lines = lines_in(write_host_table(table, csv_path, report_of("eager", 2, EAGER)))
    assert lines[-len(EAGER_LINES) :] == EAGER_LINES or {*EAGER_LINES} <= {*lines}
    for line in lines:
        hardware, model, *_ = line.split(",")
        assert (hardware, model) == ("Fake1", "org/fake")
    (tmp_path / "fake.host.csv").unlink()


def test_a_folder_in_its_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "fake.host.csv").mkdir()
    with pytest.raises(UsageError, match="^cannot write .*fake.host.csv: ") as refused:
        write_host_table(small_table(), tmp_path / "fake.csv", report_of("eager", 2, EAGER))
    assert "\n" not in str(refused.value)


def test_a_table_that_is_measured_anew_takes_its_host_times_with_it(tmp_path: Path) -> None:
    """They were of other conditions, perhaps: --overwrite keeps them as .bak, --append goes on beside them."""
    points = table_samples.sweep_points(3, 3)
    paths = table_samples.measure(tmp_path, points)
    paths.host.write_text("times\n")
    table_samples.measure(tmp_path, table_samples.sweep_points(4, 3), append=True)
    assert paths.host.read_text() == "times\n"
    table_samples.measure(tmp_path, points, overwrite=True)
    assert not paths.host.exists()
    assert paths.host.with_name(f"{paths.host.name}.bak").read_text() == "times\n"
