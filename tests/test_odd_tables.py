"""Tables whose numbers or metadata cannot be: what reads them says so in a line, as no checksum does."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import run_profile
from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, UsageError
from llm_profile.json_text import parse_json
from llm_profile.points import SweepPoint
from llm_profile.records import FILLED
from llm_profile.store.files import read_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.rows_file import read_rows, write_rows
from tests.exported_tables import made_up_table
from tests.table_samples import measure, paths_in, sweep_points, write, writer

Change = Callable[[pd.DataFrame], object]


def with_rows(paths: TablePaths, change: Change) -> None:
    """Change a rows file as another program would, and leave the checksums out, as older tables do."""
    meta = json.loads(paths.meta.read_text())
    del meta["sha256"]
    paths.meta.write_text(json.dumps(meta))
    frame = pd.read_parquet(paths.rows)
    changed = change(frame)
    (changed if isinstance(changed, pd.DataFrame) else frame).to_parquet(paths.rows)


def setting(column: str, value: object, line: int = 7) -> Change:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(**{column: [*frame[column][:line], value, *frame[column][line + 1 :]]})

    return change


STATISTICS = ("trimmed_mean_ns", "min_ns", "q1_ns", "median_ns", "q3_ns", "max_ns")

IMPOSSIBLE: dict[str, tuple[Change, str]] = {
    **{f"{name} below 0": (setting(name, -1.0), f"{name} of .* in line 7 is -1, and must") for name in STATISTICS},
    **{f"{name} infinite": (setting(name, np.inf), f"{name} of .* in line 7 is inf, and must") for name in STATISTICS},
    "a mean that is none": (setting("trimmed_mean_ns", np.nan), "trimmed_mean_ns is empty"),
    "a mean of no 64 bits": (setting("trimmed_mean_ns", 1e300), "trimmed_mean_ns of .* is 1e[+]300, and must"),
    "no pass": (setting("n", 0), "n of .* in line 7 is 0, and must be at least 1"),
    "no block": (setting("blocks", 0), "blocks of .* in line 7 is 0, and must be at least 1"),
    "less than no launch": (setting("launches", -1), "launches of .* in line 7 is -1, and must be at least 0"),
    "an infinite clock": (setting("sm_clock_mhz", np.inf), "sm_clock_mhz of .* is inf"),
    "less than no overlap": (setting("overlap", -0.5), "overlap of .* is -0.5"),
    "a row twice": (lambda frame: frame.loc[[*range(8), *range(7, len(frame))]], "a row is there twice at input 2"),
    "a point twice": (lambda frame: pd.concat([frame, frame[:6]]), "the lines of input 1, kv_cache 0 are there twice"),
}


@pytest.mark.parametrize(("change", "complaint"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_rows_are_refused(tmp_path: Path, change: Change, complaint: str) -> None:
    paths = measure(tmp_path, sweep_points(3, 2))
    with_rows(paths, change)
    with pytest.raises(UsageError, match=rf"model-1.5.rows.parquet is missing or damaged .*{complaint}") as refusal:
        read_table(paths.csv)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UsageError, match=complaint), writer(tmp_path, sweep_points(3, 2)):
        pass


def test_rows_that_another_program_wrote_are_read(tmp_path: Path) -> None:
    paths = measure(tmp_path, sweep_points(3, 2))
    known = read_table(paths.csv).records
    with_rows(paths, lambda frame: frame)
    assert read_table(paths.csv).records == known


def test_times_of_zero_and_interpolated_points_are_read(tmp_path: Path) -> None:
    """A row may launch nothing; nobody ran the passes of an interpolated point."""
    paths = measure(tmp_path, [SweepPoint(1, 0)])
    with_rows(paths, lambda frame: frame.assign(**dict.fromkeys(STATISTICS, 0.0), launches=0))
    (record,) = read_table(paths.csv).records.values()
    assert record.whole_pass.trimmed_mean_ns == 0
    unknown = replace(record.whole_pass, n=0, trimmed_mean_ns=5.0, **dict.fromkeys(STATISTICS[1:], np.nan))
    filled = replace(record, rows={}, whole_pass=unknown, source=FILLED)
    path = tmp_path / "filled.rows.parquet"
    path.write_bytes(write_rows([(SweepPoint(2, 0), filled)]))
    assert read_rows(path)[SweepPoint(2, 0)].whole_pass.trimmed_mean_ns == 5
    path.write_bytes(write_rows([(SweepPoint(2, 0), replace(filled, source="measured"))]))
    with pytest.raises(UsageError, match="n of pass in line 0 is 0"):
        read_rows(path)


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "compare": lambda csv: ["compare", str(csv), str(csv)],
    "report": lambda csv: ["report", str(csv)],
    "export": lambda csv: [
        *("export", "--format", "llmservingsim-1.1", "--output", str(csv.parent / "out"), str(csv)),
        *("--max-tokens", "16", "--max-kv", "16", "--max-sequences", "2"),
    ],
}


def made_up(folder: Path, **meta: Any) -> TablePaths:
    """A table on disk; meta: changes of its metadata there."""
    table = made_up_table("llama", 16, 32)
    paths = TablePaths.of(folder, table.hardware, table.model)
    write(table, paths)
    paths.meta.write_text(json.dumps(json.loads(paths.meta.read_text()) | meta))
    return paths


ODD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "a checksum": ({"sha256": {"rows": {"a": 1}}}, "sha256.rows is {'a': 1}, and must be a text"),
    "the configuration": ({"config": -1}, "config is -1, and must be an object"),
    "the type": ({"config": {"model_type": []}}, "config.model_type is [], and must be a text"),
    "a kind": ({"kinds": [{"name": 3}]}, "kinds.name is 3, and must be a text"),
    "a count": ({"kinds": [{"name": "block", "count": 1e300}]}, "kinds.count is 1e+300, and must be a whole number"),
    "a run": ({"runs": ["x"]}, "an entry of runs is 'x', and must be an object"),
    "the origin": ({"origin": "guessed"}, "origin is 'guessed', and must be one of measured, example, predicted"),
}


@pytest.mark.parametrize(("meta", "complaint"), ODD_FIELDS.values(), ids=ODD_FIELDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_odd_metadata_is_refused_in_a_line_that_names_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, meta: dict[str, Any], complaint: str
) -> None:
    paths = made_up(tmp_path, **meta)
    assert run_profile.main(COMMANDS[command](paths.csv)) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{paths.meta} is damaged" in line and complaint in line


@pytest.mark.parametrize(("field", "value"), [("num_attention_heads", 0), ("hidden_size", "x"), ("vocab_size", None)])
def test_an_export_names_a_number_of_the_configuration_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: object
) -> None:
    csv = made_up(tmp_path, config=made_up_table("llama", 1, 1).meta["config"] | {field: value}).csv
    assert run_profile.main(COMMANDS["export"](csv)) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert f"config.{field} in its .meta.json is {value!r}, and must be a whole number" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_half_surrogate_pairs_are_replaced(tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str) -> None:
    config = made_up_table("llama", 1, 1).meta["config"] | {"note": "\ud800", "\udfff": ["\udc80"]}
    paths = made_up(tmp_path, config=config, conditions={"gpu": "H200\ud800", "dtype": "bfloat16"}, model="org/\ud800")
    assert "\\ud800" in paths.meta.read_text()
    assert run_profile.main(COMMANDS[command](paths.csv)) == EXIT_COMPLETE
    assert not [path for path in tmp_path.rglob("*.json") if path != paths.meta and "\\ud800" in path.read_text()]


def test_whole_surrogate_pairs_stay() -> None:
    assert parse_json(r'["\ud83d\ude00", "\ud83d", "\\ud800", {"\udc00": 1}]') == [
        "\U0001f600",
        "?",
        "\\ud800",
        {"?": 1},
    ]
    assert parse_json(b'"\xed\xa0\x80"') == "?"


def test_a_run_whose_folder_has_no_name_in_unicode_is_resumed(tmp_path: Path) -> None:
    changes = {"conditions": {"dtype": "bfloat16", "remote_code": "/models/\udcff"}}
    measure(tmp_path, sweep_points(2, 0), **changes)
    with writer(tmp_path, sweep_points(2, 0), **changes) as again:
        assert again.done() == set(sweep_points(2, 0))
    assert read_table(paths_in(tmp_path).csv).conditions["remote_code"] == "/models/?"
