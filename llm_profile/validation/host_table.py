"""What a step costs beside its kernels: `<model>.host.csv`. No torch."""

import csv
import io
import statistics
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llm_profile.points import SweepPoint
from llm_profile.store.storage import write_whole
from llm_profile.store.table import LatencyTable
from llm_profile.validation.estimate import Estimate
from llm_profile.validation.report import ValidationReport
from llm_profile.validation.scaling import kernels_ns

HEADER = ("hardware", "model", "runtime", "num_layers", "input", "kv_cache", "wall(ns)", "kernels(ns)", "host(ns)")
"""A line per timed step of the whole model. wall: median over repeats. kernels: the table's sum for that step.
host: wall - kernels, what launches, gaps between kernels and Python add."""

Key = tuple[str, int, SweepPoint]
"""Runtime, number of blocks, step."""


def write_host_table(table: LatencyTable, csv_path: Path, report: ValidationReport) -> Path:
    """Write the steps of a report beside the table, with those of other runtimes and depths that are there already.

    kernels(ns) of all are of the table as it is now. Raises UsageError where the file system refuses.
    """
    path = csv_path.with_name(f"{csv_path.stem}.host.csv")
    walls = {key: wall_ns for key, wall_ns in _read(path) if key[:2] != (report.runtime, report.depth)}
    walls |= {
        (report.runtime, report.depth, step.point): round(statistics.median(step.wall_ns)) for step in report.steps
    }
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(HEADER)
    for runtime, depth in sorted({key[:2] for key in walls}):
        points = sorted((of for *owner, of in walls if tuple(owner) == (runtime, depth)), key=_order)
        for point, kernels in zip(points, kernels_ns(Estimate.of(table, depth), points), strict=True):
            wall_ns = walls[runtime, depth, point]
            key = (table.hardware, table.model, runtime, depth, point.input_len, point.kv_len)
            writer.writerow((*key, wall_ns, round(kernels), wall_ns - round(kernels)))
    write_whole(path, lines.getvalue().encode())
    return path


def _read(path: Path) -> Iterator[tuple[Key, int]]:
    """What an earlier validation left; nothing of a file that is not there, or is another's."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        with open(path, newline="", encoding="utf-8") as file:
            found = [
                (
                    (row["runtime"], int(row["num_layers"]), SweepPoint(int(row["input"]), int(row["kv_cache"]))),
                    int(row["wall(ns)"]),
                )
                for row in csv.DictReader(file)
            ]
        yield from found


def _order(point: SweepPoint) -> tuple[int, int]:
    return point.kv_len, point.input_len
