#!/usr/bin/env python3
"""Judge predictions on what was measured: one model left out on its card, and one card left out.

A model that is left out is predicted from all others of the same card; a card that is left out from the tables of
another. Each row is compared at about 64 lengths of each phase, and whole steps of the full model: rows of the model
once, those of a block as often as it has blocks, and `lm_head` of a prompt for one token.

    python3 bench/predict.py --leave model
    python3 bench/predict.py --leave card --output bench/results/predict.json
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, wherever this is run from

import numpy as np

from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, UsageError
from llm_profile.prediction.predict import Predictor
from llm_profile.prediction.training import Sample, TrainingTable, read_any_table, tables_below, training_table
from llm_profile.store.storage import write_json
from llm_profile.validation.estimate import HEAD_ROW
from llm_profile.work import NoWork

REPOSITORY = Path(__file__).resolve().parents[1]
LENGTHS = 64
"""Lengths of each phase of a table that are judged."""

BANDS = (1, 16, 128, 512, 10**9)
"""Ends of the ranges of lengths that are printed."""


@dataclass(frozen=True)
class Judged:
    """A measured time and its prediction, in nanoseconds. group: what it is counted under."""

    what: str
    model: str
    category: str
    phase: str
    length: int
    measured_ns: float
    predicted_ns: float
    low_ns: float
    high_ns: float

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.predicted_ns / self.measured_ns - 1

    @property
    def covered(self) -> bool:
        """Whether the interval has the measured time."""
        return self.low_ns <= self.measured_ns <= self.high_ns


def judged(what: str, predictor: Predictor, table: TrainingTable) -> Iterator[Judged]:
    """Rows of a table, then its steps, as others predict them."""
    samples = table.samples(LENGTHS)
    made = predictor.predict([sample.work for sample in samples], table.card, table.name)
    rows = [
        Judged(what, table.name, s.work.category, s.phase, s.point.total_len, s.latency_ns, *map(float, times))
        for s, *times in zip(samples, made.latency_ns, made.low_ns, made.high_ns, strict=True)
    ]
    yield from rows
    yield from steps(samples, rows)


def steps(samples: Sequence[Sample], rows: Sequence[Judged]) -> Iterator[Judged]:
    """Whole steps of the full model; all rows of a step may be wrong together, so ends of intervals are sums, too."""
    heads = {(s.phase, s.row): r for s, r in zip(samples, rows, strict=True) if s.point.tokens == 1}
    of_steps = defaultdict(list)
    for sample, row in zip(samples, rows, strict=True):
        one = heads.get((sample.phase, sample.row), row) if sample.row == HEAD_ROW else row
        of_steps[sample.phase, sample.point].append((sample.weight, one))
    for (phase, point), parts in of_steps.items():
        fields = ("measured_ns", "predicted_ns", "low_ns", "high_ns")
        sums = {name: sum(weight * getattr(row, name) for weight, row in parts) for name in fields}
        yield replace(parts[0][1], category="step", phase=phase, length=point.total_len, **sums)


def leave_model(tables: Sequence[TrainingTable]) -> Iterator[Judged]:
    """Each model of each card, from the other models of that card."""
    for hardware in sorted({table.table.hardware for table in tables}):
        on_card = [table for table in tables if table.table.hardware == hardware]
        for model in sorted({table.name for table in on_card}):
            others = [table for table in on_card if table.name != model]
            if others:
                predictor = Predictor(others)
                for table in (table for table in on_card if table.name == model):
                    yield from judged(f"{hardware} without {model}", predictor, table)


def leave_card(tables: Sequence[TrainingTable]) -> Iterator[Judged]:
    """Each card, from the tables of all others."""
    for hardware in sorted({table.table.hardware for table in tables}):
        others = [table for table in tables if table.table.hardware != hardware]
        if others:
            predictor = Predictor(others)
            for table in (table for table in tables if table.table.hardware == hardware):
                yield from judged(f"{hardware} from other cards", predictor, table)


WAYS = {"model": leave_model, "card": leave_card}


def figures(found: Sequence[Judged]) -> dict[str, float]:
    """Mean absolute error, bias and coverage, as ratios."""
    errors = np.array([each.error for each in found])
    covered = float(np.mean([each.covered for each in found]))
    return {
        "n": len(found),
        "mean_error": round(float(np.abs(errors).mean()), 4),
        "bias": round(float(errors.mean()), 4),
        "p90_error": round(float(np.quantile(np.abs(errors), 0.9)), 4),
        "coverage": round(covered, 4),
    }


def band_of(length: int) -> str:
    """The range of lengths that a length is in."""
    low, high = next((a, b) for a, b in zip(BANDS, BANDS[1:], strict=False) if length < b)
    return f"{low}..{high - 1}" if high != BANDS[-1] else f"{low}.."


def summary(found: Sequence[Judged]) -> dict[str, dict[str, float]]:
    """Figures of rows and steps, of each category by phase and length, and of each model's steps."""
    groups = defaultdict(list)
    for each in found:
        kind = "steps" if each.category == "step" else "rows"
        groups[kind].append(each)
        groups[f"{kind} {each.phase}"].append(each)
        groups[f"{each.category} {each.phase}"].append(each)
        groups[f"{each.category} {each.phase} {band_of(each.length)}"].append(each)
        groups[f"{kind} {each.phase} of {each.model}"].append(each)
    return {name: figures(members) for name, members in groups.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Judge, print, and write JSON; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--leave", choices=tuple(WAYS), default="model", help="what is left out (default %(default)s)")
    parser.add_argument("--tables", type=Path, default=REPOSITORY, help="folder of the cards (default: the repository)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args(argv)
    tables = []
    for path in tables_below(arguments.tables):
        try:
            tables.append(training_table(read_any_table(path)))
        except (NoWork, UsageError) as error:
            print(f"left out: {path}: {error}", file=sys.stderr)
    found = list(WAYS[arguments.leave](tables))
    if not found:
        print("predict.py: there is no other card or model to predict from", file=sys.stderr)
        return EXIT_USAGE
    told = summary(found)
    for name, of_group in told.items():
        print(f"{name:48} " + " ".join(f"{key} {value:8.4g}" for key, value in of_group.items()))
    if arguments.output is not None:
        cards = sorted({table.table.hardware for table in tables})
        write_json(arguments.output, {"leave": arguments.leave, "cards": cards, "figures": told})
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
