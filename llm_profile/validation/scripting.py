"""The two functions that scripts of users import from validation.py. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Pair
from llm_profile.validation.estimate import Estimate, check_pairs, whole_pairs
from llm_profile.validation.measured_steps import MeasuredSteps
from llm_profile.validation.scaled_table import scaled_table, scaling_paths, write_scaled
from llm_profile.validation.scaling import Scaling, average_factor


def compute_average_scaling_factor(
    table: LatencyTable,
    measured: MeasuredSteps | Mapping[SweepPoint, Sequence[float]],
    pairs: Sequence[Pair],
    depth: int | None = None,
) -> float:
    """The documented one average: the mean over `pairs` of measured / estimated total latency.

    measured: wall times of real steps in nanoseconds, per repeat: prefill at (n, 0), decode at (1, k). Decode steps
    that were not timed are interpolated. pairs: (input length, output length) in tokens. depth: blocks that the real
    model had (its first so many), None for all. Raises UsageError where the table or the steps do not cover a pair, and
    for values that are no positive numbers.
    """
    pairs = whole_pairs(pairs)
    check_pairs(pairs, table.records, table.missing)
    steps = measured if isinstance(measured, MeasuredSteps) else MeasuredSteps.of(measured)
    return average_factor(Estimate.of(table, depth), steps, pairs)


def apply_scaling_to_latency_csv(
    csv_path: str | Path,
    scaling_factor: float | Scaling,
    output_path: str | Path | None = None,
    add_new_column: bool = False,
    *,
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write a scaled copy of the table at `csv_path`, with its metadata and rows file, and return the new CSV's path.

    scaling_factor: one factor for every row, or a Scaling fitted on this table. output_path: default
    `<model>-scaled.csv` beside the measured table. add_new_column: leave `latency(ns)` as measured in the new CSV and
    add a `scaled_latency(ns)` column. details: kept in the metadata's `scaling` (runtime, errors).

    The measured table is never touched. Raises UsageError for a table that is scaled already, for an output that would
    replace a measured one, for factors outside 1e-6 to 1e6, and for latencies that no table can hold.
    """
    source, target = scaling_paths(csv_path, output_path)
    table = read_table(source.csv)
    scaled = scaled_table(table, scaling_factor, {"source": source.csv.name, **(details or {})})
    write_scaled(scaled, table if add_new_column else None, target)
    return target.csv
