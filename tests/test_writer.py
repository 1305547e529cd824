import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_profile.block_kinds import BlockKind
from llm_profile.errors import UsageError
from llm_profile.measurement import PointFailure
from llm_profile.store.files import read_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.storage import write_whole
from tests.table_samples import CONDITIONS, CONFIG, measure, paths_in, sample, sweep_points, write, writer

POINTS = sweep_points(6, 5)


def content(paths: TablePaths) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(paths.csv.parent.iterdir())}


def test_a_finished_run_leaves_three_files(tmp_path: Path) -> None:
    paths = measure(tmp_path, POINTS)
    assert set(content(paths)) == {paths.csv.name, paths.rows.name, paths.meta.name}
    assert read_table(paths.csv).points() == POINTS


def test_the_same_request_resumes_and_ends_the_same(tmp_path: Path) -> None:
    paths = measure(tmp_path / "whole", POINTS)
    for count in (0, 3, 7):
        with writer(tmp_path / "parts", POINTS) as part:
            for point in POINTS[len(part.done()) : count]:
                part.add(sample(point))
    with writer(tmp_path / "parts", POINTS) as part:
        assert part.done() == set(POINTS[:7])
        assert [run["index"] for run in part.table.meta["runs"]] == [0, 1]  # a run that measured nothing is none
    resumed = measure(tmp_path / "parts", POINTS)
    assert resumed.csv.read_bytes() == paths.csv.read_bytes()
    assert [run["points"] for run in json.loads(resumed.meta.read_text())["runs"]] == [3, 4, 4]


def test_order_of_measuring_does_not_matter(tmp_path: Path) -> None:
    paths = measure(tmp_path / "forth", POINTS)
    back = measure(tmp_path / "back", POINTS[::-1])
    assert content(back) == content(paths)


def test_complete_changes_nothing(tmp_path: Path) -> None:
    paths = measure(tmp_path, POINTS)
    before, times = content(paths), [path.stat().st_mtime_ns for path in sorted(paths.csv.parent.iterdir())]
    with writer(tmp_path, POINTS) as again:
        assert again.done() >= set(POINTS)
        again.finish()
    assert content(paths) == before
    assert [path.stat().st_mtime_ns for path in sorted(paths.csv.parent.iterdir())] == times


def test_nothing_measured_writes_nothing(tmp_path: Path) -> None:
    with writer(tmp_path, POINTS) as empty:
        empty.finish()
    assert content(paths_in(tmp_path)) == {}


def test_results_after_finish_need_a_second_finish(tmp_path: Path) -> None:
    with writer(tmp_path, POINTS) as table:
        table.add(sample(POINTS[0]))
        table.finish()
        table.add(sample(POINTS[1]))
        assert paths_in(tmp_path).journal.exists()
        table.finish()
    assert read_table(paths_in(tmp_path).csv).points() == POINTS[:2]
    assert len(json.loads(paths_in(tmp_path).meta.read_text())["runs"]) == 1


def test_missing_points_are_tried_again(tmp_path: Path) -> None:
    lost = POINTS[2]
    with writer(tmp_path, POINTS) as first:
        for point in POINTS:
            first.add(PointFailure(point, "out of memory") if point == lost else sample(point))
        assert read_table(paths_in(tmp_path).csv).missing == {lost: "out of memory"}  # from the journal
        first.finish()
    paths = paths_in(tmp_path)
    before = content(paths)
    with writer(tmp_path, POINTS) as second:
        assert second.done() == set(POINTS) - {lost}
        assert second.table.missing == {lost: "out of memory"}
        second.add(PointFailure(lost, "out of memory"))
        second.finish()
    assert content(paths) == before
    with writer(tmp_path, POINTS) as third:
        third.add(sample(lost))
        third.finish()
    assert read_table(paths.csv).missing == {}
    assert paths.csv.read_bytes() == measure(tmp_path / "whole", POINTS).csv.read_bytes()


def test_more_points_of_the_same_ranges_need_no_option(tmp_path: Path) -> None:
    measure(tmp_path, POINTS[:4])
    assert read_table(measure(tmp_path, POINTS).csv).points() == POINTS


