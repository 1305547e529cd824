"""Under which different conditions two tables were measured. Imports no torch."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from llm_profile.report.facts import as_text
from llm_profile.store.conditions import config_fields
from llm_profile.store.table import LatencyTable
from llm_profile.timing.loop import clocks_mhz

IDENTITY_FIELDS = ("clock", "origin", "source", "scaling")
"""Of the metadata, beside hardware and model."""

RUN_FACTS = ("llm_profile", "python", "host", "cpu", "repeat", "precision", "throttle_reasons", "logits_to_keep")
"""What is recorded of each run and may be why times differ."""

MOST_CONFIG_FIELDS = 12
"""Fields of the models' configurations that are told; of other models, most differ."""

Difference = tuple[str, str, str]
"""Name, and the value in A and in B, as text."""

NOT_RECORDED = "-"


def differing(a: LatencyTable, b: LatencyTable) -> list[Difference]:
    """What differs: hardware and model, conditions, what is recorded of the runs, the models' configurations."""
    config = list(_differing(*(config_fields(table.meta.get("config") or {}) for table in (a, b))))
    more = len(config) - MOST_CONFIG_FIELDS
    return [
        *_differing(_identity(a), _identity(b)),
        *_differing(a.conditions, b.conditions),
        *_differing(_blocks(a), _blocks(b)),
        *_differing(_of_runs(a), _of_runs(b)),
        *config[:MOST_CONFIG_FIELDS],
        *([("config", f"{more} more fields differ", "")] if more > 0 else []),
    ]


def _identity(table: LatencyTable) -> dict[str, Any]:
    named = {"hardware": table.hardware, "model": table.model}
    return named | {name: table.meta.get(name) for name in IDENTITY_FIELDS}


def _blocks(table: LatencyTable) -> dict[str, Any]:
    return {f"blocks of kind {kind['name']}": kind["count"] for kind in table.meta["kinds"]}


def _of_runs(table: LatencyTable) -> dict[str, Any]:
    """Each fact with its values over all runs, and the median SM clock, to the nearest 5 MHz."""
    found: dict[str, Any] = {}
    for name in RUN_FACTS:
        values = {as_text(value): None for run in table.meta["runs"] if (value := run.get(name)) not in (None, [], {})}
        found[name] = ", ".join(values) or None
    clocks = clocks_mhz(table).values()
    found["SM clock, median (MHz)"] = 5 * round(statistics.median(clocks) / 5) if clocks else None
    return found


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name):
            yield name, _shown(a.get(name)), _shown(b.get(name))


def _shown(value: Any) -> str:
    return NOT_RECORDED if value is None else as_text(value)
