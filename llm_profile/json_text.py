"""Reading JSON that may be broken or hostile. Imports no torch."""

import json
from typing import Any


def parse_json(text: str | bytes, constants: bool = True) -> Any:
    """The value that a JSON text holds. Raises ValueError for text that is not JSON or is nested too deep to be read.

    constants: accept NaN and Infinity, which the JSON standard lacks but many config.json files contain.
    """
    try:
        return json.loads(text, parse_constant=float if constants else _no_number)
    except RecursionError:
        raise ValueError("lists or objects are nested too deep") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def nesting(value: Any) -> int:
    """The greatest number of lists and objects that are nested one inside the other in a value."""
    depth, level = 0, [value]
    while level := [outer for outer in level if isinstance(outer, dict | list)]:
        depth += 1
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return depth