def test_other_points_need_append(tmp_path: Path) -> None:
    paths = measure(tmp_path, POINTS[:6])
    before = content(paths)
    complaint = r"has 3 points outside the asked ranges \(the first: input 1, kv_cache 0\).*--append.*--overwrite"
    with pytest.raises(UsageError, match=complaint), writer(tmp_path, POINTS[3:]):
        pass
    assert content(paths) == before
    measure(tmp_path, POINTS[3:], append=True)
    assert paths.csv.read_bytes() == measure(tmp_path / "whole", POINTS).csv.read_bytes()


def test_fields_of_a_configuration_that_change_no_number_do_not_matter(tmp_path: Path) -> None:
    paths = measure(tmp_path, POINTS[:4])
    other = CONFIG | {
        "transformers_version": "6.0",
        "_name_or_path": "here",
        "architectures": ["A"],
        "dtype": "float16",
    }
    measure(tmp_path, POINTS, config=other)
    assert read_table(paths.csv).points() == POINTS
    assert read_table(paths.csv).meta["config"] == CONFIG, "the first run's"


def test_missing_points_are_points_too(tmp_path: Path) -> None:
    with writer(tmp_path, POINTS) as first:
        first.add(PointFailure(POINTS[-1], "out of memory"))
    with pytest.raises(UsageError, match="has 1 points outside"), writer(tmp_path, POINTS[:-1]):
        pass


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"conditions": CONDITIONS | {"dtype": "float16"}}, 'dtype is "bfloat16" there and "float16" now'),
        ({"conditions": CONDITIONS | {"cuda": "13.0"}}, 'cuda is not recorded there and "13.0" now'),
        ({"conditions": {"dtype": "bfloat16"}}, 'torch is "2.13.0" there and not recorded now; num_layers is 1 there'),
        ({"clock": "cpu-wall"}, 'clock is "gpu-kernel" there and "cpu-wall" now'),
        ({"kinds": [BlockKind("block", 40, (0,), (0,))]}, 'kinds is .*"count": 32.* there and .*"count": 40.* now'),
        ({"model": "org/other"}, 'model is "org/model-1.5" there and "org/other" now'),
        ({"hardware": "H100"}, 'hardware is "H200" there and "H100" now'),
        ({"config": CONFIG | {"hidden_size": 128}}, "config.hidden_size is 64 there and 128 now"),
        ({"config": CONFIG | {"head_dim": 8}}, "config.head_dim is not recorded there and 8 now"),
        (
            {"config": CONFIG | {"rope_parameters": {"rope_theta": 1e6}}},
            "config.rope_parameters.rope_theta is 10000.0 there and 1000000.0 now",
        ),
        ({"config": {str(n): n for n in range(9)}}, "config.0 is .*; 8 more fields of its config.json differ"),
    ],
)
def test_other_conditions_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], complaint: str, finished: bool
) -> None:
    with writer(tmp_path, POINTS) as first:
        first.add(sample(POINTS[0]))
        if finished:
            first.finish()
    before = content(paths_in(tmp_path))
    for append in (False, True):
        with (
            pytest.raises(UsageError, match=complaint + ".*--overwrite") as refusal,
            writer(tmp_path, POINTS, append=append, **changes),
        ):
            pass
        assert "\n" not in str(refusal.value)
    assert content(paths_in(tmp_path)) == before


def test_what_is_only_recorded_may_differ(tmp_path: Path) -> None:
    measure(tmp_path, POINTS[:2], run={"repeat": 5})
    paths = measure(tmp_path, POINTS, run={"repeat": 7})
    assert json.loads(paths.meta.read_text())["runs"] == [
        {"repeat": 5, "index": 0, "points": 2},
        {"repeat": 7, "index": 1, "points": len(POINTS) - 2},
    ]


def test_a_scaled_table_is_not_measured_into(tmp_path: Path) -> None:
    paths = measure(tmp_path, POINTS)
    scaled = read_table(paths.csv)
    scaled.meta["scaling"] = {"mode": "global"}
    write(scaled, paths)
    with pytest.raises(UsageError, match=r'scaling is \{"mode": "global"\} there'), writer(tmp_path, POINTS):
        pass


