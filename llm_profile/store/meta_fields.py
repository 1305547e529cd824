"""Which fields the metadata of a table must have, and of which types. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from llm_profile.errors import shown
from llm_profile.points import point_of_record

ORIGINS = ("measured", "example", "predicted")
"""Where a table's numbers come from; only measured ones are added to."""

TEXTS = ("hardware", "model", "origin", "clock")
LISTS_OF_OBJECTS = ("kinds", "runs", "missing")

OPTIONAL_OBJECTS = ("sha256", "config", "source", "block_rows", "scaling")
"""Some tables lack these."""

CHECKSUMS = ("csv", "rows")


def check_fields(meta: Mapping[str, Any]) -> None:
    """Raises ValueError, TypeError and KeyError, which name the field, where one is missing or of a wrong type."""
    for name in TEXTS:
        _expect(name, meta[name], str, "a text")
    if meta["origin"] not in ORIGINS:
        raise ValueError(f"origin is {shown(meta['origin'])}, and must be one of {', '.join(ORIGINS)}")
    for name in LISTS_OF_OBJECTS:
        _expect(name, meta[name], list, "a list")
        for entry in meta[name]:
            _expect(f"an entry of {name}", entry, dict, "an object")
    _expect("conditions", meta["conditions"], dict, "an object")
    for name in OPTIONAL_OBJECTS:
        _expect(name, meta.get(name, {}), dict, "an object")
    for name in CHECKSUMS:
        _expect(f"sha256.{name}", meta.get("sha256", {}).get(name, ""), str, "a text")
    _expect("config.model_type", meta.get("config", {}).get("model_type", ""), str, "a text")
    for kind in meta["kinds"]:
        _expect("kinds.name", kind["name"], str, "a text")
        _expect("kinds.count", kind.get("count", 1), int, "a whole number")
    for run in meta["runs"]:
        _expect("runs.index", run["index"], int, "a whole number")
    for entry in meta["missing"]:
        point_of_record(entry)  # raises
        _expect("missing.reason", entry["reason"], str, "a text")


def _expect(name: str, value: object, kind: type, words: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {shown(value)}, and must be {words}")
