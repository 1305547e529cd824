"""The end of a run: a summary that a person reads, or one JSON document for a program. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_profile.cli import summary
from llm_profile.cli.messages import Verbosity, notice, tell_json
from llm_profile.points import SweepPoint, record_of
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Plan
from llm_profile.validation.outcome import ValidationOutcome
from llm_profile.validation.report_text import accuracy_lines, noisy_text, over_tolerance_text

MOST_LINES = 25
"""Lines of a summary: what a screen shows at once."""

MOST_MISSING = 6
"""Lines of a summary on what is missing."""

FILE_LABELS = {
    "csv": "table",
    "scaled_csv": "scaled table",
    "host_csv": "host time of each step",
    "validation": "all pairs and steps",
    "report": "report",
}
"""Files that get a line of their own, in their order."""

BESIDE_CSV = ("rows", "meta")
"""Files that are named behind the table."""


@dataclass(frozen=True)
class Swept:
    """What a sweep did. measured: points of this run. seconds: that they took; None if nothing was measured."""

    laid_out: Plan
    measured: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Ending:
    """What a run has to say at its end, in the order in which it is said. files: by their names in the JSON document.

    advice: the last line, on what to do next.
    """

    measured: Sequence[str] = ()
    missing: Sequence[str] = ()
    outcome: ValidationOutcome | None = None
    noise: Sequence[str] = ()
    doubts: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    advice: str | None = None

    def lines(self, whole: bool = False) -> list[str]:
        """The summary, of at most MOST_LINES lines unless it is to be `whole`: doubts that do not fit are counted."""
        frame = self._noisy()
        missing = [*self.missing] if whole else cut(self.missing, MOST_MISSING)
        accuracy = () if self.outcome is None else accuracy_lines(self.outcome)
        before = [*frame, *self.measured, *missing, *accuracy, *self.noise]
        after = [*file_lines(self.files), *filter(None, [self.advice]), *frame]
        doubts = self._doubts()
        return [*before, *(doubts if whole else cut(doubts, MOST_LINES - len(before) - len(after))), *after]

    def warnings(self) -> list[str]:
        """What is said even if nothing else is."""
        return [*self.missing, *self._doubts(), *self._noisy()]

    def _noisy(self) -> list[str]:
        """What is said first and last of a noisy machine, as a list of one line or none."""
        if self.outcome is None or not self.outcome.noisy:
            return []
        return [noisy_text(self.outcome.noisy, self.outcome.noise_limit)]

    def _doubts(self) -> list[str]:
        if self.outcome is None:
            return [*self.doubts]
        failed = filter(None, [over_tolerance_text(self.outcome)])
        return [*failed, *self.doubts, *(f"warning: {text}" for text in self.outcome.warnings)]


def cut(lines: Sequence[str], most: int) -> list[str]:
    """At most so many of the lines, at least one; where some are left out the last one counts them."""
    kept = max(1, most) - 1
    return [*lines] if len(lines) <= most else [*lines[:kept], f"{len(lines) - kept} more: --verbose prints them"]


def file_lines(files: Mapping[str, Path]) -> list[str]:
    """A line for each file with a label; those beside the table are named with it."""
    lines = [f"{label}: {files[name]}" for name, label in FILE_LABELS.items() if name in files]
    beside = ", ".join(files[name].name for name in BESIDE_CSV if name in files)
    return [f"{lines[0]}, {beside}", *lines[1:]] if lines and beside else lines


def sweep_ending(table: LatencyTable, paths: TablePaths, swept: Swept) -> Ending:
    """What is said of a table that was measured."""
    return Ending(
        measured=tuple(summary.measured_lines(table, summary.measured_text(swept.measured, swept.seconds))),
        missing=tuple(summary.missing_lines(table, swept.laid_out)),
        noise=tuple(summary.noise_lines(table)),
        doubts=tuple(summary.doubt_lines(table)),
        files={"csv": paths.csv, "rows": paths.rows, "meta": paths.meta},
    )


def tell_ending(ending: Ending, verbosity: Verbosity) -> None:
    """Print a summary, or where that is not wanted what is doubtful."""
    if verbosity.quiet:
        for text in ending.warnings():
            notice(text)
    verbosity.summarise(ending.lines(whole=verbosity.verbose))


def tell_document(ending: Ending, exit_code: int, figures: Mapping[str, Any], verbosity: Verbosity) -> None:
    """Print the JSON document, if it is asked for."""
    if verbosity.json:
        outcome = ending.outcome
        tell_json(
            {
                "exit_code": exit_code,
                **figures,
                "validation": None if outcome is None else _without_warnings(outcome),
                "warnings": ending.warnings(),
                "files": {name: str(path) for name, path in ending.files.items()},
            }
        )


def sweep_figures(table: LatencyTable, swept: Swept, missing: Mapping[SweepPoint, str]) -> dict[str, Any]:
    """The figures of a sweep in the JSON document."""
    return {
        "hardware": table.hardware,
        "model": table.model,
        "points": len(table.records),
        "points_measured": swept.measured,
        "seconds": swept.seconds,
        "failed": [{**record_of(point), "reason": reason} for point, reason in missing.items()],
        "noise": summary.noise(table),
    }


def _without_warnings(outcome: ValidationOutcome) -> dict[str, Any]:
    return {name: value for name, value in asdict(outcome).items() if name != "warnings"}
