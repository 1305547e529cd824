"""Two tables compared: every row of each phase at the lengths that both have measured. Imports no torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_profile.comparison.differing import Difference, differing
from llm_profile.comparison.ratio import Ratio, Times, Verdict, ratio_of_sums
from llm_profile.errors import UsageError, type_and_text
from llm_profile.measurement import Measurement
from llm_profile.points import SweepPoint
from llm_profile.report.curves import row_weights
from llm_profile.report.facts import is_unfinished, state_notes
from llm_profile.report.validation_files import BROKEN
from llm_profile.store.files import read_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable, refuse_predicted
from llm_profile.sweep import SERIES, SHARED_POINT, series_of
from llm_profile.validation.estimate import HEAD_ROW

UNFINISHED_SUMS = "A table is unfinished, so sums are of the profiled blocks, and not of the full model."

SUM = "sum"
"""What the sum of a phase is called beside its rows."""


@dataclass(frozen=True)
class ComparedRow:
    """A row, or the sum of a phase, over the common lengths.

    a_ns, b_ns: means over lengths, per block for rows of blocks. other_kernels: whether B ran kernels of other names.
    """

    name: str
    a_ns: float
    b_ns: float
    ratio: Ratio
    verdict: Verdict
    other_kernels: bool


@dataclass(frozen=True)
class ComparedPhase:
    """A phase, by the name of its series. lengths: those that both tables measured, ascending.

    only_in_a, only_in_b: numbers of lengths that only one table measured; rows_only_in_a, rows_only_in_b: rows without
    time in the other, at the common lengths.
    """

    name: str
    lengths: tuple[int, ...]
    only_in_a: int
    only_in_b: int
    rows: tuple[ComparedRow, ...]
    sum: ComparedRow
    rows_only_in_a: tuple[str, ...]
    rows_only_in_b: tuple[str, ...]

    def slower_by(self, share: float) -> list[str]:
        """The rows, and the sum, that are decidedly slower in B by more than `share` (0.05)."""
        return [row.name for row in (*self.rows, self.sum) if row.ratio.slower_by(share)]


@dataclass(frozen=True)
class ComparedTable:
    """One of the two. notes: what has to be known before any number is read."""

    path: Path
    hardware: str
    model: str
    points: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """B against A. tolerance: how far apart times may be that count as the same, as a ratio.

    of_full_model: whether sums are of the full model, and not of the profiled blocks. several_sequences: number of
    common points of several sequences and of chunks, which are not compared. incomparable: why no verdict on the whole
    can be given. warnings: what else makes ratios doubtful.
    """

    a: ComparedTable
    b: ComparedTable
    differing: tuple[Difference, ...]
    phases: tuple[ComparedPhase, ...]
    tolerance: float
    of_full_model: bool
    several_sequences: int
    incomparable: tuple[str, ...]
    warnings: tuple[str, ...]

    def slower_by(self, share: float) -> dict[str, list[str]]:
        """Phase -> the rows that are decidedly slower in B by more than `share`; phases without any are left out."""
        return {phase.name: found for phase in self.phases if (found := phase.slower_by(share))}


def compare(a_csv: Path, b_csv: Path, tolerance: float, allow_predicted: bool = False) -> Comparison:
    """Compare two tables. tolerance: as in `Comparison`. allow_predicted: whether either may be a prediction.

    Raises UsageError for what is no table of LLM-Profile, is damaged, or is of another schema, and for two tables that
    have measured no length in common.
    """
    a, b = read_table(a_csv), read_table(b_csv)
    for table in (a, b):
        refuse_predicted(table, allow_predicted)
    try:
        return _compared(a, b, (a_csv, b_csv), tolerance)
    except BROKEN as error:
        metas = " or ".join(str(TablePaths.beside(csv).meta) for csv in (a_csv, b_csv))
        raise UsageError(
            f"{metas} is damaged ({type_and_text(error)}); restore it, or measure the table anew"
        ) from error


def _compared(a: LatencyTable, b: LatencyTable, csvs: tuple[Path, Path], tolerance: float) -> Comparison:
    common = a.own_points() & b.own_points()
    of_full_model = not (is_unfinished(a) or is_unfinished(b))
    phases = tuple(
        _phase(a, b, name, common, tolerance, of_full_model)
        for name in SERIES
        if any(series_of(point) == name for point in common)
    )
    if not phases:
        raise UsageError(
            f"{csvs[0]} and {csvs[1]}: no length was measured in both; measure one of them at lengths of the other "
            "(--mode, --prefill-max, --decode-max, --prefill-step, --decode-step)"
        )
    return Comparison(
        a=_told(a, csvs[0]),
        b=_told(b, csvs[1]),
        differing=tuple(differing(a, b)),
        phases=phases,
        tolerance=tolerance,
        of_full_model=of_full_model,
        several_sequences=sum(series_of(point) is None for point in common),
        incomparable=tuple(_incomparable(a, b, {phase.name for phase in phases})),
        warnings=() if of_full_model else (UNFINISHED_SUMS,),
    )


def _told(table: LatencyTable, csv: Path) -> ComparedTable:
    notes = list(state_notes(table))
    if is_unfinished(table) or TablePaths.beside(csv).journal.exists():
        notes.insert(0, f"Unfinished: {len(table.records)} points so far; the command that measures it goes on.")
    return ComparedTable(csv, table.hardware, table.model, len(table.records), tuple(notes))


def _incomparable(a: LatencyTable, b: LatencyTable, compared: set[str]) -> Iterator[str]:
    """compared: phases of which both have measured a length."""
    if a.meta["clock"] != b.meta["clock"]:
        yield (
            f"The clocks differ ({a.meta['clock']}, {b.meta['clock']}): kernel times and wall times are different "
            "quantities, and their ratio says nothing of speed."
        )
    if ("scaling" in a.meta) != ("scaling" in b.meta):
        yield "One table is scaled and the other one is not: the ratio is that of estimates to kernel times."
    in_a, in_b = _phases_of(a), _phases_of(b)
    for name in SERIES:
        if name in in_a ^ in_b:
            rest = " of more than one token." if name in compared else ", which is not compared."
            yield f"Only {'A' if name in in_a else 'B'} has {name}{rest}"
        elif name in in_a - compared:
            yield f"No length of {name} was measured in both tables, so it is not compared."


def _phases_of(table: LatencyTable) -> set[str | None]:
    """What a table measured; a sweep of decode alone begins with a prompt of one token, which is no prefill yet."""
    return {series_of(point) for point in table.own_points() - {SHARED_POINT}} or {series_of(SHARED_POINT)}


def _phase(
    a: LatencyTable, b: LatencyTable, name: str, common: set[SweepPoint], tolerance: float, of_full_model: bool
) -> ComparedPhase:
    points = [point for point in SERIES[name].of(common) if series_of(point) == name]
    of_a, of_b = (_PhaseTimes.of(table, points) for table in (a, b))
    rows = dict.fromkeys((*of_a.latency_ns, *of_b.latency_ns))
    taken_a, taken_b = ({row for row, times in of.latency_ns.items() if times.sum() > 0} for of in (of_a, of_b))
    one_logit = name == "prefill" and SHARED_POINT in common and a.pays_one_logit and b.pays_one_logit
    sums = [of.summed(table, of_full_model, one_logit) for of, table in ((of_a, a), (of_b, b))]

    def only(there: LatencyTable, other: set[str], own: set[str]) -> tuple[str, ...]:
        return tuple(row for row in there.row_names() if row in own - other)

    def only_there(table: LatencyTable) -> int:
        return sum(series_of(point) == name for point in table.own_points()) - len(points)

    return ComparedPhase(
        name,
        tuple(SERIES[name].length(point) for point in points),
        only_in_a=only_there(a),
        only_in_b=only_there(b),
        rows=tuple(
            _row(row, of_a.row(row), of_b.row(row), tolerance, of_a.kernels[row] != of_b.kernels[row])
            for row in rows
            if row in taken_a & taken_b
        ),
        sum=_row(SUM, sums[0], sums[1], tolerance, of_a.kernels != of_b.kernels),
        rows_only_in_a=only(a, taken_b, taken_a),
        rows_only_in_b=only(b, taken_a, taken_b),
    )


def _row(
    name: str, a: tuple[Times, Times], b: tuple[Times, Times], tolerance: float, other_kernels: bool
) -> ComparedRow:
    ratio = ratio_of_sums(a[0], b[0], a[1], b[1])
    return ComparedRow(name, float(a[0].mean()), float(b[0].mean()), ratio, ratio.verdict(tolerance), other_kernels)


@dataclass(frozen=True)
class _PhaseTimes:
    """Rows of one table at the common points of a phase. latency_ns, error_ns: by row, shape [points].

    relative_error: of the whole pass, shape [points]. kernels: by row, the names of all kernels.
    """

    latency_ns: Mapping[str, Times]
    error_ns: Mapping[str, Times]
    relative_error: Times
    kernels: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, table: LatencyTable, points: Sequence[SweepPoint]) -> "_PhaseTimes":
        records = [table.records[point] for point in points]
        names = dict.fromkeys(name for record in records for name in record.rows)
        there = {name: [record.rows.get(name) for record in records] for name in names}
        return cls(
            {
                name: np.array([row.measurement.trimmed_mean_ns if row else 0.0 for row in rows])
                for name, rows in there.items()
            },
            {
                name: np.array([_error_ns(row.measurement) if row else 0.0 for row in rows])
                for name, rows in there.items()
            },
            np.array([_relative_error(record.whole_pass) for record in records]),
            {name: frozenset(kernel for row in rows if row for kernel in row.kernels) for name, rows in there.items()},
        )

    def row(self, name: str) -> tuple[Times, Times]:
        """A row's times and their standard errors."""
        return self.latency_ns[name], self.error_ns[name]

    def summed(self, table: LatencyTable, of_full_model: bool, one_logit: bool) -> tuple[Times, Times]:
        """The sum of all rows, those of blocks as often as there are blocks, and its standard error.

        The rows of a pass rise and fall together, so the error is that of the whole pass. one_logit: the first point is
        of one token, and a longer prompt pays `lm_head` for one token, too.
        """
        weights = row_weights(table) if of_full_model else _profiled_blocks(table)
        total = np.zeros(len(self.relative_error))
        for name, times in self.latency_ns.items():
            total += weights[name] * (times[0] if one_logit and name == HEAD_ROW else times)
        return total, total * self.relative_error


def _profiled_blocks(table: LatencyTable) -> dict[str, int]:
    return {name: row.blocks for record in table.records.values() for name, row in record.rows.items()}


def _error_ns(measured: Measurement) -> float:
    return _relative_error(measured) * measured.trimmed_mean_ns


def _relative_error(measured: Measurement) -> float:
    """Standard error over mean; NaN of a single pass, which tells nothing of noise."""
    return measured.relative_error if measured.n > 1 else math.nan
