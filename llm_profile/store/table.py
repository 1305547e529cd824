"""What is known: the latency of every row at every point, and the three files that hold it. Imports no torch.

`<model>.csv` is what consumers read, `<model>.rows.parquet` has the statistics behind it, `<model>.meta.json` the
conditions. All three are derived from a LatencyTable and written whole, so order and repair cost nothing.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_profile.errors import UsageError
from llm_profile.json_text import parse_json
from llm_profile.records import PASS, ROW_SCHEMA, PointRecord, RowRecord
from llm_profile.store.journal import JournalContents, damage_text, read_journal
from llm_profile.store.paths import TablePaths
from llm_profile.store.rows_file import read_rows, write_rows
from llm_profile.store.storage import sha256_of, storage_errors, to_json, write_whole
from llm_profile.sweep import SweepPoint

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["CSV_HEADER", "PASS", "ROW_SCHEMA", "LatencyTable", "PointRecord", "RowRecord", "TablePaths"]

CSV_HEADER = ("hardware", "model", "layer_name", "input", "kv_cache", "latency(ns)")

ORIGINS = ("measured", "example", "predicted")
"""Where a table's numbers come from; only measured ones are added to."""

IDENTITY = ("row_schema", "hardware", "model", "origin", "clock", "kinds", "scaling")
"""Fields of the metadata that must not differ between runs that share a table, as its conditions and the model's
configuration must not."""