def test_unknown_metadata_is_kept(tmp_path: Path) -> None:
    paths = measure(tmp_path, POINTS[:2])
    paths.meta.write_text(json.dumps(json.loads(paths.meta.read_text()) | {"future": [1, 2]}))
    measure(tmp_path, POINTS)
    assert json.loads(paths.meta.read_text())["future"] == [1, 2]


def test_overwrite_starts_anew_and_keeps_the_old(tmp_path: Path) -> None:
    paths = measure(tmp_path, POINTS)
    before = content(paths)
    anew: dict[str, Any] = {"overwrite": True, "conditions": CONDITIONS | {"dtype": "float16"}}
    with writer(tmp_path, POINTS[:2], **anew) as first:
        assert not first.done()
        first.finish()
    assert content(paths) == before  # it stays until there is something to replace it
    measure(tmp_path, POINTS[:2], **anew)
    assert read_table(paths.csv).points() == POINTS[:2]
    assert {name: content(paths)[f"{name}.bak"] for name in before} == before
    measure(tmp_path, POINTS[:3], **anew)
    assert f"{paths.csv.name}.bak2" in content(paths)
    assert {name: content(paths)[f"{name}.bak"] for name in before} == before


def test_overwriting_an_unfinished_run_keeps_its_journal(tmp_path: Path) -> None:
    paths = measure(tmp_path, POINTS[:2])
    with writer(tmp_path, POINTS) as unfinished:
        unfinished.add(sample(POINTS[2]))
    before = content(paths)
    assert paths.journal.name in before
    with writer(tmp_path, POINTS, overwrite=True) as anew:
        anew.add(sample(POINTS[5]))
    assert {name: content(paths)[f"{name}.bak"] for name in before} == before
    with writer(tmp_path, POINTS) as resumed:  # without the option: this one resumes what it began
        assert resumed.done() == {POINTS[5]}


def test_append_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--append.*--overwrite"):
        writer(tmp_path, POINTS, append=True, overwrite=True)


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "hardware,model,layer_name,input,kv_cache,latency(ns)\nH,m,q,1,0,5\n"]
)
def test_a_foreign_csv_is_kept_from_harm(tmp_path: Path, text: str) -> None:
    paths = paths_in(tmp_path)
    write_whole(paths.csv, text.encode())
    for append in (False, True):
        with (
            pytest.raises(UsageError, match="model-1.5.csv: not a table of LLM-Profile.*--overwrite"),
            writer(tmp_path, POINTS, append=append),
        ):
            pass
    assert content(paths) == {paths.csv.name: text.encode()}
    measure(tmp_path, POINTS, overwrite=True)
    assert content(paths)[f"{paths.csv.name}.bak"] == text.encode()
    assert read_table(paths.csv).points() == POINTS


def test_a_lone_rows_file_is_not_overwritten(tmp_path: Path) -> None:
    paths = measure(tmp_path, POINTS)
    paths.csv.unlink()
    paths.meta.unlink()
    with pytest.raises(UsageError, match="rows.parquet: not a table"), writer(tmp_path, POINTS):
        pass


@pytest.mark.parametrize("origin", ["example", "predicted"])
def test_an_example_gives_way_to_the_first_measurement_and_is_kept(tmp_path: Path, origin: str) -> None:
    paths = measure(tmp_path, POINTS, conditions={})
    example = read_table(paths.csv)
    example.meta["origin"] = origin
    write(example, paths)
    before = content(paths)
    with writer(tmp_path, POINTS) as idle:
        assert not idle.done()
        idle.finish()
    assert content(paths) == before
    with writer(tmp_path, POINTS) as unfinished:
        unfinished.add(sample(POINTS[0]))
    kept = read_table(paths.csv.with_name(f"model-1.5.{origin}.csv"))
    assert (kept.records, kept.meta["origin"]) == (example.records, origin)
    # Brought back by a checkout while the journal is there, it gives way again.
    write(example, paths)
    measure(tmp_path, POINTS)
    assert read_table(paths.csv).meta["origin"] == "measured"
    assert len(read_table(paths.csv).meta["runs"]) == 2
    assert read_table(paths.csv.with_name(f"model-1.5.{origin}2.csv")).meta["origin"] == origin


