#!/usr/bin/env python3
"""How well two tables agree, over the points that both have: the repeatability of a sweep.

A row's difference is that of its two latencies over their mean. Rows of a few microseconds vary by a clock tick or two,
so a difference is within bounds if it is at most 5 % or at most 100 ns.

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
"""A relative difference up to here is within bounds."""

WITHIN_NS = 100.0
"""So is one of so few nanoseconds."""

ALL_ROWS, NAMED_ROWS = "all rows", "named rows"
"""Of the whole phase: every row, and those of layers, which are what the documented way of timing has."""


@dataclass(frozen=True)
class Agreement:
    """How far measurements of the same things are apart.

    n: how many were measured twice. mean, median, p99: of their relative differences. within: share of them that are at
    most `within` (WITHIN unless told otherwise) or WITHIN_NS. bias: mean of the differences with their signs, second
    over first: noise averages out of it.
    """

    n: int
    mean: float
    median: float
    p99: float
    within: float
    bias: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]], within: float = WITHIN) -> "Agreement":
        """pairs: the two latencies of each thing, in nanoseconds. Raises ValueError for none at all."""
        if not pairs:
            raise ValueError("nothing was measured twice")
        a, b = np.asarray(pairs, dtype=np.float64).T
        apart = np.abs(a - b)
        relative = 2 * apart / np.maximum(a + b, 1e-9)  # two zeros agree
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
    """Two tables. points: how many both have. by_row: phase -> row -> agreement, ALL_ROWS and NAMED_ROWS first.
    only_one: rows that only one of them has. conditions: what they were measured under differs in, a text each."""

    points: int
    by_row: dict[str, dict[str, Agreement]]
    only_one: tuple[str, ...]
    conditions: tuple[str, ...]


def compare(a: LatencyTable, b: LatencyTable, filled: bool = False) -> Comparison:
    """Hold two tables against each other, at the points that both have measured.

    filled: at those that one has measured and the other has filled in. Raises UsageError if there is no such point.
    """
    points = [p for p in a.points() if p in b.records and _counts(a.records[p], b.records[p], filled)]
    if not points:
        raise UsageError("the two tables have no such point in common; measure some lengths in both")
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
    """A line per name."""
    lines = [f"{'':24} {'n':>7} {'mean %':>8} {'median %':>9} {'p99 %':>8} {'within %':>9} {'bias %':>7}"]
    for name, found in named:
        shares = f"{100 * found.mean:8.2f} {100 * found.median:9.2f} {100 * found.p99:8.2f} {100 * found.within:9.2f}"
        lines.append(f"{name:24} {found.n:7} {shares} {100 * found.bias:+7.2f}")
    return lines


def table_lines(comparison: Comparison) -> list[str]:
    """What is printed."""
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
    parser.add_argument("--filled", action="store_true", help="at the points that one of them only interpolated")
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
