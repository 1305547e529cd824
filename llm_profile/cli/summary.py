"""What is said of a table that was measured: what is in it, how noisy it is, what is doubtful. Imports no torch."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord
from llm_profile.store.table import LatencyTable, slow_path
from llm_profile.sweep import SERIES, Plan, series_of
from llm_profile.timing.grid import leave_one_out
from llm_profile.timing.loop import clocks_mhz, slow_points
from llm_profile.validation.estimate import is_unnamed_row

UNNAMED_LIMIT = 0.1
"""Share of a pass in `_other` rows from which on it is said: something large may lack a row of its own."""

LOW_CLOCK = 0.02
"""Points this far below the highest SM clock of their table are counted, whatever the points of like length did."""

KERNEL_NAME_LENGTH = 60
"""Characters of a kernel's name that are shown: templates run to thousands."""


def conditions_text(conditions: Mapping[str, Any]) -> str:
    """What --verbose says of the conditions; those that do not apply are left out."""
    return "conditions: " + ", ".join(f"{name} {value}" for name, value in conditions.items() if value is not None)


def resuming_text(left: int, most: int) -> str | None:
    """How much of what a grid measures was measured before, if any of it was. left: of `most` points."""
    if not left:
        return "complete: every point that can be measured is in the table already"
    return f"going on: {most - left} of {most} points are there already" if left < most else None


def measured_text(points: int, seconds: float | None) -> str | None:
    """What a run measured and how fast, if anything."""
    if not points or seconds is None:
        return None
    return f"points measured: {points} in {seconds:.1f} s ({1000 * seconds / points:.1f} ms each)"


def row_shares(table: LatencyTable) -> dict[str, dict[str, float]]:
    """Share of each row in the GPU time of a kind of points, over all of the table: kind -> row -> share."""
    spent: dict[str, dict[str, float]] = {}
    for point, record in table.records.items():
        of_kind = spent.setdefault(point.kind, defaultdict(float))
        for name, row in record.rows.items():
            of_kind[name] += row.in_pass_ns
    return {
        kind: {name: value / total for name, value in of_kind.items()}
        for kind, of_kind in spent.items()
        if (total := sum(of_kind.values()))
    }


def noise(table: LatencyTable) -> float | None:
    """Median over points of the interquartile range of the pass over its median; None for an empty table."""
    passes = [record.whole_pass for record in table.records.values() if record.is_measured]
    spreads = [(p.q3_ns - p.q1_ns) / p.median_ns for p in passes if p.median_ns]
    return statistics.median(spreads) if spreads else None


def rows_text(table: LatencyTable) -> Iterator[str]:
    """What --verbose says of the rows: the share of each in the time of each kind of points."""
    shares = row_shares(table)
    yield "rows: share of the time of " + " and ".join(shares)
    for name in table.row_names():
        yield f"  {name:24}" + "".join(f"{of_kind.get(name, 0.0):8.1%}" for of_kind in shares.values())


def unnamed_text(table: LatencyTable) -> Iterator[str]:
    """Which passes spend much of their GPU time in `_other` rows, and in which kernels."""
    if table.meta.get("clock") != "gpu-kernel":  # on a CPU, Python between layers is in these rows
        return
    shares = {point: sum(_unnamed_ns(record).values()) / _rows_ns(record) for point, record in table.records.items()}
    over = {point: share for point, share in shares.items() if share > UNNAMED_LIMIT}
    if not over:
        return
    worst = max(over, key=over.__getitem__)
    rows = _unnamed_ns(table.records[worst])
    largest = max(rows, key=rows.__getitem__)
    kernels = "; ".join(name[:KERNEL_NAME_LENGTH] for name in table.records[worst].rows[largest].kernels[:3])
    yield (
        f"doubtful: in {len(over)} of {len(shares)} points over {UNNAMED_LIMIT:.0%} of the GPU time is in unnamed rows "
        f"({over[worst]:.1%} at {worst}, most of it {largest}: {kernels})"
    )


def _unnamed_ns(record: PointRecord) -> dict[str, float]:
    return {name: row.in_pass_ns for name, row in record.rows.items() if is_unnamed_row(name)}


def _rows_ns(record: PointRecord) -> float:
    return sum(row.in_pass_ns for row in record.rows.values()) or 1.0


