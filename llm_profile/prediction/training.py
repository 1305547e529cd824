"""Measured tables as samples that a correction is learned from. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_profile.cards import short_device_name
from llm_profile.errors import UsageError
from llm_profile.gpus import GPUS
from llm_profile.json_text import parse_json
from llm_profile.points import SweepPoint
from llm_profile.prediction.card import KERNEL_SHARES, Card
from llm_profile.prediction.row_work import RowWork, row_work
from llm_profile.store.files import read_meta, read_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.rows_file import read_rows
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import SERIES
from llm_profile.work import Model, NoWork

KEPT_LENGTHS = 128
"""Lengths of a phase of a table that are learned from: all short ones, and as many of each factor of two beyond."""

NO_GPU = "its metadata names no GPU of llm_profile/gpus.py"


@dataclass(frozen=True)
class Sample:
    """A measured row at a point. weight: how often a full model has it in a step (blocks of its kind)."""

    model: str
    row: str
    phase: str
    point: SweepPoint
    work: RowWork
    latency_ns: float
    weight: int


@dataclass(frozen=True)
class TrainingTable:
    """A measured table whose card and work are known. dtype: of its weights."""

    table: LatencyTable
    card: Card
    model: Model
    dtype: str

    @property
    def name(self) -> str:
        """Of the model, one for all of its tables."""
        return self.table.model

    def samples(self, kept: int = KEPT_LENGTHS) -> list[Sample]:
        """Its measured rows at about `kept` lengths of each phase; rows of no time are left out."""
        counts = block_counts(self.table)
        found = []
        for phase, series in SERIES.items():
            points = series.of(self.table.measured_points())
            for point in spread(points, kept):
                for row, record in self.table.records[point].rows.items():
                    time = record.measurement.trimmed_mean_ns
                    work = row_work(self.model, row, point, round(record.launches / record.blocks))
                    if time > 0:
                        found.append(Sample(self.name, row, phase, point, work, time, counts.get(row, 1)))
        return found


def block_counts(table: LatencyTable) -> dict[str, int]:
    """Row -> blocks of its kind in the full model; rows of the model are left out."""
    counts = {kind["name"]: int(kind.get("count", 1)) for kind in table.meta["kinds"]}
    return {row: counts.get(kind, 1) for row, kind in table.meta.get("block_rows", {}).items()}


def spread(points: Sequence[SweepPoint], kept: int) -> list[SweepPoint]:
    """About `kept` of some points, evenly spaced on a logarithmic scale, both ends among them."""
    if len(points) <= kept:
        return list(points)
    last = len(points) - 1
    chosen = {round(last ** (number / (kept - 1))) for number in range(kept)} | {0, 1, 2, 3}
    return [points[place] for place in sorted(chosen) if place <= last]


def training_table(table: LatencyTable) -> TrainingTable:
    """Raises NoWork for what nothing can be learned from, with the reason."""
    if why := _not_measured(table.meta):
        raise NoWork(why)
    conditions = table.conditions
    if conditions["tp"] > 1 or conditions["kernels"] != "model":
        raise NoWork("it is of a shard, or of fused kernels")
    gpu = GPUS.get(short_device_name(str(conditions.get("gpu"))))
    if gpu is None or gpu.architecture not in KERNEL_SHARES:
        raise NoWork(NO_GPU)
    dtype = str(conditions.get("dtype"))
    if dtype not in gpu.flops_per_sec:
        raise NoWork(f"the card has no rate for {dtype}")
    return TrainingTable(table, Card.of(gpu, dtype), Model.of(table.meta.get("config") or {}, dtype), dtype)


def read_any_table(path: Path) -> LatencyTable:
    """A table by its CSV, or by its `.measured.parquet` and the metadata beside that. Raises UsageError."""
    if path.name.endswith(".csv"):
        return read_table(path)
    try:
        meta: dict[str, Any] = parse_json(_meta_of(path).read_bytes(), constants=False)
        return LatencyTable(meta["hardware"], meta["model"], meta, read_rows(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: no table ({error}); --from takes TABLE.csv or TABLE.measured.parquet") from error


def tables_below(folder: Path) -> list[Path]:
    """Measured tables in the folders of known cards: CSVs, and parquets, each with metadata of its name beside it."""
    found = []
    for card in (folder / name for name in GPUS):
        found += [path for path in sorted(card.glob("**/*.measured.parquet")) if _meta_of(path).exists()]
        for meta in sorted(card.glob("**/*.meta.json")):
            csv = meta.with_name(meta.name.removesuffix(".meta.json") + ".csv")
            if csv.exists() and _may_teach(csv):
                found.append(csv)
    return found


def _meta_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".parquet") + ".meta.json")


def _may_teach(csv: Path) -> bool:
    """Known from the metadata, so that no rows of other tables are read."""
    return _not_measured(read_meta(TablePaths.beside(csv)) or {}) is None


def _not_measured(meta: Mapping[str, Any]) -> str | None:
    """Why the times of a table are not measured times of kernels, None if they are."""
    if meta.get("clock") != "gpu-kernel" or meta.get("origin") == "predicted":
        return "its times are not measured kernel times"
    return "it is scaled" if meta.get("scaling") else None