def test_journal_and_metadata_of_two_tables_are_not_mixed(tmp_path: Path) -> None:
    paths = measure(tmp_path / "a", POINTS[:2])
    with writer(tmp_path / "b", POINTS, conditions={"dtype": "float16"}) as other:
        other.add(sample(POINTS[3]))
    paths.journal.write_bytes(paths_in(tmp_path / "b").journal.read_bytes())
    with pytest.raises(UsageError, match="are not of one table: dtype is"):
        read_table(paths.csv)
    with pytest.raises(UsageError, match="are not of one table: dtype is"), writer(tmp_path / "a", POINTS):
        pass


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with writer(tmp_path, POINTS) as first:
        first.add(sample(POINTS[0]))
        with pytest.raises(UsageError, match="being written by another process"), writer(tmp_path, POINTS):
            pass
        with pytest.raises(UsageError, match="being written"), writer(tmp_path, POINTS, overwrite=True):
            pass
    with writer(tmp_path, POINTS) as second:
        assert second.done() == {POINTS[0]}


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError, RuntimeError])
def test_an_interrupted_run_keeps_its_journal_and_frees_the_lock(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), writer(tmp_path, POINTS) as interrupted:
        interrupted.add(sample(POINTS[0]))
        raise error
    assert set(content(paths_in(tmp_path))) == {paths_in(tmp_path).journal.name}
    assert measure(tmp_path, POINTS).csv.read_bytes() == measure(tmp_path / "whole", POINTS).csv.read_bytes()


def test_a_disk_that_fills_while_finishing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(tmp_path / "whole", POINTS).csv.read_bytes()

    def full(*_arguments: Any) -> None:
        raise UsageError("cannot write: No space left on device")

    with writer(tmp_path, POINTS) as table:
        for point in POINTS[:-1]:
            table.add(sample(point))
        with monkeypatch.context() as patch, pytest.raises(UsageError, match="No space"):
            patch.setattr("llm_profile.store.writer.write_table", full)
            table.finish()
        table.add(sample(POINTS[-1]))
    with writer(tmp_path, POINTS) as resumed:
        assert resumed.done() == set(POINTS)
        resumed.finish()
    assert paths_in(tmp_path).csv.read_bytes() == whole


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_journal_is_resumed_to_the_same_table_or_refused(data: st.DataObject) -> None:
    """Any one byte becomes any other: in a journal of two runs over a table of three points."""
    if "folder" not in JOURNAL:
        JOURNAL["folder"] = Path(mkdtemp())
        JOURNAL["csv"] = measure(JOURNAL["folder"] / "whole", POINTS).csv.read_bytes()
        paths = measure(JOURNAL["folder"], POINTS[:3])
        for points in (POINTS[3:6], POINTS[6:]):
            with writer(JOURNAL["folder"], POINTS) as part:
                for point in points:
                    part.add(sample(point))
        JOURNAL["content"], JOURNAL["meta"] = paths.journal.read_bytes(), paths.meta.read_bytes()
        JOURNAL["rows"] = paths.rows.read_bytes()
    paths, whole = paths_in(JOURNAL["folder"]), JOURNAL["content"]
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    paths.journal.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    paths.meta.write_bytes(JOURNAL["meta"])
    paths.rows.write_bytes(JOURNAL["rows"])
    try:
        with writer(JOURNAL["folder"], POINTS) as resumed:
            assert resumed.table.notices or at == len(whole) - 1, "a line that was not written to its end is no damage"
            for point in set(POINTS) - resumed.done():
                resumed.add(sample(point))
            resumed.finish()
    except UsageError as refusal:
        assert "line 1 is damaged" in str(refusal)
        assert at <= whole.index(b"\n")
        return
    assert paths.csv.read_bytes() == JOURNAL["csv"]
    assert not paths.journal.exists()