def clocks_text(table: LatencyTable) -> Iterator[str]:
    """How many points the GPU ran at less than its highest clock, as a card at its power limit runs long prompts."""
    clocks = clocks_mhz(table)
    highest = max(clocks.values(), default=0.0)
    low = [clock for clock in clocks.values() if clock < (1 - LOW_CLOCK) * highest]
    if low:
        yield (
            f"clock: {len(low)} of {len(clocks)} points ran over {LOW_CLOCK:.0%} below {highest:.0f} MHz, the highest "
            f"of the table, the slowest at {min(low):.0f} MHz"
        )


def filled_text(table: LatencyTable) -> Iterator[str]:
    """How many points were interpolated, and how well that works where it can be checked."""
    filled = sum(not record.is_measured for record in table.records.values())
    if not filled:
        return
    yield f"filled: {filled} of {len(table.records)} points are interpolated between measured ones"
    points, known = table.points(), table.records
    rows, passes = leave_one_out(points, known), leave_one_out(points, known, whole_passes=True)
    if rows and passes:
        yield (
            f"  measured points interpolated from the others, twice as far apart: rows off by {rows.mean:.1%} on "
            f"average ({rows.p99:.1%} at the 99th percentile), whole passes by {passes.mean:.1%} ({passes.p99:.1%})"
        )


def measured_lines(table: LatencyTable, latest: str | None = None) -> Iterator[str]:
    """What is in the table. latest: what the latest run measured."""
    title = f"{table.model} on {table.hardware}: {len(table.records)} points, {len(table.row_names())} rows each"
    yield f"{title}; {latest}" if latest else title
    yield from filled_text(table)
    timed = Counter(record.timed_by for record in table.records.values())
    if timed:
        yield "timed by: " + ", ".join(f"{way} {count}" for way, count in timed.most_common())


def missing_lines(table: LatencyTable, laid_out: Plan) -> Iterator[str]:
    """Which of the points that were asked for are missing, by reason."""
    missing = missing_points(table.missing, laid_out)
    for reason, count in Counter(missing.values()).most_common():
        first = next(point for point, why in missing.items() if why == reason)
        yield f"missing: {count} of {len(laid_out.points)} points: {reason} (first: {first})"
    if laid_out.unrunnable:
        yield f"  they cannot be measured on this model; {largest_ranges(laid_out)} leaves them out"


def noise_lines(table: LatencyTable) -> Iterator[str]:
    """How noisy the passes and the clock were, and how much of the time has no row of its own."""
    spread = noise(table)
    if spread is not None:
        others = {
            kind: sum(share for name, share in of_kind.items() if is_unnamed_row(name))
            for kind, of_kind in row_shares(table).items()
        }
        shown = ", ".join(f"{share:.1%} of {kind}" for kind, share in others.items())
        yield f"noise: {spread:.2%} between quartiles of a pass (median point); unnamed rows (_other): {shown}"
    yield from clocks_text(table)


def doubt_lines(table: LatencyTable) -> Iterator[str]:
    """What makes numbers of the table doubtful."""
    if slow_rows := slow_path(table):
        rows = ", ".join(f"{row} ({why})" for row, why in slow_rows.items())
        yield f"slow path: {rows}: slower than a serving engine, which has kernels for them"
    yield from unnamed_text(table)
    if slow := slow_points(clocks_mhz(table)):
        yield f"doubtful: {len(slow)} of {len(table.records)} points ran at a low SM clock (first: {slow[0]})"
    notes = Counter(note for record in table.records.values() for note in record.notes)
    for note, count in notes.most_common():
        yield f"doubtful: {count} of {len(table.records)} points: {note}"


def largest_ranges(laid_out: Plan) -> str:
    """The options of the largest sweep that has all of its points."""
    lengths: dict[str, list[int]] = {name: [] for name in SERIES}
    for point in laid_out.left(()):
        if name := series_of(point):
            lengths[name].append(SERIES[name].length(point))
    return " ".join(f"--{name}-max {max(of_series)}" for name, of_series in lengths.items() if of_series)


def missing_points(missing: Mapping[SweepPoint, str], laid_out: Plan) -> dict[SweepPoint, str]:
    """The points that were asked for and are not in the table, with the reason."""
    return {point: missing[point] for point in laid_out.points if point in missing}
