"""What a run says to the person who started it: notices, the plan, progress, the end. Imports no torch."""

import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from llm_profile.measurement import PointFailure
from llm_profile.paths import TablePaths
from llm_profile.profiler import Progress, slow_points
from llm_profile.sweep import Plan, SweepPoint
from llm_profile.table import LatencyTable

VERBOSE_EVERY = 100
"""Points between two lines of progress that --verbose prints where there is no terminal to draw on."""


def notice(text: str | None) -> None:
    """One line for the user on stderr, if there is anything to say."""
    if text:
        print(text, file=sys.stderr)


@contextmanager
def progress(total: int, verbose: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar with points done, rate, time left and current length; where stderr is no terminal, quiet or a line at times."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:

        def say(seen: Progress) -> None:
            if verbose and (seen.done % VERBOSE_EVERY == 0 or seen.done == seen.total):
                notice(f"{seen.done} of {seen.total} points, now at {seen.result.point}")

        yield say
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[at]}"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("points", total=total, rate="", at="")

        def draw(seen: Progress) -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:.1f} points/s" if speed else ""
            bar.update(task, completed=seen.done, rate=rate, at=str(seen.result.point))
            if isinstance(seen.result, PointFailure):
                console.print(f"{seen.result.point}: {seen.result.reason}")

        yield draw


def other_share(table: LatencyTable) -> dict[str, float]:
    """Share of GPU time in `_other` rows, by phase, over all points of the table."""
    other: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for point, record in table.records.items():
        for name, row in record.rows.items():
            passed = row.measurement.median_ns * row.blocks
            total[point.phase] += passed  # type: ignore[assignment]
            if name.endswith("_other"):
                other[point.phase] += passed  # type: ignore[assignment]
    return {phase: other[phase] / total[phase] for phase in total if total[phase]}


def noise(table: LatencyTable) -> float | None:
    """Median over points of the interquartile range of the pass over its median; None for an empty table."""
    passes = [record.whole_pass for record in table.records.values()]
    return statistics.median((p.q3_ns - p.q1_ns) / p.median_ns for p in passes if p.median_ns) if passes else None


def end_of_sweep(table: LatencyTable, paths: TablePaths, laid_out: Plan) -> list[str]:
    """The lines that close a sweep: rows, share of `_other` rows, noise, doubtful and missing points, files."""
    lines = [f"{table.model} on {table.hardware}: {len(table.records)} points, {len(table.row_names())} rows each"]
    shares = ", ".join(f"{share:.1%} of {phase}" for phase, share in other_share(table).items())
    spread = noise(table)
    if spread is not None:
        lines.append(f"unnamed rows (_other): {shares}; noise: {spread:.2%} between quartiles of a pass (median point)")
    timed = Counter(record.timed_by for record in table.records.values())
    lines.append("timed by: " + ", ".join(f"{way} {count}" for way, count in timed.most_common()))
    slow = slow_points({p: r.sm_clock_mhz for p, r in table.records.items() if r.sm_clock_mhz is not None})
    if slow:
        lines.append(f"doubtful: {len(slow)} points ran at a low SM clock (first: {slow[0]})")
    notes = Counter(note for record in table.records.values() for note in record.notes)
    lines += [f"doubtful: {count} points: {note}" for note, count in notes.most_common()]
    missing = missing_points(table.missing, laid_out)
    for reason, count in Counter(missing.values()).most_common():
        first = next(point for point, why in missing.items() if why == reason)
        lines.append(f"missing: {count} points: {reason} (first: {first})")
    lines.append(f"files: {paths.csv}, {paths.rows.name}, {paths.meta.name}")
    return lines


def missing_points(missing: Mapping[SweepPoint, str], laid_out: Plan) -> dict[SweepPoint, str]:
    """The points that were asked for and are not in the table, with the reason."""
    return {point: missing[point] for point in laid_out.points if point in missing}