NOT_COMPUTED = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""Fields of a configuration that say nothing of what a model computes, or that stand among the conditions."""

FIELDS_SHOWN = 4
"""Most differing fields of a configuration that an error names."""


def canonical_order(point: SweepPoint) -> tuple[int, int, int]:
    """Sorting key of points: by batch, then prefill by input length, then decode by cache length."""
    return point.batch, point.kv_len, point.input_len


@dataclass
class LatencyTable:
    """Everything known about one model on one hardware.

    meta: the metadata, less `rows`, `missing` and `sha256`, which are written from the table itself; keys that are
    unknown here are kept. records: of measured and filled points. missing: points that could not be measured, with the
    reason. notices: what of its files was damaged, a line each.
    """

    hardware: str
    model: str
    meta: dict[str, Any]
    records: dict[SweepPoint, PointRecord] = field(default_factory=dict)
    missing: dict[SweepPoint, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list, compare=False)

    def learn(self, point: SweepPoint, result: PointRecord | str) -> bool:
        """Take in a point's record, or the reason why it is missing; False if that is no news.

        A point that is known never becomes missing.
        """
        if isinstance(result, PointRecord):
            self.records[point] = result
            self.missing.pop(point, None)
            return True
        if point in self.records or self.missing.get(point) == result:
            return False
        self.missing[point] = result
        return True

    def points(self) -> list[SweepPoint]:
        """The points that have records, in canonical order."""
        return sorted(self.records, key=canonical_order)

    def measured_by(self, run: int) -> int:
        """How many points a run measured, by its index; filled ones are not among them."""
        return sum(record.is_measured and record.run == run for record in self.records.values())

    def row_names(self) -> list[str]:
        """Every row, in the order of a pass: that of first appearance over all points in canonical order."""
        return list(dict.fromkeys(name for point in self.points() for name in self.records[point].rows))

    def latency_ns(self, row: str, point: SweepPoint) -> int:
        """Latency of a row: the trimmed mean over passes, rounded (of one block, for rows of blocks).

        A row that launched nothing at a measured point took no time there: that is 0, and measured. Raises LookupError
        for what is not known.
        """
        rows = self._record(point).rows
        if row in rows:
            return rows[row].measurement.latency_ns
        if any(row in record.rows for record in self.records.values()):
            return 0
        raise LookupError(f"{self.model} on {self.hardware} has no row {row}; it has {', '.join(self.row_names())}")

    def pass_ns(self, point: SweepPoint) -> int:
        """Device time of the whole pass: the trimmed mean, rounded. Raises LookupError for what is not known."""
        return self._record(point).whole_pass.latency_ns

    def _record(self, point: SweepPoint) -> PointRecord:
        if point not in self.records:
            why = f"missing ({self.missing[point]})" if point in self.missing else "not in the table"
            raise LookupError(f"{self.model} on {self.hardware}: {point}, batch {point.batch} is {why}")
        return self.records[point]

    def to_frame(self) -> "DataFrame":
        """The CSV as a pandas DataFrame: points of batch 1, each key once, prefill before decode; integer latencies."""
        from pandas import DataFrame

        return DataFrame(self._csv_rows(), columns=list(CSV_HEADER))

    def _csv_rows(self) -> Iterator[tuple[str, str, str, int, int, int]]:
        points = [point for point in self.points() if point.batch == 1]
        for name in self.row_names():
            for point in points:
                row = self.records[point].rows.get(name)
                latency_ns = row.measurement.latency_ns if row else 0
                yield self.hardware, self.model, name, point.input_len, point.kv_len, latency_ns

    def write(
        self,
        paths: TablePaths,
        frame: "DataFrame | None" = None,
        announce: Callable[[str], None] = lambda _rows_sha256: None,
    ) -> None:
        """Write rows file, metadata and CSV, each whole.

        frame: what stands in the CSV, `to_frame()` by default. announce: is told the checksum of the rows file before.
        Raises UsageError where the file system refuses.
        """
        runs = [run | {"points": self.measured_by(run["index"])} for run in self.meta["runs"]]
        missing = [
            {"input": p.input_len, "kv_cache": p.kv_len, "batch": p.batch, "reason": self.missing[p]}
            for p in sorted(self.missing, key=canonical_order)
        ]
        rows = write_rows((point, self.records[point]) for point in self.points())
        csv = csv_content(self.to_frame() if frame is None else frame)
        names = {"row_schema": ROW_SCHEMA, "hardware": self.hardware, "model": self.model, "rows": self.row_names()}
        sha256 = {"csv": sha256_of(csv), "rows": sha256_of(rows)}
        meta = self.meta | names | {"runs": runs, "missing": missing, "sha256": sha256}
        announce(sha256["rows"])
        write_whole(paths.rows, rows)
        write_whole(paths.meta, (to_json(meta, indent=2) + "\n").encode())
        write_whole(paths.csv, csv)

    def csv_damage(self, paths: TablePaths) -> str | None:
        """Where the CSV is not what the records say, None where it is; of a table without a journal."""
        if not paths.csv.exists():
            return "is gone"
        wanted, found = csv_content(self.to_frame()), paths.csv.read_bytes()
        if found == wanted:
            return None
        lines = enumerate(zip_longest(wanted.split(b"\n"), found.split(b"\n")), start=1)
        number = next(number for number, (right, there) in lines if right != there)
        return f"is damaged: line {number} is not what {paths.rows.name} says"

    @classmethod
    def read(cls, csv: Path) -> "LatencyTable":
        """Read a table from the files beside its CSV, with what an unfinished run left in its journal.

        Raises UsageError when there is none, when it is not ours, and when a file is damaged.
        """
        paths = TablePaths.beside(csv)
        with storage_errors("read", csv):
            # The journal first: it is removed when the others have all that was in it.
            journal = read_journal(paths.journal)
            table = cls.load(paths, read_meta(paths), journal)
            if table is not None and journal.header is None and not is_as_written(paths):
                table.notices.append(
                    f"{csv} is damaged: its checksum is not that of {paths.meta.name}; its numbers are taken from "
                    f"{paths.rows.name}, and the run_profile.py command that measured it writes it anew"
                )
        if table is None:
            raise UsageError(f"{csv}: no latency table there; measure one with run_profile.py, or check --output-dir")
        return table

    @classmethod
    def load(cls, paths: TablePaths, meta: dict[str, Any] | None, journal: JournalContents) -> "LatencyTable | None":
        """The rows file that `meta` is of, with the journal over it; None where neither is. Raises as `read` does."""
        if journal.header is None and meta is None:
            return None
        if journal.header is not None and meta is not None and (differing := differences(meta, journal.header)):
            raise UsageError(
                f"{paths.meta} and {paths.journal.name} are not of one table: {'; '.join(differing)}; "
                "move one of them away, or start anew with --overwrite"
            )
        known = meta or journal.header or {}
        runs = {run["index"]: run for run in known.get("runs", [])} | journal.runs
        table = cls(known["hardware"], known["model"], known | {"runs": [runs[index] for index in sorted(runs)]})
        for entry in table.meta.pop("missing", []):
            table.missing[SweepPoint(entry["input"], entry["kv_cache"], entry["batch"])] = entry["reason"]
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
        if schema == ROW_SCHEMA and not _has_all_fields(meta):
            raise ValueError("fields of a wrong type")
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{paths.meta} is damaged; restore it, or start anew with --overwrite") from error
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


def csv_content(frame: "DataFrame") -> bytes:
    """A table's CSV, with LF line ends."""
    return frame.to_csv(index=False, lineterminator="\n").encode()


