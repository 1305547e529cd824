"""Latency of every row along a series of points, as a page draws it. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from llm_profile.measurement import Measurement
from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord
from llm_profile.report.facts import measured_again
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import DECODE, PREFILL, Series
from llm_profile.timing.loop import clocks_mhz, slow_points
from llm_profile.validation.estimate import HEAD_ROW

MOST_LENGTHS = 4096
"""Most lengths of a series on a page; of more, every so many-th is kept, and both ends: no screen is as wide."""

MOST_BANDS = 512
"""Most values of a band of quartiles along a series; of more lengths, neighbours share their mean."""

NO_ROW = Measurement(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Of a row that launched nothing at a point."""


@dataclass(frozen=True)
class Band:
    """The quartiles of passes: how far they lie below and above the latency, in whole ns, a value for `every` lengths.

    The last value may stand for fewer lengths.
    """

    below_ns: tuple[int, ...]
    above_ns: tuple[int, ...]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring lengths at which a row runs the same kernels. start: index of the first one, up to the next stretch.

    launches: kernels, copies and memsets per pass, over all profiled blocks. kernels: their names.
    """

    start: int
    launches: int
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """One row, or the whole pass, along a series. latency_ns: the table's numbers, one for each length."""

    latency_ns: tuple[int, ...]
    band: Band
    stretches: tuple[Stretch, ...] = ()


@dataclass(frozen=True)
class SeriesCurves:
    """A series of a table. left_out: lengths of the table that are not here. every: lengths that a band averages.

    rows: by name, in the order of a pass. whole_pass: device time of the pass as it was profiled, with few blocks.
    clock_mhz: None where it is not known. slow: indices of points at a low SM clock; again: of points that were
    measured again for that, as far as it was recorded; filled: of interpolated ones.
    """

    name: str
    lengths: tuple[int, ...]
    left_out: int
    every: int
    rows: Mapping[str, Curve]
    whole_pass: Curve
    clock_mhz: tuple[float | None, ...]
    slow: tuple[int, ...]
    again: tuple[int, ...]
    filled: tuple[int, ...]


def row_weights(table: LatencyTable) -> dict[str, int]:
    """How often each row counts in a pass: the blocks of its kind in the full model, or 1 for a row of the model.

    Of a table that does not say which rows are of blocks, the blocks that were profiled.
    """
    if table.meta.get("block_rows") is None:
        return {name: row.blocks for record in table.records.values() for name, row in record.rows.items()}
    return table.row_weights()


def series_curves(table: LatencyTable) -> list[SeriesCurves]:
    """Prompts and decode steps of a table, of those of which it has two lengths at least."""
    slow, again = set(slow_points(clocks_mhz(table))), measured_again(table)
    found = [_curves(table, name, series, slow, again) for name, series in (("prefill", PREFILL), ("decode", DECODE))]
    return [curves for curves in found if len(curves.lengths) > 1]


def _curves(
    table: LatencyTable, name: str, series: Series, slow: set[SweepPoint], again: set[SweepPoint]
) -> SeriesCurves:
    there = series.of(table.records)
    points = thinned(there, MOST_LENGTHS)
    records = [table.records[point] for point in points]
    every = -(-len(points) // MOST_BANDS) or 1
    rows = dict.fromkeys(row for record in records for row in record.rows)
    return SeriesCurves(
        name,
        tuple(series.length(point) for point in points),
        len(there) - len(points),
        every,
        {row: _of_row(row, records, every) for row in rows},
        _of_pass(records, every),
        tuple(record.sm_clock_mhz for record in records),
        tuple(index for index, point in enumerate(points) if point in slow),
        tuple(index for index, point in enumerate(points) if point in again),
        tuple(index for index, record in enumerate(records) if not record.is_measured),
    )


def thinned(points: Sequence[SweepPoint], most: int) -> list[SweepPoint]:
    """At most `most` of some points, evenly spaced, both ends among them."""
    if len(points) <= most:
        return list(points)
    return [points[index * (len(points) - 1) // (most - 1)] for index in range(most)]


def _of_row(name: str, records: Sequence[PointRecord], every: int) -> Curve:
    rows = [record.rows.get(name) for record in records]
    launched = [(row.launches, row.kernels) if row else (0, ()) for row in rows]
    changes = [index for index, now in enumerate(launched) if not index or now != launched[index - 1]]
    return Curve(
        tuple(row.measurement.latency_ns if row else 0 for row in rows),
        _band([row.measurement if row else NO_ROW for row in rows], every),
        tuple(Stretch(index, *launched[index]) for index in changes),
    )


def _of_pass(records: Sequence[PointRecord], every: int) -> Curve:
    passes = [record.whole_pass for record in records]
    return Curve(tuple(measured.latency_ns for measured in passes), _band(passes, every))


def _band(measured: Sequence[Measurement], every: int) -> Band:
    """Of filled points, which have no quartiles, nothing."""
    below = [m.trimmed_mean_ns - m.q1_ns if m.n else 0.0 for m in measured]
    above = [m.q3_ns - m.trimmed_mean_ns if m.n else 0.0 for m in measured]
    starts = range(0, len(measured), every)
    return Band(*(tuple(round(fmean(side[start : start + every])) for start in starts) for side in (below, above)))


def head_row(curves: SeriesCurves, one_logit: bool) -> str | None:
    """The row of a prompt's pass that counts for one token whatever the length; None where there is none."""
    return HEAD_ROW if curves.name == "prefill" and one_logit and HEAD_ROW in curves.rows else None
