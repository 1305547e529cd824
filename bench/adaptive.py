#!/usr/bin/env python3
"""Apply the adaptive grid to the table of a full sweep: how many points it measures, and how far off the others are.

The table takes the place of the device. Points that the grid does not measure are interpolated, and compared with the
table: by row, and by whole pass, in which the noise of the rows averages out. For comparison, each point is also
interpolated from the two lengths beside it; that error is mostly noise, which no grid can avoid.

    python3 bench/adaptive.py H200/meta-llama/Llama-3.1-8B.csv
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, wherever this is run from

from bench.compare_tables import WITHIN_NS, Agreement, agreement_lines
from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, UsageError
from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord
from llm_profile.store.files import read_table
from llm_profile.store.storage import write_json
from llm_profile.store.table import LatencyTable
from llm_profile.timing.grid import GRIDS, filled, leave_one_out

WITHIN = 0.04
"""Largest relative error of an interpolated row or pass that is within bounds. Errors of up to 100 ns are, too."""


def measured_points(table: LatencyTable) -> dict[SweepPoint, PointRecord]:
    """The points of a full table that the adaptive grid measures. Raises UsageError if the table has filled points."""
    points = table.points()
    if not all(record.is_measured for record in table.records.values()):
        raise UsageError("the table has filled points; give one that was measured with --grid full")
    known: dict[SweepPoint, PointRecord] = {}
    while asked := GRIDS["adaptive"].next_points(points, known, ()):
        known |= {point: table.records[point] for point in asked}
    return known


def row_pairs(points: Sequence[tuple[PointRecord, PointRecord]]) -> list[tuple[float, float]]:
    """(Measured, interpolated) nanoseconds of each row. points: (measured, interpolated) record of each point."""
    return [
        (measured.rows[row].measurement.trimmed_mean_ns, made.rows[row].measurement.trimmed_mean_ns)
        for measured, made in points
        for row in measured.rows
    ]


def pass_pairs(points: Sequence[tuple[PointRecord, PointRecord]]) -> list[tuple[float, float]]:
    """(Measured, interpolated) nanoseconds of each whole pass. points: as in `row_pairs`."""
    return [(measured.whole_pass.trimmed_mean_ns, made.whole_pass.trimmed_mean_ns) for measured, made in points]


def judge(table: LatencyTable) -> dict[str, Any]:
    """The figures of the adaptive grid on a full table.

    points, measured: number of points of the table, and of those that the grid measures. rows, passes: phase ->
    Agreement of interpolated with measured ones. beside: phase -> FillError of points interpolated from the lengths
    beside them. Raises UsageError if the table has filled points.
    """
    known, points = measured_points(table), table.points()
    both: dict[str, list[tuple[PointRecord, PointRecord]]] = {}  # phase -> (measured, interpolated) of each point
    for point, made in filled(points, known, {}, 0).items():
        if isinstance(made, PointRecord):
            both.setdefault(point.kind, []).append((table.records[point], made))
    return {
        "points": len(points),
        "measured": len(known),
        "rows": {phase: Agreement.of(row_pairs(of), WITHIN) for phase, of in both.items()},
        "passes": {phase: Agreement.of(pass_pairs(of), WITHIN) for phase, of in both.items()},
        "beside": {phase: leave_one_out([p for p in points if p.kind == phase], table.records) for phase in both},
    }


def table_lines(found: dict[str, Any]) -> list[str]:
    """The lines that are printed. found: the result of `judge`."""
    lines = [
        f"{found['measured']} of {found['points']} points measured; within: at most {WITHIN:.0%} or {WITHIN_NS:g} ns"
    ]
    for of in ("rows", "passes"):
        lines += agreement_lines((f"{of} of {phase}", agreement) for phase, agreement in found[of].items())
    for phase, floor in found["beside"].items():
        lines.append(f"{phase}, each length from the two beside it: mean {floor.mean:.2%}, p99 {floor.p99:.2%}")
    return lines


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("csv", type=Path, help="a table in which every length is measured")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        found = judge(read_table(arguments.csv))
        print("\n".join(table_lines(found)))
        if arguments.json:
            by_phase = {
                name: {phase: asdict(of) for phase, of in found[name].items()} for name in ("rows", "passes", "beside")
            }
            write_json(arguments.json, found | by_phase)
    except UsageError as error:
        print(f"adaptive.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
