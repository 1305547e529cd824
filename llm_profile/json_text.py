"""JSON as other programs wrote it. Imports no torch."""

import json
from typing import Any


def parse_json(text: str | bytes, constants: bool = True) -> Any:
    """The value that a JSON text holds. Raises ValueError for anything else, for brackets without end as well.

    constants: take NaN and Infinity, which are no JSON and stand in many a config.json.
    """
    try:
        return json.loads(text, parse_constant=float if constants else _no_number)
    except RecursionError:
        raise ValueError("lists or objects are nested too deep") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def nesting(value: Any) -> int:
    """How many lists and objects are one inside the other."""
    depth, level = 0, [value]
    while level := [outer for outer in level if isinstance(outer, dict | list)]:
        depth += 1
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return depth
