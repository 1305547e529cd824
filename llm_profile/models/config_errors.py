"""Names the field of a config.json that an error of transformers is about, and the values that the field may have.

transformers looks values up in tables. Where a value is not there, its KeyError contains only the value.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llm_profile.errors import one_line

ALLOWED: dict[str, Iterable[str]] = {
    # regular expression for the end of a field's path -> the values that transformers accepts
    r"(^|[._])(act|activation|act_fn|act_func|activation_fn|activation_function)": ACT2FN,
    r"rope_[a-z.]*type": ("default", *ROPE_INIT_FUNCTIONS),
}

WEIGHT_DTYPES = ("float16", "bfloat16", "float32")

OTHER_NAMES = {"rope_parameters": "rope_parameters (rope_scaling)"}
"""Field that transformers renames while it reads a config.json -> how messages call it, with the older name."""


def explained(error: BaseException, fields: Mapping[str, Any]) -> str:
    """One line about an error: the field with the value that was not found, the value, and what it may be.

    fields: of the configuration. For any other error, its text.
    """
    missed = _missed(error)
    path = next((path for path, value in _values(fields) if missed is not None and value == missed), None)
    if path is None:
        text = one_line(error)
        return text if " " in text else f"{type(error).__name__}: {text}"
    allowed = next((values for end, values in ALLOWED.items() if re.search(f"{end}$", path)), ())
    for name, with_older in OTHER_NAMES.items():
        path = re.sub(rf"\b{name}\b", with_older, path)
    choice = f"; it may be {', '.join(dict.fromkeys(allowed))}" if allowed else ""
    return f"its {path} is {missed!r}, which transformers does not know{choice}"


def dtype_problem(fields: Mapping[str, Any]) -> str | None:
    """What is wrong with the dtype in a config.json, as the end of a message; None if nothing is."""
    for path, value in _values(
        {name: fields[name] for name in ("dtype", "torch_dtype", "text_config") if name in fields}
    ):
        if re.fullmatch(r"(text_config\.)?(torch_)?dtype", path) and isinstance(value, str):
            dtype = getattr(torch, value, None)
            if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
                return f"its {path} is {value!r}, which is no type of weights; it may be {', '.join(WEIGHT_DTYPES)}"
    return None


def _missed(error: BaseException) -> Any:
    """The value that a lookup did not find; None for other errors."""
    return error.args[0] if isinstance(error, KeyError) and error.args else None


def _values(fields: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of every field that is no list or object, nested ones included: `("rope_scaling.factor", 8.0)`."""
    if isinstance(fields, Mapping):
        for name, value in fields.items():
            yield from _values(value, f"{path}.{name}" if path else str(name))
    elif isinstance(fields, list | tuple):
        for number, value in enumerate(fields):
            yield from _values(value, f"{path}[{number}]")
    else:
        yield path, fields
