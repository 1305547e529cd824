"""Which field of a config.json an error of transformers is about, and what it may be.

transformers looks values up in its tables, and says of one that is not there no more than the value.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llm_profile.errors import one_line

ALLOWED: dict[str, Iterable[str]] = {
    # end of a field's path -> the values that transformers has for it
    r"(^|[._])(act|activation|act_fn|act_func|activation_fn|activation_function)": ACT2FN,
    r"rope_[a-z.]*type": ("default", *ROPE_INIT_FUNCTIONS),
}

WEIGHT_DTYPES = ("float16", "bfloat16", "float32")

OTHER_NAMES = {"rope_parameters": "rope_parameters (rope_scaling)"}
"""Fields that transformers renames when it reads them, with the older name beside."""


def explained(error: BaseException, fields: Mapping[str, Any]) -> str:
    """What an error says of a configuration, in a line that names the field, its value and what it may be."""
    missed = _missed(error)
    path = next((path for path, value in _values(fields) if missed is not None and value == missed), None)
    if path is None:
        told = one_line(error)
        return told if " " in told else f"{type(error).__name__}: {told}"
    allowed = next((values for end, values in ALLOWED.items() if re.search(f"{end}$", path)), ())
    for name, with_older in OTHER_NAMES.items():
        path = re.sub(rf"\b{name}\b", with_older, path)
    choice = f"; it may be {', '.join(dict.fromkeys(allowed))}" if allowed else ""
    return f"its {path} is {missed!r}, which transformers does not know{choice}"


def dtype_problem(fields: Mapping[str, Any]) -> str | None:
    """What is wrong with the type of weights that a config.json names; None where nothing is."""
    for path, value in _values(
        {name: fields[name] for name in ("dtype", "torch_dtype", "text_config") if name in fields}
    ):
        if re.fullmatch(r"(text_config\.)?(torch_)?dtype", path) and isinstance(value, str):
            dtype = getattr(torch, value, None)
            if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
                return f"its {path} is {value!r}, which is no type of weights; it may be {', '.join(WEIGHT_DTYPES)}"
    return None


def _missed(error: BaseException) -> Any:
    """The value that was looked up and is not there."""
    return error.args[0] if isinstance(error, KeyError) and error.args else None


def _values(fields: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested fields with its path."""
    if isinstance(fields, Mapping):
        for name, value in fields.items():
            yield from _values(value, f"{path}.{name}" if path else str(name))
    elif isinstance(fields, list | tuple):
        for number, value in enumerate(fields):
            yield from _values(value, f"{path}[{number}]")
    else:
        yield path, fields
