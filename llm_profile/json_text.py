"""Reading JSON that may be broken or hostile. Imports no torch."""

import json
import re
from typing import Any

SURROGATES = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")
"""What a text with half a surrogate pair has: the half itself, or its escape. Whole pairs have it, too."""


def parse_json(text: str | bytes, constants: bool = True) -> Any:
    """The value that a JSON text holds. Raises ValueError for text that is not JSON or is nested too deep to be read.

    constants: accept NaN and Infinity, which the JSON standard lacks but many config.json files contain. Half a
    surrogate pair, which no file can be written with, becomes a question mark.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        value = json.loads(text, parse_constant=float if constants else _no_number)
        return _writable(value) if SURROGATES.search(text) else value
    except RecursionError:
        raise ValueError("lists or objects are nested too deep") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _writable(value: Any) -> Any:
    """A value of JSON without half surrogate pairs."""
    if isinstance(value, dict):
        return {_writable(name): _writable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_writable(inner) for inner in value]
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def nesting(value: Any) -> int:
    """The greatest number of lists and objects that are nested one inside the other in a value."""
    depth, level = 0, [value]
    while level := [outer for outer in level if isinstance(outer, dict | list)]:
        depth += 1
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return depth
