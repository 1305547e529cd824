"""The file that grows while measuring: a line of JSON per finished point. Imports no torch.

Each line is one key and its value. `header`: the conditions, first line. `run`: what is recorded of a run, by each run
that writes. `kernel`: an id and the kernel name it stands for from there on. `point`, `missing`: what came of a point.
`files`: the checksum of the rows file that is about to be written. Each line ends with a checksum of what stands before
it; journals that began without go on being read.
A kill while a line is written leaves a torn last line: readers drop it, and a writer cuts it off before it goes on. A
line that was damaged later is dropped, too, and so are those that need it: their points are measured again.
"""

import os
import re
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.json_text import parse_json
from llm_profile.measurement import Measurement
from llm_profile.points import SweepPoint, key_of, point_of_key
from llm_profile.records import ROW_SCHEMA, PointRecord, RowRecord
from llm_profile.store.storage import storage_errors, sync_folder, to_json

SYNC_SECONDS = 5.0
"""Most work, in seconds, that a power cut may cost. A kill of the process costs none: lines are not buffered."""

CHECKED = re.compile(rb'(\{.*),"crc32":"([0-9a-f]{8})"\}\n')
"""A line with its checksum, CRC-32 of what stands before it: no change of up to 32 bits in a row escapes it."""


@dataclass
class JournalContents:
    """What a journal says. header: None when there is no journal. results: of points in the order they were written,
    a record or the reason why there is none. rows_sha256: checksums of rows files that were about to be written.
    damaged: numbers of lines that cannot be used. good_bytes: up to the end of the last line that can."""

    header: dict[str, Any] | None = None
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    results: list[tuple[SweepPoint, PointRecord | str]] = field(default_factory=list)
    kernels: dict[int, str] = field(default_factory=dict)
    rows_sha256: set[str] = field(default_factory=set)
    damaged: list[int] = field(default_factory=list)
    good_bytes: int = 0


def read_journal(path: Path) -> JournalContents:
    """Read a journal; empty contents where there is none. Raises UsageError when its header is damaged."""
    contents = JournalContents()
    if not path.exists():
        return contents
    end, checked = 0, False
    with storage_errors("read", path), open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            end += len(line)
            if number > 1 and contents.header is None:
                raise _damaged(path, 1)
            if not line.endswith(b"\n"):
                break  # not written to its end
            try:
                kind, value = _entry(line, checked)
                if (kind == "header") != (number == 1):
                    raise _damaged(path, number)
                READERS[kind](contents, value)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                contents.damaged.append(number)
                continue
            checked = checked or CHECKED.fullmatch(line) is not None
            contents.good_bytes = end
    return contents if contents.header is not None else JournalContents()


def damage_text(path: Path, contents: JournalContents) -> str | None:
    """What the user is to know of lines that cannot be used."""
    if not contents.damaged:
        return None
    return (
        f"{path}: {len(contents.damaged)} lines are damaged, or need one that is (the first: line "
        f"{contents.damaged[0]}); what they held is left out, and the same run_profile.py command measures it again"
    )


def _entry(line: bytes, checked: bool) -> tuple[str, Any]:
    """The key and the value of a line. checked: it must have a checksum. Raises as JSON does for a damaged line."""
    if match := CHECKED.fullmatch(line):
        content, crc32 = match.groups()
        if zlib.crc32(content) != int(crc32, 16):
            raise ValueError("another content than was written")
        line = content + b"}"
    elif checked:
        raise ValueError("no checksum")
    ((kind, value),) = parse_json(line).items()
    return kind, value


def _damaged(path: Path, line: int) -> UsageError:
    return UsageError(f"{path}: line {line} is damaged; restore the file, or start anew with --overwrite")


def _read_header(contents: JournalContents, value: dict[str, Any]) -> None:
    if value["row_schema"] != ROW_SCHEMA:
        raise UsageError(
            f"the journal of {value['model']} has row_schema {value['row_schema']}, this version of LLM-Profile writes "
            f"{ROW_SCHEMA}; use the version that wrote it, or start anew with --overwrite"
        )
    contents.header = value


def _read_run(contents: JournalContents, value: dict[str, Any]) -> None:
    contents.runs[value["index"]] = value


def _read_kernel(contents: JournalContents, value: tuple[int, str]) -> None:
    number, name = value
    contents.kernels[number] = name


