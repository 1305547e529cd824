"""What a step costs beside its kernels: `<model>.host.csv`. No torch."""

import csv
import statistics
from contextlib import suppress
from pathlib import Path

from llm_profile.errors import UsageError
from llm_profile.exporters.csv_text import csv_bytes
from llm_profile.points import SweepPoint
from llm_profile.store.paths import TablePaths
from llm_profile.store.storage import write_whole
from llm_profile.store.table import LatencyTable
from llm_profile.validation.estimate import Estimate
from llm_profile.validation.report import ValidationReport
from llm_profile.validation.scaling import kernels_ns

HEADER = ("hardware", "model", "runtime", "num_layers", "input", "kv_cache", "wall(ns)", "kernels(ns)", "host(ns)")
"""A line per timed step of the whole model. wall: median over repeats. kernels: the table's sum for that step.
host: wall - kernels, what launches, gaps between kernels and Python add."""

Walls = dict[tuple[str, int], dict[SweepPoint, int]]
"""Runtime and number of blocks -> wall time of each step in nanoseconds."""


def write_host_table(table: LatencyTable, csv_path: Path, report: ValidationReport) -> Path:
    """Write the steps of a report beside the table, with those of other runtimes and depths that are there already.

    kernels(ns) of all are of the table as it is now. Raises UsageError where the file system refuses.
    """
    path = TablePaths.beside(csv_path).host
    walls = _read(path, table)
    walls[report.runtime, report.depth] = {step.point: round(statistics.median(step.wall_ns)) for step in report.steps}
    lines: list[tuple[object, ...]] = []
    for (runtime, depth), steps in sorted(walls.items()):
        points = sorted(steps, key=lambda point: (point.kv_len, point.input_len))
        for point, exact_ns in zip(points, kernels_ns(Estimate.of(table, depth), points), strict=True):
            wall, kernels = steps[point], round(exact_ns)
            step = (point.input_len, point.kv_len)
            lines.append((table.hardware, table.model, runtime, depth, *step, wall, kernels, wall - kernels))
    write_whole(path, csv_bytes(HEADER, lines))
    return path


def _read(path: Path, table: LatencyTable) -> Walls:
    """What earlier validations of the table left; nothing of a file that is not there, is damaged, or is another's."""
    walls: Walls = {}
    with suppress(OSError, ValueError, TypeError, LookupError, UsageError, csv.Error):
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                hardware, model, runtime, *numbers = (row[name] for name in HEADER)
                depth, input_len, kv_len, wall_ns, *_ = map(int, numbers)
                if (hardware, model) != (table.hardware, table.model):
                    return {}
                walls.setdefault((runtime, depth), {})[SweepPoint(input_len, kv_len)] = wall_ns
        for (_runtime, depth), steps in walls.items():
            kernels_ns(Estimate.of(table, depth), steps)  # raises for a depth or a length that the table has not
        return walls
    return {}
