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

NOT_ITS_OWN = object()
"""Stands for the value of an attribute that is not in an object's own `__dict__`."""


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While open, an attribute of a class, object or module has another value.

    Raises KeyError if the owner does not have it in its own `__dict__`.
    """
    owner.__dict__[name]
    with overridden(owner, name, value):
        yield


@contextmanager
def overridden(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While open, an object has this value for an attribute, which it may have from its class alone."""
    before = owner.__dict__.get(name, NOT_ITS_OWN)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is NOT_ITS_OWN:
            delattr(owner, name)
        else:
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
