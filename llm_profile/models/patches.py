"""Functions of modelling files, found by name, and the way to replace one for a while."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

ROPE_FUNCTION = re.compile(r"^apply_(rotary|rope|multimodal_rotary)")
"""Module-level functions of modelling files that rotate queries and keys."""

MASK_FUNCTION = re.compile(r"^create_\w*mask\w*$")
"""Module-level functions of modelling files that build attention masks."""

SCAN_FUNCTION = re.compile(
    r"(scan(_combined)?|linear_attention|delta_rule|delta_attention|state_update|mamba_inner_fn|conv1d_(fn|update))$"
)
"""Module-level functions of modelling files that go from token to token by a state, and what short convolutions call.

They are a layer's work, whether a kernel stands behind them or a reference implementation of many small operators.
"""

ANY_FUNCTION = re.compile("")
"""Every name."""


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace one attribute (or entry of a module's globals) and put back the very same object after."""
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def modelling_functions(
    model: nn.Module, pattern: re.Pattern[str], own: bool = False
) -> list[tuple[Any, str, Callable[..., Any]]]:
    """(module object, name, function) of functions and classes whose name matches, in every file that the model's
    classes come from. own: only those that are defined there."""
    files = {type(m).__module__ for m in model.modules() if type(m).__module__.startswith("transformers")}
    found = []
    for file in sorted(files):
        namespace = sys.modules[file]
        for name, value in sorted(vars(namespace).items()):
            if pattern.search(name) and callable(value) and (not own or value.__module__ == file):
                found.append((namespace, name, value))
    return found
