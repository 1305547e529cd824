"""From measured tables to a table of a card that nobody has measured. Imports no torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from llm_profile import __version__
from llm_profile.gpus import GpuFigures
from llm_profile.measurement import Measurement
from llm_profile.points import SweepPoint
from llm_profile.prediction.base import base_ns, floor_ns, small_kernels_ns
from llm_profile.prediction.card import Card
from llm_profile.prediction.correction import Correction, Floats, Lesson
from llm_profile.prediction.row_work import RowWork, row_work
from llm_profile.prediction.structure import Structure, structure_of
from llm_profile.prediction.training import TrainingTable
from llm_profile.records import INTERVAL_COVERS, PREDICTED, PointRecord, RowRecord
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Sweep
from llm_profile.work import Model

TIMED_BY = "prediction"
"""In place of how passes were run."""

KNOWN_SPREAD: dict[str, float] = {
    "product": 0.12,
    "experts": 0.12,
    "attention": 0.12,
    "decode": 0.12,
    "masked": 0.15,
    "router": 0.08,
    "memory": 0.10,
}
"""Half the width of a 90 % interval of log time by category, for a model that was measured on another card of the same
generation: only how its time changes from card to card is uncertain."""

OTHER_GENERATION: dict[str, float] = {
    "product": 0.25,
    "experts": 0.35,
    "attention": 0.35,
    "decode": 0.35,
    "masked": 0.50,
    "router": 0.40,
    "memory": 0.35,
}
"""The same for what another generation changes, added in squares. It is a judgement: no two cards of different
generations were measured. A large product may reach 0.70 to 1.0 of the rate, and other kernels may be chosen; kernels
that move values differ by the time of a launch, which is 1.0 to 2.2 us on cards that are in use."""

CARRIED: dict[str, float] = {"decode": 0.5, "router": 1.0, "memory": 1.0}
"""Share of the log of a correction that holds for another generation; of other categories nothing does. PyTorch's
elementwise kernels are the same code everywhere. Products are not: those of Hopper (nvjet) run on no other card, and so
do its grouped products of experts; tiles of attention are chosen for the card."""

SLOWED = ("router", "memory")
"""Categories whose correction holds for launches, L2 and cores on another generation, and not for its memory."""


@dataclass(frozen=True)
class Predicted:
    """Of one call of each row. Each array has shape [works], in nanoseconds. low, high: ends of a 90 % interval."""

    latency_ns: Floats
    low_ns: Floats
    high_ns: Floats


class Predictor:
    """What some tables teach of cards and models that are not among them."""

    def __init__(self, tables: Sequence[TrainingTable], calibrate: bool = True) -> None:
        """Raises ValueError for no tables. calibrate: False where only latencies are wanted, not intervals."""
        self.tables = tables
        lessons = [
            Lesson(sample.model, sample.work, table.card, sample.latency_ns)
            for table in tables
            for sample in table.samples()
        ]
        self._correction = Correction(lessons, calibrate)
        self._generations = {table.card.shares.generation for table in tables}

    def predict(self, works: Sequence[RowWork], card: Card, model: str) -> Predicted:
        """How long works of a model take on a card."""
        distinct = list(dict.fromkeys(works))
        middle = self._correction.middle(distinct)
        known = card.shares.generation in self._generations
        floors = np.array([floor_ns(work, card) for work in distinct])
        times = [_corrected_ns(*of_work, card, known) for of_work in zip(distinct, middle.tolist(), strict=True)]
        latency = np.maximum(times, floors)
        below, above = self._widths(distinct, known, model)
        low, high = np.maximum(latency * np.exp(-below), floors), latency * np.exp(above)
        place = {work: number for number, work in enumerate(distinct)}
        order = [place[work] for work in works]
        return Predicted(latency[order], low[order], high[order])

    def _widths(self, works: Sequence[RowWork], known_generation: bool, model: str) -> tuple[Floats, Floats]:
        below, above = self._correction.interval(works)
        known_model = model in self._correction.models
        spread = np.array([KNOWN_SPREAD[work.category] for work in works])
        if known_model:
            below, above = spread, spread
        if known_generation:
            return below, above
        other = np.array([OTHER_GENERATION[work.category] for work in works])
        return np.hypot(below, other), np.hypot(above, other)


def _corrected_ns(work: RowWork, factor: float, card: Card, known_generation: bool) -> float:
    """The base times what was learned. Falls where a figure of the card grows: what was learned sees none of them."""
    base = base_ns(work, card)
    if known_generation:
        return base * math.exp(factor)
    carried = math.exp(CARRIED.get(work.category, 0.0) * factor)
    return small_kernels_ns(work, card, carried) if work.category in SLOWED else base * carried


@dataclass(frozen=True)
class PredictionTarget:
    """What is to be predicted: a model by its name and configuration, on a card by its name and figures."""

    hardware: str
    gpu: GpuFigures
    model: str
    config: Mapping[str, Any]
    source: Mapping[str, Any]
    dtype: str


def predict_table(target: PredictionTarget, sweep: Sweep, predictor: Predictor) -> LatencyTable:
    """A table of all points of a sweep. Raises UsageError and NoWork for what cannot be predicted."""
    card, model = Card.of(target.gpu, target.dtype), Model.of(target.config, target.dtype)
    structure = structure_of(target.model, target.config, predictor.tables)
    points = sweep.points()
    keys, works = [], []
    for point in points:
        for row, launches in structure.launches(point).items():
            keys.append((point, row))
            works.append(row_work(model, row, point, launches))
    predicted = predictor.predict(works, card, target.model)
    table = LatencyTable(target.hardware, target.model, _meta(target, sweep, predictor, structure, len(points)))
    times = zip(*(array.tolist() for array in vars(predicted).values()), strict=True)
    rows: dict[SweepPoint, dict[str, RowRecord]] = {}
    for (point, row), work, of_row in zip(keys, works, times, strict=True):
        rows.setdefault(point, {})[row] = RowRecord(_measurement(*of_row), 1, work.launches, ())
    for point, of_point in rows.items():
        table.records[point] = _record(of_point)
    return table


def _measurement(latency_ns: float, low_ns: float, high_ns: float) -> Measurement:
    interval_ns = float(math.floor(low_ns)), float(math.ceil(high_ns))
    return Measurement(0, float(round(latency_ns)), *[math.nan] * 5, interval_ns=interval_ns)


def _record(rows: dict[str, RowRecord]) -> PointRecord:
    """The pass is the sum of its rows, and so are the ends of its interval: rows may be wrong together."""
    intervals = [row.measurement.interval_ns for row in rows.values() if row.measurement.interval_ns]
    low, high = (sum(ends) for ends in zip(*intervals, strict=True))
    whole = _measurement(sum(row.in_pass_ns for row in rows.values()), low, high)
    return PointRecord(rows, whole, TIMED_BY, None, 0.0, (), 0, PREDICTED)


def _meta(
    target: PredictionTarget, sweep: Sweep, predictor: Predictor, structure: Structure, points: int
) -> dict[str, Any]:
    of_source = structure.source.table
    kept = ("attn_implementation", "sdpa_backend", "experts_implementation", "routing", "cache", "weights", "torch")
    conditions = {name: of_source.conditions.get(name) for name in (*kept, "transformers")}
    conditions |= {"gpu": None, "dtype": target.dtype, "num_layers": len(structure.kinds)}
    run = {
        "index": 0,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "llm_profile": __version__,
        "sweep": sweep.record(),
        "points": points,
    }
    return {
        "origin": "predicted",
        "clock": "gpu-kernel",
        "conditions": conditions,
        "kinds": list(structure.kinds),
        "block_rows": dict(of_source.meta.get("block_rows", {})),
        "runs": [run],
        "source": dict(target.source),
        "config": dict(target.config),
        "prediction": _provenance(target, predictor, structure),
    }


def _provenance(target: PredictionTarget, predictor: Predictor, structure: Structure) -> dict[str, Any]:
    """What a prediction rests on."""
    gpu, card = target.gpu, Card.of(target.gpu, target.dtype)
    generations = sorted({table.card.shares.generation for table in predictor.tables})
    return {
        "gpu": {name: value for name, value in vars(gpu).items() if name != "flops_per_sec"}
        | {"flops_per_sec": dict(gpu.flops_per_sec)},
        "generation": card.shares.generation,
        "generation_was_measured": card.shares.generation in generations,
        "model_was_measured": target.model in {table.name for table in predictor.tables},
        "rows_of": named(structure.source),
        "from": sorted({named(table) for table in predictor.tables}),
        "interval": INTERVAL_COVERS,
    }


def named(table: TrainingTable) -> str:
    """A table in words."""
    return f"{table.table.model} on {table.table.hardware}"


def usable(tables: Iterable[TrainingTable], dtype: str) -> list[TrainingTable]:
    """Those of a dtype: nothing is learned from another."""
    return [table for table in tables if table.dtype == dtype]
