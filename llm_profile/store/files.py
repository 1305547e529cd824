"""The files of a table, read and written. Imports no torch.

`<model>.rows.parquet` has every record, `<model>.meta.json` the conditions, and `<model>.csv` is what consumers read.
All three are derived from a LatencyTable and written whole, so order and repair cost nothing; an exporter makes the
CSV.
"""

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError, type_and_text
from llm_profile.json_text import parse_json
from llm_profile.points import canonical_order, point_of_record, record_of
from llm_profile.records import ROW_SCHEMA
from llm_profile.store.conditions import differences
from llm_profile.store.journal import JournalContents, damage_text, read_journal
from llm_profile.store.meta_fields import check_fields
from llm_profile.store.paths import TablePaths
from llm_profile.store.rows_file import read_rows, write_rows
from llm_profile.store.storage import sha256_of, storage_errors, to_json, write_whole
from llm_profile.store.table import LatencyTable

CSV_HEADER = ("hardware", "model", "layer_name", "input", "kv_cache", "latency(ns)")
"""Columns of the CSV; that of a scaled table may have one more."""


def write_table(
    table: LatencyTable,
    paths: TablePaths,
    csv: bytes,
    announce: Callable[[str], None] = lambda _rows_sha256: None,
) -> None:
    """Write rows file, metadata and CSV, each whole.

    csv: its content. announce: is told the checksum of the rows file before. Raises UsageError where the file system
    refuses.
    """
    runs = [run | {"points": table.measured_by(run["index"])} for run in table.meta["runs"]]
    missing = [
        record_of(point) | {"reason": table.missing[point]} for point in sorted(table.missing, key=canonical_order)
    ]
    rows = write_rows([(point, table.records[point]) for point in table.points()])
    names = {"row_schema": ROW_SCHEMA, "hardware": table.hardware, "model": table.model, "rows": table.row_names()}
    sha256 = {"csv": sha256_of(csv), "rows": sha256_of(rows)}
    meta = table.meta | names | {"runs": runs, "missing": missing, "sha256": sha256}
    announce(sha256["rows"])
    write_whole(paths.rows, rows)
    write_whole(paths.meta, (to_json(meta, indent=2) + "\n").encode())
    write_whole(paths.csv, csv)


def read_table(csv: Path) -> LatencyTable:
    """Read a table from the files beside its CSV, with what an unfinished run left in its journal.

    Raises UsageError when there is none, when it is not ours, and when a file is damaged.
    """
    paths = TablePaths.beside(csv)
    with storage_errors("read", csv):
        # The journal first: it is removed when the others have all that was in it.
        journal = read_journal(paths.journal)
        table = load_table(paths, read_meta(paths), journal)
        if table is not None and journal.header is None and not is_as_written(paths):
            table.notices.append(
                f"{csv} is damaged: its checksum is not that of {paths.meta.name}; its numbers are taken from "
                f"{paths.rows.name}, and the run_profile.py command that measured it writes it anew"
            )
    if table is None:
        raise UsageError(f"{csv}: no latency table there; measure one with run_profile.py, or check --output-dir")
    return table


def load_table(paths: TablePaths, meta: dict[str, Any] | None, journal: JournalContents) -> LatencyTable | None:
    """The rows file that `meta` is of, with the journal over it; None where neither is. Raises as `read_table` does."""
    if journal.header is None and meta is None:
        return None
    if journal.header is not None and meta is not None and (differing := differences(meta, journal.header)):
        raise UsageError(
            f"{paths.meta} and {paths.journal.name} are not of one table: {'; '.join(differing)}; "
            "move one of them away, or start anew with --overwrite"
        )
    known = meta or journal.header or {}
    runs = {run["index"]: run for run in known.get("runs", [])} | journal.runs
    table = LatencyTable(known["hardware"], known["model"], known | {"runs": [runs[index] for index in sorted(runs)]})
    for entry in table.meta.pop("missing", []):
        table.missing[point_of_record(entry)] = entry["reason"]
    table.meta.pop("rows", None)
    sha256 = table.meta.pop("sha256", {}).get("rows")
    if meta is not None:
        table.records = read_rows(paths.rows, sha256 and {sha256, *journal.rows_sha256})
    if damage := damage_text(paths.journal, journal):
        table.notices.append(damage)
    for point, result in journal.results:
        table.learn(point, result)
    return table


def read_meta(paths: TablePaths) -> dict[str, Any] | None:
    """The metadata, checked; None where no table is yet. Raises UsageError for files that are not ours or damaged."""
    if paths.csv.exists():
        with open(paths.csv, encoding="utf-8", errors="replace") as file:
            header = file.readline(1000).rstrip("\n")
        known = f"{header},".startswith(",".join(CSV_HEADER) + ",")  # a scaled table may have a column more
        if not known and paths.csv.stat().st_size:  # of an empty one nothing can be lost
            raise _not_ours(paths.csv, f"its first line is {header[:80]!r}")
    if not paths.meta.exists():
        # A rows file alone is what a kill leaves before the first metadata; the journal has all that is in it.
        for path in (paths.csv, *([] if paths.journal.exists() else [paths.rows])):
            if path.exists():
                raise _not_ours(path, f"no {paths.meta.name} is beside it")
        return None
    try:
        meta: dict[str, Any] = parse_json(paths.meta.read_bytes(), constants=False)
        schema = meta["row_schema"]
        if schema == ROW_SCHEMA:
            check_fields(meta)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{paths.meta} is damaged ({type_and_text(error)}); restore it, or start anew with --overwrite"
        ) from error
    if schema != ROW_SCHEMA:
        raise UsageError(
            f"{paths.meta}: row_schema is {schema} there and {ROW_SCHEMA} in this version of LLM-Profile; "
            "use the version that wrote it, or start anew with --overwrite"
        )
    return meta


def is_as_written(paths: TablePaths) -> bool:
    """Whether a CSV has the checksum that its metadata says; without one, any has. Raises UsageError and OSError."""
    wanted = (read_meta(paths) or {}).get("sha256", {}).get("csv")
    return wanted is None or not paths.csv.exists() or sha256_of(paths.csv.read_bytes()) == wanted


def csv_damage(paths: TablePaths, wanted: bytes) -> str | None:
    """Where a CSV is not what it should be, None where it is; of a table without a journal."""
    if not paths.csv.exists():
        return "is gone"
    found = paths.csv.read_bytes()
    if found == wanted:
        return None
    lines = enumerate(zip_longest(wanted.split(b"\n"), found.split(b"\n")), start=1)
    number = next(number for number, (right, there) in lines if right != there)
    return f"is damaged: line {number} is not what {paths.rows.name} says"


def _not_ours(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path}: not a table of LLM-Profile ({why}); restore it, choose another --output-dir or --model-name, "
        "or replace it with --overwrite, which keeps it as .bak"
    )