def _read_point(contents: JournalContents, value: dict[str, Any]) -> None:
    """Raises KeyError where the line of its run, or that of one of its kernels, was damaged."""
    contents.runs[value["run"]]
    rows: dict[str, RowRecord] = {}
    for name, (statistics, blocks, launches, kernels) in value["rows"].items():
        rows[name] = RowRecord(_measurement(statistics), blocks, launches, tuple(contents.kernels[k] for k in kernels))
    record = PointRecord(
        rows=rows,
        whole_pass=_measurement(value["pass"]),
        timed_by=value["timed_by"],
        sm_clock_mhz=value["sm_clock_mhz"],
        overlap=value["overlap"],
        notes=tuple(value["notes"]),
        run=value["run"],
        source=value["source"],
    )
    contents.results.append((point_of_key(value["at"]), record))


def _read_missing(contents: JournalContents, value: dict[str, Any]) -> None:
    contents.results.append((point_of_key(value["at"]), str(value["reason"])))


def _read_files(contents: JournalContents, value: dict[str, str]) -> None:
    contents.rows_sha256.add(value["rows_sha256"])


READERS: dict[str, Callable[[JournalContents, Any], None]] = {
    "header": _read_header,
    "run": _read_run,
    "kernel": _read_kernel,
    "point": _read_point,
    "missing": _read_missing,
    "files": _read_files,
}


def _measurement(statistics: list[float]) -> Measurement:
    n, *times = statistics
    return Measurement(int(n), *(float(ns) for ns in times))


def _statistics(measurement: Measurement) -> list[float]:
    """As `_measurement` reads them; whole numbers go without their `.0`, which many have."""
    return [measurement.n, *(int(ns) if float(ns).is_integer() else ns for ns in measurement.statistics_ns)]


def _line(entry: Mapping[str, Any]) -> bytes:
    content = to_json(entry).encode()[:-1]
    return content + b',"crc32":"%08x"}\n' % zlib.crc32(content)


class Journal:
    """A journal being written on, after what is good in it. Raises UsageError where the file system refuses."""

    def __init__(self, path: Path, known: JournalContents) -> None:
        self._path = path
        # a number keeps its kernel for good: a line that defines one anew could be damaged
        self._kernel_ids = {kernel: number for number, kernel in known.kernels.items()}
        self._next_id = max(known.kernels, default=-1) + 1
        with storage_errors("write", path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            self._file.truncate(known.good_bytes)
            sync_folder(path.parent)
        self._synced_at = time.monotonic()

    def write_header(self, header: Mapping[str, Any]) -> None:
        self._append({"header": header})

    def write_run(self, run: Mapping[str, Any]) -> None:
        self._append({"run": run})

    def write_files(self, rows_sha256: str) -> None:
        """Announce a rows file: a kill may leave it beside metadata that is older."""
        self._append({"files": {"rows_sha256": rows_sha256}})
        self.sync()

    def write_result(self, point: SweepPoint, result: PointRecord | str) -> None:
        """Write what came of a point: its record, or the reason why there is none. It outlives a kill from here on."""
        if isinstance(result, str):
            self._append({"missing": {"at": key_of(point), "reason": result}})
            return
        used = dict.fromkeys(kernel for row in result.rows.values() for kernel in row.kernels)
        new = [kernel for kernel in used if kernel not in self._kernel_ids]
        ids = self._kernel_ids | {kernel: number for number, kernel in enumerate(new, start=self._next_id)}
        rows = {
            name: [_statistics(row.measurement), row.blocks, row.launches, [ids[kernel] for kernel in row.kernels]]
            for name, row in result.rows.items()
        }
        entry = {
            "at": key_of(point),
            "run": result.run,
            "source": result.source,
            "timed_by": result.timed_by,
            "sm_clock_mhz": result.sm_clock_mhz,
            "overlap": result.overlap,
            "notes": result.notes,
            "pass": _statistics(result.whole_pass),
            "rows": rows,
        }
        self._append(*({"kernel": [ids[kernel], kernel]} for kernel in new), {"point": entry})
        self._kernel_ids, self._next_id = ids, self._next_id + len(new)

    def _append(self, *entries: Mapping[str, Any]) -> None:
        data = memoryview(b"".join(_line(entry) for entry in entries))
        with storage_errors("write", self._path):
            end = self._file.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError:
                with suppress(OSError):  # half a line with others after it would be damage
                    self._file.truncate(end)
                raise
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Make all that was written last through a power cut."""
        with storage_errors("write", self._path):
            os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            self._file.close()
