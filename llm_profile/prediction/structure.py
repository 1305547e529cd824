"""Which rows a model has, in which order and with how many kernels: what no formula tells. Imports no torch."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.prediction.training import TrainingTable
from llm_profile.sweep import SERIES, series_of
from llm_profile.work import text_fields


@dataclass(frozen=True)
class Structure:
    """The rows of a model, as a measured table of it, or of another model of its type, has them.

    kinds: of the model's blocks, as in metadata. measured: the points of that table by series, by length.
    """

    source: TrainingTable
    kinds: Sequence[Mapping[str, Any]]
    measured: Mapping[str, Sequence[SweepPoint]]

    def launches(self, point: SweepPoint) -> dict[str, int]:
        """Row -> kernels of one call, in the order of a pass: those of the next shorter length that was measured."""
        series = series_of(point)
        if series is None:
            raise ValueError(f"{point} is of no series")
        points = self.measured[series]
        length = SERIES[series].length
        place = bisect_right(points, length(point), key=length)
        rows = self.source.table.records[points[max(place - 1, 0)]].rows
        return {row: round(record.launches / record.blocks) for row, record in rows.items()}


def structure_of(name: str, config: Mapping[str, Any], tables: Sequence[TrainingTable]) -> Structure:
    """The structure of a model. name: what its tables are called. Raises UsageError where no table tells."""
    kind = text_fields(config).get("model_type")
    own = [table for table in tables if table.name == name]
    alike = [table for table in tables if text_fields(table.table.meta["config"]).get("model_type") == kind]
    found = own or alike
    if not found:
        types = sorted({str(text_fields(table.table.meta["config"]).get("model_type")) for table in tables})
        raise UsageError(
            f"--model {name}: no table tells which rows a model of type {kind} has; measure one on any card and "
            f"name it by --from (there are tables of types {', '.join(types)})"
        )
    source = max(found, key=lambda each: len(each.table.measured_points()))
    kinds = [dict(each, profiled=list(each.get("layers", ()))[:1]) for each in source.table.meta["kinds"]]
    if not own:
        depth = text_fields(config).get("num_hidden_layers")
        if len(kinds) > 1 or not isinstance(depth, int):
            raise UsageError(
                f"--model {name}: has blocks of several kinds, and no table of it tells how many of each; measure it "
                "on any card and name that table by --from"
            )
        kinds = [kinds[0] | {"count": depth, "layers": list(range(depth)), "profiled": [0]}]
    measured = {series: line.of(source.table.measured_points()) for series, line in SERIES.items()}
    return Structure(source, kinds, measured)
