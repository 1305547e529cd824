"""Finds functions in the modelling files of transformers by their names, and replaces them for a while."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

ROPE_FUNCTION = re.compile(r"^apply_(rotary|rope|multimodal_rotary)")
"""Names of module-level functions that apply rotary positions to queries and keys."""

MASK_FUNCTION = re.compile(r"^create_\w*mask\w*$")
"""Names of module-level functions that build attention masks."""

SCAN_FUNCTION = re.compile(
    r"(scan(_combined)?|linear_attention|delta_rule|delta_attention|state_update|mamba_inner_fn|conv1d_(fn|update))$"
)
"""Names of module-level functions that compute scans (a state is updated token by token) or short convolutions.

They do the work of a layer, whether a kernel runs or a reference implementation of many small operators.
"""

ANY_FUNCTION = re.compile("")
"""Every name."""


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While open, an attribute of a class, object or module has another value. owner: has it in its own `__dict__`."""
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def modelling_functions(
    model: nn.Module, pattern: re.Pattern[str], own: bool = False
) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Functions and classes whose name matches, in the files of transformers that define the classes of a model.

    Each with the module object that has it and its name there. own: leave out those that the files import.
    """
    files = {type(m).__module__ for m in model.modules() if type(m).__module__.startswith("transformers")}
    found = []
    for file in sorted(files):
        namespace = sys.modules[file]
        for name, value in sorted(vars(namespace).items()):
            if pattern.search(name) and callable(value) and (not own or value.__module__ == file):
                found.append((namespace, name, value))
    return found
