"""A measured table's scaled copy: where it may stand, what is in it, how it is written. No torch."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError, number_between
from llm_profile.exporters.flat_csv import csv_content, to_frame
from llm_profile.json_text import parse_json
from llm_profile.measurement import Measurement
from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord
from llm_profile.store.files import CSV_HEADER, write_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.storage import storage_errors
from llm_profile.store.table import LatencyTable
from llm_profile.validation.estimate import model_depth
from llm_profile.validation.scaling import Scaling

SCALED_COLUMN = "scaled_latency(ns)"

LEAST_FACTOR, MOST_FACTOR = 1e-6, 1e6
"""Factors beyond are mistakes of units: seconds for nanoseconds and the like."""

LARGEST_NS = 2.0**63
"""Latencies are whole numbers of 64 bits, signed."""


def scaling_paths(csv_path: str | Path, output_path: str | Path | None = None) -> tuple[TablePaths, TablePaths]:
    """The files of a table and of its scaled copy, `<model>-scaled.csv` unless `output_path` says otherwise.

    Raises UsageError where the copy would replace something that is no scaled table.
    """
    source = TablePaths.beside(Path(csv_path))
    target = TablePaths.beside(
        Path(output_path) if output_path is not None else source.csv.with_name(f"{source.csv.stem}-scaled.csv")
    )
    with storage_errors("write", target.csv):
        taken = any(path.exists() for path in (target.csv, target.meta, target.journal)) and not _is_scaled(target)
    if taken or target.csv.absolute() == source.csv.absolute():
        raise UsageError(f"{target.csv}: holds something other than a scaled table; choose another --scaling-output")
    return source, target


def _is_scaled(paths: TablePaths) -> bool:
    try:
        return bool(parse_json(paths.meta.read_bytes()).get("scaling")) and not paths.journal.exists()
    except (OSError, ValueError, AttributeError):
        return False


def refuse_scaled(table: LatencyTable) -> None:
    """Raises UsageError for a table that is scaled already."""
    if scaling := table.meta.get("scaling"):
        raise UsageError(f"the table of {table.model} is scaled already; use the measured one, {scaling['source']}")


def scaled_table(table: LatencyTable, scaling: float | Scaling, details: Mapping[str, Any]) -> LatencyTable:
    """A table with every row's statistics multiplied by its factor. `scaling`: one factor, or what was fitted.

    Factors hold for prefill and decode of one sequence, so all other points are left out. details: kept with what the
    factors were computed from as the metadata's `scaling`.
    Raises UsageError for a scaled table, for factors outside LEAST_FACTOR..MOST_FACTOR, and for times that no table can
    hold.
    """
    refuse_scaled(table)
    if isinstance(scaling, Scaling):
        about = {"mode": scaling.mode, "num_layers": scaling.depth, **scaling.parameters}
        for factor in scaling.factor_range:
            number_between("scaling factor", factor, LEAST_FACTOR, MOST_FACTOR)
    else:
        scaling = number_between("scaling factor", scaling, LEAST_FACTOR, MOST_FACTOR)
        about = {"mode": "global", "num_layers": model_depth(table), "factor": scaling}
    scaled = LatencyTable(
        table.hardware,
        table.model,
        table.meta | {"scaling": {**about, "batch": 1, **details}},
        {point: _scaled_record(point, record, scaling) for point, record in table.records.items() if point.is_flat},
        dict(table.missing),
    )
    for record in scaled.records.values():
        for measured in (record.whole_pass, *(row.measurement for row in record.rows.values())):
            if not measured.trimmed_mean_ns < LARGEST_NS:
                raise UsageError(
                    f"scaling makes a latency of {measured.trimmed_mean_ns:g} ns, where a table holds less than "
                    f"{LARGEST_NS:g}: take a smaller factor"
                )
    return scaled


def _scaled_record(point: SweepPoint, record: PointRecord, scaling: float | Scaling) -> PointRecord:
    names = list(record.rows)
    factors = scaling.of_rows(names, point).tolist() if isinstance(scaling, Scaling) else [scaling] * len(names)
    rows = {
        name: replace(row, measurement=_times(row.measurement, factor))
        for (name, row), factor in zip(record.rows.items(), factors, strict=True)
    }
    before, after = (sum(row.in_pass_ns for row in of.values()) for of in (record.rows, rows))
    return replace(record, rows=rows, whole_pass=_times(record.whole_pass, after / before if before else 1.0))


def _times(measured: Measurement, factor: float) -> Measurement:
    return Measurement(measured.n, *(value * factor for value in measured.statistics_ns))


def write_scaled(scaled: LatencyTable, measured: LatencyTable | None, paths: TablePaths) -> None:
    """Write a scaled table's files. With `measured`, `latency(ns)` in the CSV is as measured and the scaled latency is
    a column more; the rows file has scaled statistics either way."""
    column = SCALED_COLUMN if measured else CSV_HEADER[-1]
    scaled.meta["scaling"]["column"] = column
    frame = to_frame(scaled)
    if measured:
        frame = to_frame(measured).assign(**{SCALED_COLUMN: frame[CSV_HEADER[-1]]})
    write_table(scaled, paths, csv_content(frame))