JOURNAL: dict[str, Any] = {}
"""Of the test above, made once."""


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _edit(content: bytes) -> bytes:
    return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]


def _empty(content: bytes) -> bytes:
    return b""


def _double(content: bytes) -> bytes:
    return content + content.splitlines(keepends=True)[-1]


def _windows(content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


def _binary(content: bytes) -> bytes:
    return content[:200] + b"\xff\0" + content[202:]


@pytest.mark.parametrize("damage", [_truncate, _edit, _empty, _double, _windows, _binary])
@pytest.mark.parametrize("with_checksums", [True, False])
def test_a_damaged_csv_is_named_and_written_anew(
    tmp_path: Path, damage: Callable[[bytes], bytes], with_checksums: bool
) -> None:
    paths = measure(tmp_path, POINTS)
    if not with_checksums:  # tables of before
        paths.meta.write_text(
            json.dumps({k: v for k, v in json.loads(paths.meta.read_text()).items() if k != "sha256"})
        )
    before = content(paths)
    wrong = damage(before[paths.csv.name])
    paths.csv.write_bytes(wrong)
    found = read_table(paths.csv)
    assert found.points() == POINTS
    assert bool(found.notices) == with_checksums
    with writer(tmp_path, POINTS) as again:
        (notice,) = again.table.notices
        assert "model-1.5.csv is damaged: line " in notice and "written anew" in notice and "\n" not in notice
        assert again.done() == set(POINTS)
        again.finish()
    assert content(paths) == before | {f"{paths.csv.name}.damaged": wrong}
    with writer(tmp_path, POINTS) as last:
        assert last.table.notices == []


@pytest.mark.parametrize("damage", [_edit, _truncate, _empty, _binary])
def test_damaged_rows_are_refused_and_nothing_is_touched(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    paths = measure(tmp_path, POINTS)
    paths.rows.write_bytes(damage(paths.rows.read_bytes()))
    paths.csv.write_bytes(_truncate(paths.csv.read_bytes()))
    before = content(paths)
    with pytest.raises(UsageError, match="rows.parquet is missing or damaged.*--overwrite"), writer(tmp_path, POINTS):
        pass
    assert content(paths) == before


def test_rows_of_another_table_are_refused(tmp_path: Path) -> None:
    paths = measure(tmp_path / "a", POINTS)
    paths.rows.write_bytes(measure(tmp_path / "b", POINTS[:4]).rows.read_bytes())
    with pytest.raises(UsageError, match="rows.parquet is missing or damaged"), writer(tmp_path / "a", POINTS):
        pass


def test_the_csv_is_not_mended_under_other_conditions(tmp_path: Path) -> None:
    paths = measure(tmp_path, POINTS)
    paths.csv.write_bytes(_truncate(paths.csv.read_bytes()))
    before = content(paths)
    with pytest.raises(UsageError, match="other conditions"), writer(tmp_path, POINTS, conditions={}):
        pass
    assert content(paths) == before


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "H200").write_text("a file in the way")
    with pytest.raises(UsageError, match="^cannot write .*--output-dir$"), writer(tmp_path, POINTS):
        pass


def test_no_token_is_kept(tmp_path: Path) -> None:
    token = "hf_" + "Q" * 34
    run = {"args": {"hf_token": token}, "argv": f"--hf-token {token}"}
    with writer(tmp_path, POINTS, run=run, conditions={"token": token}) as table:
        table.add(PointFailure(POINTS[0], f"refused {token}"))
        table.add(sample(POINTS[1]))
        assert token.encode() not in b"".join(content(paths_in(tmp_path)).values())
        table.finish()
    assert token.encode() not in b"".join(content(paths_in(tmp_path)).values())
    measure(tmp_path, POINTS, conditions={"token": token})  # and the conditions are still the same


@pytest.mark.parametrize("scenario", ["anywhere", "finishing", "example"])
def test_killed_runs_end_as_one_that_was_not_killed(tmp_path: Path, scenario: str) -> None:
    """In processes forked from one without threads, which this one may not be."""
    command = [sys.executable, "-m", "tests.killed_runs", scenario, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20
