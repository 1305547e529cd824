"""Under which conditions a table was measured, and whether two tables, or a table and a run, share them. No torch."""

import json
from collections.abc import Mapping
from typing import Any

CONDITION_DEFAULTS: dict[str, Any] = {
    "kernels": "model",
    "missing_kernels": None,
    "quantisation": None,
    "remote_code": None,
    "timer": "torch-profiler",
    "tp": 1,
}
"""What a table was measured under where it lacks a condition; None: the condition did not apply.

A condition that is added to this program gets a line here: what all tables before it were measured under. Then these
tables can be resumed and validated as before.
"""

IDENTITY = ("row_schema", "hardware", "model", "origin", "clock", "kinds", "scaling")
"""Fields of the metadata that must not differ between runs that share a table, as its conditions and the model's
configuration must not."""

NOT_COMPUTED = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""Fields of a configuration that say nothing of what a model computes, or that stand among the conditions."""

FIELDS_SHOWN = 4
"""Most differing fields of a configuration that an error names."""

NO_DEFAULTS: Mapping[str, Any] = {}


def with_defaults(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """All conditions of a table, those that it lacks by their default."""
    return CONDITION_DEFAULTS | dict(conditions)


def differences(known: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What keeps two metadata from sharing a table: a text per field that differs, with both values."""
    old_identity, new_identity = ({name: meta.get(name) for name in IDENTITY} for meta in (known, wanted))
    texts = _differing(old_identity, new_identity)
    texts += _differing(known["conditions"], wanted["conditions"], CONDITION_DEFAULTS)
    if "config" in known and "config" in wanted:
        of_config = _differing(config_fields(known["config"]), config_fields(wanted["config"]))
        texts += of_config[:FIELDS_SHOWN]
        if more := len(of_config[FIELDS_SHOWN:]):
            texts.append(f"{more} more fields of its config.json differ")
    return texts


def differing_conditions(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of the conditions `now` differs in those of a table, `known`; others of a table are not looked at."""
    return _differing({name: value for name, value in known.items() if name in now}, now, CONDITION_DEFAULTS)


def _differing(old: dict[str, Any], new: dict[str, Any], defaults: Mapping[str, Any] = NO_DEFAULTS) -> list[str]:
    def value(name: str, values: dict[str, Any]) -> Any:
        return values[name] if name in values else defaults.get(name, NO_DEFAULTS)

    def shown(name: str, values: dict[str, Any]) -> str:
        told = values.get(name, defaults.get(name))
        return "not recorded" if told is None and name not in values else json.dumps(told)[:200]

    return [
        f"{name} is {shown(name, old)} there and {shown(name, new)} now"
        for name in dict.fromkeys([*old, *new])
        if value(name, old) != value(name, new)
    ]


def config_fields(config: Mapping[str, Any], path: str = "config.") -> dict[str, Any]:
    """What a configuration and those in it say of a model, each field by its path."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= config_fields(value, f"{path}{name}.")
        elif name not in NOT_COMPUTED:
            found[path + name] = value
    return found
