"""The model that a table was measured on, opened again: what of the table says how. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_profile.store.table import LatencyTable, slow_path


@dataclass(frozen=True)
class Profiled:
    """What another process has to know of a table to open its model.

    meta: the table's metadata. conditions: those that it was measured under. longest: most tokens that a pass of one
    sequence covers in it. allow_slow_path: whether layers may run slow Python in place of a kernel.
    """

    meta: Mapping[str, Any]
    conditions: Mapping[str, Any]
    longest: int
    allow_slow_path: bool

    @classmethod
    def of(cls, table: LatencyTable) -> "Profiled":
        """Of a table that was measured."""
        # a sweep of short prompts may not show loops over tokens that longer ones of the validation do
        allowed = bool(slow_path(table)) or any(run.get("allow_slow_path") for run in table.meta["runs"])
        return cls(
            table.meta, table.conditions, max(point.total_len for point in table.records if point.is_flat), allowed
        )
