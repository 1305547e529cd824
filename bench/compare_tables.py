#!/usr/bin/env python3
"""Compare two tables at the points that both have, such as two sweeps of one model, to see how repeatable they are.

The difference of a row is that of its two latencies relative to their mean. Rows of a few microseconds vary by a clock
tick or two, so a difference is within bounds if it is at most 5 % or at most 100 ns.

    python3 bench/compare_tables.py A/H200/meta-llama/Llama-3.1-8B.csv B/H200/meta-llama/Llama-3.1-8B.csv
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, wherever this is run from

import numpy as np

from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, UsageError
from llm_profile.records import PointRecord
from llm_profile.store.conditions import differences
from llm_profile.store.files import read_table
from llm_profile.store.storage import write_json
from llm_profile.store.table import LatencyTable
from llm_profile.validation.estimate import is_unnamed_row

WITHIN = 0.05
"""Largest relative difference that is within bounds."""

WITHIN_NS = 100.0
"""Largest difference in nanoseconds that is within bounds, whatever it is relative to the row."""

ALL_ROWS, NAMED_ROWS = "all rows", "named rows"
"""Names of two further lines of a phase: all of its rows together, and its rows without `_other` rows."""


@dataclass(frozen=True)
class Agreement:
    """How far two latencies of the same rows are apart.

    n: number of pairs of latencies. mean, median, p99: of their relative differences. within: share of the differences
    that are within bounds. bias: mean of the differences with their signs (positive if the second latency is longer),
    in which noise averages out.
    """

    n: int
    mean: float
    median: float
    p99: float
    within: float
    bias: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]], within: float = WITHIN) -> "Agreement":
        """The agreement of pairs of latencies in nanoseconds. Raises ValueError for no pairs.

        within: largest relative difference that is within bounds.
        """
        if not pairs:
            raise ValueError("nothing was measured twice")
        a, b = np.asarray(pairs, dtype=np.float64).T
        apart = np.abs(a - b)
        relative = 2 * apart / np.maximum(a + b, 1e-9)  # 0 for two zeros
        close = (relative <= within) | (apart <= WITHIN_NS)
        return cls(
            len(pairs),
            float(np.mean(relative)),
            float(np.median(relative)),
            float(np.quantile(relative, 0.99)),
            float(np.mean(close)),
            float(np.mean(np.sign(b - a) * relative)),
        )


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two tables.

    points: number of points that were compared. by_row: phase -> row -> agreement, with ALL_ROWS and NAMED_ROWS first.
    only_one: rows that only one of the tables has. conditions: a text for each condition that differs.
    """

    points: int
    by_row: dict[str, dict[str, Agreement]]
    only_one: tuple[str, ...]
    conditions: tuple[str, ...]


def compare(a: LatencyTable, b: LatencyTable, filled: bool = False) -> Comparison:
    """Compare two tables at the points that are measured in both.

    filled: compare them at the points that are measured in one and interpolated in the other instead. Raises UsageError
    if there are no such points.
    """
    points = [p for p in a.points() if p in b.records and _counts(a.records[p], b.records[p], filled)]
    if not points:
        needed = "measured in one table and interpolated in the other" if filled else "measured in both tables"
        raise UsageError(f"no point is {needed}; use tables that have some lengths in common")
    rows = [row for row in a.row_names() if row in set(b.row_names())]
    pairs: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point in points:
        of_phase = pairs.setdefault(point.kind, {ALL_ROWS: [], NAMED_ROWS: []})
        for row in rows:
            pair = (a.latency_ns(row, point), b.latency_ns(row, point))
            of_phase.setdefault(row, []).append(pair)
            of_phase[ALL_ROWS].append(pair)
            if not is_unnamed_row(row):
                of_phase[NAMED_ROWS].append(pair)
    return Comparison(
        len(points),
        {phase: {row: Agreement.of(both) for row, both in of_row.items()} for phase, of_row in pairs.items()},
        tuple(sorted({*a.row_names()} ^ {*b.row_names()})),
        tuple(differences(a.meta, b.meta)),
    )


def _counts(one: PointRecord, other: PointRecord, filled: bool) -> bool:
    return one.is_measured != other.is_measured if filled else one.is_measured and other.is_measured


def agreement_lines(named: Iterable[tuple[str, Agreement]]) -> list[str]:
    """A heading and a line for each name with its agreement."""
    lines = [f"{'':24} {'n':>7} {'mean %':>8} {'median %':>9} {'p99 %':>8} {'within %':>9} {'bias %':>7}"]
    for name, found in named:
        shares = f"{100 * found.mean:8.2f} {100 * found.median:9.2f} {100 * found.p99:8.2f} {100 * found.within:9.2f}"
        lines.append(f"{name:24} {found.n:7} {shares} {100 * found.bias:+7.2f}")
    return lines


def table_lines(comparison: Comparison) -> list[str]:
    """The lines that are printed."""
    lines = [f"{comparison.points} points in both; within: at most {100 * WITHIN:g} % or {WITHIN_NS:g} ns"]
    lines += [f"conditions differ: {text}" for text in comparison.conditions]
    if comparison.only_one:
        lines.append(f"rows of one table only: {', '.join(comparison.only_one)}")
    for phase, of_row in comparison.by_row.items():
        lines += ["", phase, *agreement_lines(of_row.items())]
    return lines


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("csv", type=Path, nargs=2, help="two tables of LLM-Profile")
    parser.add_argument(
        "--filled",
        action="store_true",
        help="compare at the points that are measured in one table and interpolated in the other",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        first, second = (read_table(path) for path in arguments.csv)
        comparison = compare(first, second, arguments.filled)
        print("\n".join(table_lines(comparison)))
        if arguments.json:
            write_json(arguments.json, asdict(comparison))
    except UsageError as error:
        print(f"compare_tables.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