def _not_ours(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path}: not a table of LLM-Profile ({why}); restore it, choose another --output-dir or --model-name, "
        "or replace it with --overwrite, which keeps it as .bak"
    )


def slow_path(table: LatencyTable) -> dict[str, str]:
    """Rows that ran slowly for want of a kernel in any run of a table, each with the reason."""
    return {row: why for run in table.meta["runs"] for row, why in (run.get("slow_path") or {}).items()}


def _has_all_fields(meta: dict[str, Any]) -> bool:
    texts = ("hardware", "model", "origin", "clock")
    lists = ("kinds", "runs", "missing")
    return (
        all(isinstance(meta[name], str) for name in texts)
        and all(isinstance(entry, dict) for name in lists for entry in meta[name])
        and all(isinstance(run["index"], int) for run in meta["runs"])
        and all(_is_missing_point(entry) for entry in meta["missing"])
        and isinstance(meta["conditions"], dict)
        and isinstance(meta.get("sha256", {}), dict)
        and meta["origin"] in ORIGINS
    )


def _is_missing_point(entry: dict[str, Any]) -> bool:
    least = {"input": 1, "kv_cache": 0, "batch": 1}
    numbers = all(isinstance(entry[name], int) and entry[name] >= bound for name, bound in least.items())
    return numbers and isinstance(entry["reason"], str)


def differences(known: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What keeps two metadata from sharing a table: a text per field that differs, with both values."""
    old_identity, new_identity = ({name: meta.get(name) for name in IDENTITY} for meta in (known, wanted))
    texts = [*_differing(old_identity, new_identity), *_differing(known["conditions"], wanted["conditions"])]
    if "config" in known and "config" in wanted:
        of_config = _differing(_fields(known["config"]), _fields(wanted["config"]))
        texts += of_config[:FIELDS_SHOWN]
        if more := len(of_config[FIELDS_SHOWN:]):
            texts.append(f"{more} more fields of its config.json differ")
    return texts


def differing_conditions(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of the conditions `now` differs in those of a table, `known`; others of a table are not looked at."""
    return _differing({name: value for name, value in known.items() if name in now}, now)


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{name} is {_shown(name, old)} there and {_shown(name, new)} now"
        for name in dict.fromkeys([*old, *new])
        if name not in old or name not in new or old[name] != new[name]
    ]


def _fields(config: dict[str, Any], path: str = "config.") -> dict[str, Any]:
    """What a configuration and those in it say of a model, each field by its path."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _fields(value, f"{path}{name}.")
        elif name not in NOT_COMPUTED:
            found[path + name] = value
    return found


def _shown(name: str, values: dict[str, Any]) -> str:
    return json.dumps(values[name])[:200] if name in values else "not recorded"
