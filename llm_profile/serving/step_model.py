"""A serving step of any composition, fitted to the compositions of a table. No torch.

A step's rows are of three sorts. Attention follows the composition (attention.py); the head and the samplers follow
the number of sequences, all others the tokens fed (counted_rows.py). What the table has is looked up, not modelled.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.serving.attention import AttentionModel
from llm_profile.serving.composition import KINDS_OF_STEPS, AttentionShape, AttentionWork, FloatArray, kind_of
from llm_profile.serving.counted_rows import CountedRow
from llm_profile.serving.held_out import FEWEST_OF_A_KIND, HeldOut, lines_of
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import DECODE, PREFILL, SHARED_POINT

ATTENTION, ATTENTION_OTHER = "attn", "attn_other"
"""Rows of a table: the attention function, and what the attention module launches beside it, such as cache writes."""

HEAD = "lm_head"
SAMPLER = "sampler_"
"""How rows of samplers begin. A step has at most one of them."""

FEWEST_COMPOSITIONS = 24
"""Measured compositions that a model needs: a few for each of its numbers."""

FEWEST_OF_A_WAY = 12
"""Fewest compositions of uniform decodes, or of others, that are fitted by themselves."""

FOLDS = 5
"""Parts of the compositions; each is estimated by a model of the others."""

ONE_SEQUENCE = 24
"""Prompts, and decode steps, of one sequence that the attention of compositions is fitted to, too."""


@dataclass(frozen=True)
class Estimated:
    """A step of the full model. low_ns, high_ns: 90 % of such steps lie between (split conformal)."""

    ns: float
    low_ns: float
    high_ns: float


@dataclass(frozen=True)
class _Rows:
    """Models of all rows. attention: by row, then by whether all sequences decode on one length."""

    shapes: Mapping[str, AttentionShape]
    attention: Mapping[str, Mapping[bool, AttentionModel]]
    counted: Mapping[str, CountedRow]
    per_sequence: frozenset[str]

    def times_ns(self, points: Sequence[SweepPoint], rows: Iterable[str] | None = None) -> dict[str, FloatArray]:
        """Times of rows (None: all) of one block, by row. Shape [points] each."""
        wanted = [*self.attention, *self.counted] if rows is None else [*rows]
        times = {row: self._attention_ns(row, points) for row in self.attention if row in wanted}
        for row in self.counted.keys() & {*wanted}:
            numbers = [point.batch if row in self.per_sequence else point.tokens for point in points]
            times[row] = np.array([self.counted[row].at(number) for number in numbers])
        return times

    def _attention_ns(self, row: str, points: Sequence[SweepPoint]) -> FloatArray:
        works = [AttentionWork.of(point, self.shapes[row]) for point in points]
        uniform = np.array([kind_of(point) == "decode" for point in points])
        times = np.zeros(len(points))
        for way in {*uniform.tolist()}:
            (places,) = np.nonzero(uniform == way)
            times[places] = self.attention[row][way].times_ns([works[place] for place in places])
        return times


@dataclass(frozen=True)
class StepModel:
    """Fitted to one table. compositions: the measured ones."""

    table: LatencyTable
    compositions: tuple[SweepPoint, ...]
    _rows: _Rows

    @classmethod
    def fit(cls, table: LatencyTable) -> "StepModel":
        """Raises UsageError for a table with fewer than FEWEST_COMPOSITIONS measured compositions, or unfinished."""
        points = compositions_of(table)
        if len(points) < FEWEST_COMPOSITIONS:
            raise UsageError(
                f"{table.model} on {table.hardware}: has {len(points)} compositions of serving steps, and a model of "
                f"steps needs {FEWEST_COMPOSITIONS}; measure them: run_profile.py --append --axes decode,chunk,mixed"
            )
        if "block_rows" not in table.meta:
            raise UsageError(f"the table of {table.model} is unfinished; let run_profile.py finish it first")
        return cls(table, points, _fit(table, points))

    def rows_ns(self, point: SweepPoint) -> dict[str, float]:
        """Time of each row in ns, of one block for rows of blocks; as measured where the table has the step.

        A prompt of one sequence pays `lm_head` for its last token, where the model's code can compute that alone.
        """
        record = self.table.records.get(point)
        if record is None:
            return {row: float(times[0]) for row, times in self._rows.times_ns([point]).items()}
        found = {row: float(kept.measurement.latency_ns) for row, kept in record.rows.items()}
        if point.kind == "prefill" and HEAD in found and HEAD in self._rows.per_sequence:
            found[HEAD] = float(self.table.latency_ns(HEAD, SHARED_POINT))
        return found

    def row_ns(self, row: str, point: SweepPoint) -> float:
        """One row of `rows_ns`, without the others. Rows that the table does not have take no time."""
        if point in self.table.records:
            return self.rows_ns(point).get(row, 0.0)
        found = self._rows.times_ns([point], [row])
        return float(found[row][0]) if row in found else 0.0

    def estimate_ns(self, point: SweepPoint, sampler: str | None = None) -> Estimated:
        """The step of the full model, all blocks. sampler: a row of one, which is paid too; None leaves it out.

        A step that the table has is as measured, without an interval.
        """
        weights = self._weights(sampler)
        time_ns = sum(weights.get(row, 0) * row_ns for row, row_ns in self.rows_ns(point).items())
        if point in self.table.records:
            return Estimated(time_ns, time_ns, time_ns)
        steps = self.held_out()
        of_kind = steps.get(kind_of(point))
        if of_kind is None or len(of_kind.log_ratios) < FEWEST_OF_A_KIND:
            of_kind = HeldOut(np.concatenate([each.log_ratios for each in steps.values()]))
        return Estimated(time_ns, time_ns * math.exp(-of_kind.reach), time_ns * math.exp(of_kind.reach))

    def held_out(self) -> Mapping[str, HeldOut]:
        """Errors of whole steps, by kind: compositions estimated by models of four fifths of the others."""
        return self._held_out[0]

    def held_out_attention(self) -> Mapping[str, HeldOut]:
        """The same of attention alone, over all blocks."""
        return self._held_out[1]

    def error_lines(self) -> list[str]:
        """Held-out errors for the terminal, a line for each kind of step."""
        return [*lines_of(self.held_out(), "step"), *lines_of(self.held_out_attention(), "attention")]

    def packing_lines(self) -> list[str]:
        """Rows whose packed passes take 2 % more or less than prompts of as many tokens, and at least 0.5 us."""
        lines = []
        for row, counted in self._rows.counted.items():
            ratio = float(np.median(counted.ratios)) if counted.ratios.size else 1.0
            most_ns = abs(ratio - 1) * float(np.median(counted.prompts.times_ns))
            if abs(ratio - 1) > 0.02 and most_ns >= 500:
                lines.append(f"{row}: packed passes take {ratio:.2f} of a prompt of as many tokens")
        return lines

    def reaches(self, point: SweepPoint) -> bool:
        """Whether a step lies within the compositions that were measured, number by number."""
        measured = self._reach
        return all(number <= most for number, most in zip(_numbers(point), measured, strict=True))

    @cached_property
    def _reach(self) -> tuple[int, ...]:
        known = [point for point in self.table.points() if self.table.records[point].is_measured]
        return tuple(map(max, zip(*map(_numbers, known), strict=True)))

    @cached_property
    def _held_out(self) -> tuple[dict[str, HeldOut], dict[str, HeldOut]]:
        weights = self._weights(None)
        logs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS_OF_STEPS}
        order = np.random.default_rng(0).permutation(len(self.compositions))
        for fold in np.array_split(order, FOLDS):
            held = [self.compositions[place] for place in fold]
            kept = [point for point in self.compositions if point not in {*held}]
            times = _fit(self.table, kept, self._rows).times_ns(held)
            for place, point in enumerate(held):
                record = self.table.records[point].rows
                estimated = {row: weights.get(row, 0) * float(found[place]) for row, found in times.items()}
                measured = {row: weights.get(row, 0) * kept.measurement.latency_ns for row, kept in record.items()}
                of_attention = [sum(part.get(row, 0) for row in self._rows.attention) for part in (estimated, measured)]
                logs[kind_of(point)].append(
                    (_log_ratio(sum(estimated.values()), sum(measured.values())), _log_ratio(*of_attention))
                )
        steps, attention = (
            {kind: HeldOut(np.array(pairs)[:, place]) for kind, pairs in logs.items() if pairs} for place in (0, 1)
        )
        return steps, attention

    def _weights(self, sampler: str | None) -> dict[str, int]:
        """How often the full model has each row."""
        weights = self.table.row_weights()
        return {row: times for row, times in weights.items() if not row.startswith(SAMPLER) or row == sampler}


def compositions_of(table: LatencyTable) -> tuple[SweepPoint, ...]:
    """The measured steps of several sequences, or of a chunk on a history, in canonical order."""
    return tuple(point for point in table.points() if not point.is_flat and table.records[point].is_measured)


def _log_ratio(estimated: float, measured: float) -> float:
    return float(np.log(estimated / measured)) if estimated > 0 and measured > 0 else 0.0


def _numbers(point: SweepPoint) -> tuple[int, ...]:
    """What a step is large in."""
    return point.batch, point.tokens, max(tokens for tokens, *_ in point.groups), point.total_len, point.history


def _fit(table: LatencyTable, points: Sequence[SweepPoint], start: _Rows | None = None) -> _Rows:
    """start: models of more compositions, whose kernels and shapes are taken."""
    names = table.row_names()
    per_sequence = frozenset(row for row in names if row.startswith(SAMPLER) or (row == HEAD and table.pays_one_logit))
    attention_rows = [row for row in names if row.rpartition(".")[2] == ATTENTION]
    shapes = {row: AttentionShape.of(table, row) for row in attention_rows}
    return _Rows(
        shapes=shapes,
        attention={
            row: _fit_attention(table, row, shapes[row], points, start.attention[row] if start else None)
            for row in attention_rows
        },
        counted={
            row: _fit_counted(table, row, points, row in per_sequence) for row in names if row not in attention_rows
        },
        per_sequence=per_sequence,
    )


def _fit_counted(table: LatencyTable, row: str, points: Sequence[SweepPoint], per_sequence: bool) -> CountedRow:
    """Samplers run in some passes only, so a row of theirs that is not in a record was not measured there."""

    def time_ns(point: SweepPoint) -> int:
        found = table.records[point].rows.get(row)
        return found.measurement.latency_ns if found else 0

    prompts = {point.input_len: time_ns(point) for point in PREFILL.of(table.records)}
    seen = [point for point in points if row in table.records[point].rows or not row.startswith(SAMPLER)]
    pairs = [(point.batch if per_sequence else point.tokens, time_ns(point)) for point in seen]
    return CountedRow.of(prompts, pairs)


def _fit_attention(
    table: LatencyTable,
    row: str,
    shape: AttentionShape,
    points: Sequence[SweepPoint],
    start: Mapping[bool, AttentionModel] | None,
) -> dict[bool, AttentionModel]:
    """By whether a step is uniform decodes: kernels for these are not those for sequences of different lengths."""
    seen = [point for point in points if row in table.records[point].rows]
    ways = {way: [point for point in seen if (kind_of(point) == "decode") == way] for way in (True, False)}
    models = {}
    for way, of_way in ways.items():
        taken = of_way if len(of_way) >= FEWEST_OF_A_WAY else seen
        taken = [*taken, *_one_sequence(table, row, taken, uniform=way)]
        works = [AttentionWork.of(point, shape) for point in taken]
        times = np.array([table.latency_ns(row, point) for point in taken], dtype=np.float64)
        models[way] = AttentionModel.fit(works, np.maximum(times, 1.0), start[way] if start else None)
    return models


def _one_sequence(table: LatencyTable, row: str, points: Sequence[SweepPoint], uniform: bool) -> Iterable[SweepPoint]:
    """Steps of one sequence that ran a kernel of these compositions, spread over their lengths by logarithm."""
    kernels = {table.records[point].rows[row].kernels for point in points}
    series = DECODE if uniform else PREFILL
    flat = [point for point in series.of(table.records) if point != SHARED_POINT and table.records[point].is_measured]
    alike = [point for point in flat if (found := table.records[point].rows.get(row)) and found.kernels in kernels]
    if not alike:
        return []
    places = np.unique(np.geomspace(1, len(alike), ONE_SEQUENCE).round().astype(int) - 1)
    return [alike[place] for place in places]
