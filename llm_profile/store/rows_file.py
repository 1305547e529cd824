"""The rows file: every record of a table as Parquet, one line per row and point. Imports no torch.

Columns: layer_name (`pass` for the whole pass), input, kv_cache, batch, latency_ns, n, trimmed_mean_ns, min_ns, q1_ns,
median_ns, q3_ns, max_ns, blocks, launches, kernels (list of names), timed_by, sm_clock_mhz, overlap, notes (list), run,
source. The last six, from timed_by on, are the point's and stand on each of its lines. Points in canonical order,
`pass` first. A table with points of several lengths has a column more, sequences (list of [tokens, history, number of
such sequences]): these points have it in place of input, kv_cache and batch, which are null, and it is null for others.
A predicted table has two columns more, low_ns and high_ns: the interval of each row.
"""

import io
from collections.abc import Container, Iterable, Iterator
from itertools import groupby, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError, type_and_text
from llm_profile.measurement import Measurement
from llm_profile.points import KEY_COLUMNS, SEQUENCES, SweepPoint, point_of_record, record_of
from llm_profile.records import PASS, PointRecord, RowRecord
from llm_profile.store.row_numbers import check_numbers
from llm_profile.store.storage import sha256_of, storage_errors

COLUMNS = {
    "layer_name": "string",
    "input": "int64",
    "kv_cache": "int64",
    "batch": "int64",
    "latency_ns": "int64",
    "n": "int64",
    "trimmed_mean_ns": "float64",
    "min_ns": "float64",
    "q1_ns": "float64",
    "median_ns": "float64",
    "q3_ns": "float64",
    "max_ns": "float64",
    "blocks": "int64",
    "launches": "int64",
    "kernels": "strings",
    "timed_by": "string",
    "sm_clock_mhz": "float64",
    "overlap": "float64",
    "notes": "strings",
    "run": "int64",
    "source": "string",
}
"""Column name to type, in the order of `_lines`."""

INTERVAL = ("low_ns", "high_ns")

LATER_COLUMNS = {SEQUENCES: "groups", **dict.fromkeys(INTERVAL, "float64")}
"""Those that only some files have, behind the others; without one, its values are null."""


def _lines(point: SweepPoint, record: PointRecord) -> Iterator[tuple[Any, ...]]:
    whole = RowRecord(record.whole_pass, 1, sum(row.launches for row in record.rows.values()), ())
    key = record_of(point)
    for name, row in {PASS: whole, **record.rows}.items():
        m = row.measurement
        yield (
            *(name, *(key.get(column) for column in KEY_COLUMNS), m.latency_ns),
            *(m.n, *m.statistics_ns, row.blocks, row.launches, row.kernels),
            *(record.timed_by, record.sm_clock_mhz, record.overlap, record.notes, record.run, record.source),
            *(key.get(SEQUENCES), *(m.interval_ns or (None, None))),
        )


def write_rows(records: Iterable[tuple[SweepPoint, PointRecord]]) -> bytes:
    """The content of a rows file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "strings": pa.list_(pa.string())}
    types["groups"] = pa.list_(pa.list_(pa.int64()))
    names = COLUMNS | LATER_COLUMNS
    lines = [line for point, record in records for line in _lines(point, record)]
    columns = dict(zip(names, zip(*lines, strict=True) if lines else ((),) * len(names), strict=True))
    needed = [name for name in names if name in COLUMNS or any(value is not None for value in columns[name])]
    table = pa.table({name: pa.array(columns[name], types[names[name]]) for name in needed})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_rows(path: Path, sha256: Container[str] | None = None) -> dict[SweepPoint, PointRecord]:
    """The records of a rows file. sha256: the checksums that it may have, None for any.

    Raises UsageError when it is not there or damaged, holds numbers that cannot be, or a row twice at a point.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage_errors("read", path):
            content = path.read_bytes() if path.exists() else b""
        if sha256 is not None and sha256_of(content) not in sha256:
            raise ValueError("another content than was written")
        # not read_table: its worker threads may still hold the file when Python ends, which aborts the process
        file = pq.ParquetFile(pa.BufferReader(content))
        there = COLUMNS | {name: kind for name, kind in LATER_COLUMNS.items() if name in file.schema_arrow.names}
        table = file.read(columns=list(there), use_threads=False)
        check_numbers(table)
        columns = {name: _values(table[name].combine_chunks(), kind) for name, kind in there.items()}
        keys = zip(*(columns.get(name, repeat(None)) for name in (*KEY_COLUMNS, SEQUENCES)), strict=False)
        interval = (columns.get(name, [None] * table.num_rows) for name in INTERVAL)
        lines = zip(*(columns[name] for name in COLUMNS), *interval, strict=True)
        of_points = groupby(zip(keys, lines, strict=True), key=itemgetter(0))
        records: dict[SweepPoint, PointRecord] = {}
        for key, group in of_points:
            point = _point(key)
            if point in records:
                raise ValueError(f"the lines of {point} are there twice, or do not stand together")
            records[point] = _record(point, [line for _key, line in group])
        return records
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{path} is missing or damaged ({type_and_text(error)}); restore it, or start anew with --overwrite"
        ) from error


def _point(key: tuple[Any, ...]) -> SweepPoint:
    return point_of_record(dict(zip((*KEY_COLUMNS, SEQUENCES), key, strict=True)))


def _record(point: SweepPoint, lines: list[tuple[Any, ...]]) -> PointRecord:
    rows = {
        line[0]: RowRecord(Measurement(*line[5:12], interval_ns=_interval(*line[-2:])), *line[12:15]) for line in lines
    }
    if len(rows) != len(lines):
        raise ValueError(f"a row is there twice at {point}")
    whole_pass = rows.pop(PASS).measurement
    return PointRecord(rows, whole_pass, *lines[0][15:-2])


def _interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _values(column: Any, kind: str) -> list[Any]:
    """A column's values. Equal texts are one object: a table names the same few kernels a hundred thousand times."""
    if kind == "string":
        encoded = column.dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        return [texts[index] for index in encoded.indices.to_pylist()]
    if kind == "strings":
        texts = _values(column.values, "string")
        ends = column.offsets.to_pylist()
        seen: dict[tuple[str, ...], tuple[str, ...]] = {}
        lists = (tuple(texts[start:end]) for start, end in zip(ends, ends[1:], strict=False))
        return [seen.setdefault(names, names) for names in lists]
    values: list[Any] = column.to_pylist()
    return values
