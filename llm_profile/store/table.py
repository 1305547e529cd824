"""What is known: the latency of every row at every point, of one model on one hardware. Imports no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint, canonical_order
from llm_profile.records import FILLED, PointRecord
from llm_profile.store.conditions import with_defaults
from llm_profile.sweep import Sweep


@dataclass
class LatencyTable:
    """Everything known about one model on one hardware.

    meta: the metadata, less `rows`, `missing` and `sha256`, which are written from the table itself; keys that are
    unknown here are kept. records: of measured and filled points. missing: points that could not be measured, with the
    reason. notices: what of its files was damaged, a line each.
    """

    hardware: str
    model: str
    meta: dict[str, Any]
    records: dict[SweepPoint, PointRecord] = field(default_factory=dict)
    missing: dict[SweepPoint, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list, compare=False)

    def learn(self, point: SweepPoint, result: PointRecord | str) -> bool:
        """Take in a point's record, or the reason why it is missing; False if that is no news.

        A point that is known never becomes missing.
        """
        if isinstance(result, PointRecord):
            self.records[point] = result
            self.missing.pop(point, None)
            return True
        if point in self.records or self.missing.get(point) == result:
            return False
        self.missing[point] = result
        return True

    @property
    def conditions(self) -> dict[str, Any]:
        """What it was measured under, conditions that the metadata lacks by their default."""
        return with_defaults(self.meta["conditions"])

    def points(self) -> list[SweepPoint]:
        """The points that have records, in canonical order."""
        return sorted(self.records, key=canonical_order)

    def measured_points(self) -> set[SweepPoint]:
        """The points that no run measures again."""
        return {point for point, record in self.records.items() if record.is_measured}

    def own_points(self) -> set[SweepPoint]:
        """The points that are not interpolated between others: measured ones, or predicted ones."""
        return {point for point, record in self.records.items() if record.source != FILLED}

    def covers(self, points: Iterable[SweepPoint], grid: str = "full") -> bool:
        """Whether each of these points is here or was asked for by a run: measuring them adds none that is new.

        What earlier runs were to interpolate does not count where each point is to be measured (`grid` full).
        """
        known = self.measured_points() | self.missing.keys()
        sweeps = [sweep for run in self.meta["runs"] if (sweep := Sweep.of_record(run.get("sweep")))]
        asked = [sweep for sweep in sweeps if sweep.grid in ("full", grid)]
        return all(point in known or any(point in sweep for sweep in asked) for point in points)

    def measured_by(self, run: int) -> int:
        """How many points a run measured, by its index; filled ones are not among them."""
        return sum(record.is_measured and record.run == run for record in self.records.values())

    def row_names(self) -> list[str]:
        """Every row, in the order of a pass: that of first appearance over all points in canonical order."""
        return list(dict.fromkeys(name for point in self.points() for name in self.records[point].rows))

    def row_weights(self, blocks: Mapping[str, int] | None = None) -> dict[str, int]:
        """How often each row counts in a pass: the blocks of its kind, or 1 for a row of the model.

        blocks: kind -> how many there are, None for those of the full model. Raises KeyError for metadata that does not
        say which rows are of blocks, as that of an unfinished table.
        """
        if blocks is None:
            blocks = {kind["name"]: int(kind["count"]) for kind in self.meta["kinds"]}
        kind_of = self.meta["block_rows"]
        return {row: blocks[kind_of[row]] if row in kind_of else 1 for row in self.row_names()}

    @property
    def pays_one_logit(self) -> bool:
        """Whether a prompt of the full model pays `lm_head` for one token, as the model's code allows it."""
        return all(run.get("logits_to_keep") is not False for run in self.meta["runs"])

    def latency_ns(self, row: str, point: SweepPoint) -> int:
        """Latency of a row: the trimmed mean over passes, rounded (of one block, for rows of blocks).

        A row that launched nothing at a measured point took no time there: that is 0, and measured. Raises LookupError
        for what is not known.
        """
        rows = self._record(point).rows
        if row in rows:
            return rows[row].measurement.latency_ns
        if any(row in record.rows for record in self.records.values()):
            return 0
        raise LookupError(f"{self.model} on {self.hardware} has no row {row}; it has {', '.join(self.row_names())}")

    def pass_ns(self, point: SweepPoint) -> int:
        """Device time of the whole pass: the trimmed mean, rounded. Raises LookupError for what is not known."""
        return self._record(point).whole_pass.latency_ns

    def _record(self, point: SweepPoint) -> PointRecord:
        if point not in self.records:
            why = f"missing ({self.missing[point]})" if point in self.missing else "not in the table"
            raise LookupError(f"{self.model} on {self.hardware}: {point} is {why}")
        return self.records[point]


def refuse_predicted(table: LatencyTable, allowed: bool) -> None:
    """Raises UsageError for a predicted table, unless the user allowed it."""
    if table.meta["origin"] == "predicted" and not allowed:
        raise UsageError(f"{table.model} on {table.hardware}: predicted, not measured; --allow-predicted takes it")


def slow_path(table: LatencyTable) -> dict[str, str]:
    """Rows that ran slowly for want of a kernel in any run of a table, each with the reason."""
    return {row: why for run in table.meta["runs"] for row, why in (run.get("slow_path") or {}).items()}
