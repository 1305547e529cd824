"""What a page says of a table in words: its state, its noise, what is missing, its conditions. Imports no torch."""

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_profile.points import SweepPoint, canonical_order, point_of_record
from llm_profile.store.table import LatencyTable, slow_path
from llm_profile.timing.loop import clocks_mhz, slow_points
from llm_profile.validation.estimate import model_depth

LONGEST_VALUE = 300
"""Characters of a value of the metadata that are shown."""

FAKE, CPU = "fake", "cpu-wall"
"""Clocks of tables that are no GPU's."""

ORIGIN_NOTES = {
    "predicted": "Predicted: these latencies were not measured. They are computed from tables of other GPUs.",
    "example": "An example that comes with LLM-Profile: measured on the machine named below, not on yours.",
}

CLOCK_NOTES = {
    FAKE: "Made up: the device is fake, and its times only serve to try the tool.",
    CPU: "Wall times of a CPU: they vary with all else that runs there.",
}


@dataclass(frozen=True)
class Gap:
    """Points that are missing for one reason. text: which they are."""

    reason: str
    count: int
    text: str


@dataclass(frozen=True)
class Noise:
    """How steady the machine was. Ratios, and numbers of points.

    spread: (q3 - q1) / median of the pass at the median point; None where no point was measured. slow: points over
    CLOCK_DROP below the SM clock of like ones. measured_again: for such a clock; None where that was not recorded.
    notes: what makes points doubtful, with their number.
    """

    spread: float | None
    points: int
    slow: int
    highest_clock_mhz: float | None
    lowest_clock_mhz: float | None
    throttled_by: tuple[str, ...]
    measured_again: int | None
    notes: Mapping[str, int]


def is_unfinished(table: LatencyTable) -> bool:
    """Whether the sweep has not come to its end: the rows of blocks are told at the end."""
    return "block_rows" not in table.meta


def banners(table: LatencyTable, has_journal: bool) -> Iterator[str]:
    """What has to be known before any number is read. has_journal: whether a sweep is under way, or was stopped."""
    if is_unfinished(table) or has_journal:
        yield (
            f"Unfinished: {len(table.records)} points so far. The same run_profile.py command goes on with the sweep "
            "and writes this page anew."
        )
    yield from state_notes(table)


def state_notes(table: LatencyTable) -> Iterator[str]:
    """What a table's numbers are, where they are not measured times of a GPU, and what of its files was damaged."""
    scaling = table.meta.get("scaling")
    if isinstance(scaling, Mapping):
        yield (
            f"A scaled table, made of {as_text(scaling.get('source'))}: its latencies are estimates of the real model "
            f"({as_text(scaling.get('runtime'))}), not measured kernel times."
        )
    for notes, field in ((ORIGIN_NOTES, "origin"), (CLOCK_NOTES, "clock")):
        if note := notes.get(table.meta[field]):
            yield note
    for row, why in slow_path(table).items():
        yield f"Slow path: {row} ({as_text(why)}) runs slower than in a serving engine, which has kernels for it."
    yield from table.notices


def noise_of(table: LatencyTable) -> Noise:
    """Of the points that were measured."""
    measured = [record for record in table.records.values() if record.is_measured]
    passes = [record.whole_pass for record in measured if record.whole_pass.median_ns]
    clocks = clocks_mhz(table)
    reasons = (run.get("throttle_reasons") or () for run in table.meta["runs"])
    notes = Counter(note for record in measured for note in record.notes)
    return Noise(
        spread=statistics.median((p.q3_ns - p.q1_ns) / p.median_ns for p in passes) if passes else None,
        points=len(measured),
        slow=len(slow_points(clocks)),
        highest_clock_mhz=max(clocks.values(), default=None),
        lowest_clock_mhz=min(clocks.values(), default=None),
        throttled_by=tuple(dict.fromkeys(str(reason) for of_run in reasons for reason in of_run)),
        measured_again=len(measured_again(table))
        if all("measured_again" in run for run in table.meta["runs"])
        else None,
        notes=dict(notes.most_common()),
    )


def measured_again(table: LatencyTable) -> set[SweepPoint]:
    """The points that were measured more than once as their clock was low, as far as that was recorded."""
    return {point_of_record(entry) for run in table.meta["runs"] for entry in run.get("measured_again") or ()}


def gaps(table: LatencyTable) -> list[Gap]:
    """What is missing, by reason."""
    by_reason: dict[str, list[SweepPoint]] = {}
    for point in sorted(table.missing, key=canonical_order):
        by_reason.setdefault(table.missing[point], []).append(point)
    return [Gap(reason, len(points), _span(points)) for reason, points in by_reason.items()]


def _span(points: Sequence[SweepPoint]) -> str:
    return str(points[0]) if len(points) == 1 else f"{points[0]} to {points[-1]}"


def headline(table: LatencyTable) -> str:
    """What the table has, in a line."""
    runs = table.meta["runs"]
    measured = sum(record.is_measured for record in table.records.values())
    filled = len(table.records) - measured
    parts = [f"{len(table.records):,} points of {len(table.row_names())} rows"]
    if filled:
        parts.append(f"{filled:,} of them interpolated")
    depth, profiled = model_depth(table), sum(len(kind.get("profiled", ())) for kind in table.meta["kinds"])
    parts.append(f"{profiled} of {depth} blocks measured")
    if runs and (started := runs[-1].get("started")):
        parts.append(str(started)[:10])
    return ", ".join(parts)


def condition_lines(table: LatencyTable) -> Iterator[tuple[str, str]]:
    """Names and values: conditions, then what else is recorded of the model."""
    for name, value in table.conditions.items():
        if value is not None:
            yield name, as_text(value)
    yield "clock", as_text(table.meta["clock"])
    for kind in table.meta["kinds"]:
        yield f"blocks of kind {kind['name']}", f"{kind['count']}, of which {as_text(kind.get('profiled'))} profiled"
    for name, value in (table.meta.get("source") or {}).items():
        if value is not None:
            yield f"source: {name}", as_text(value)
    for name, value in (table.meta.get("config") or {}).items():
        yield f"config: {name}", as_text(value)


def run_lines(table: LatencyTable) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A title for each run, with the names and values that are recorded of it."""
    for run in table.meta["runs"]:
        title = f"Run {run['index']}, {as_text(run.get('started', 'at an unknown time'))}"
        yield title, [(name, as_text(value)) for name, value in run.items() if value not in (None, {}, [])]


def as_text(value: Any) -> str:
    """A value of the metadata as text."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
