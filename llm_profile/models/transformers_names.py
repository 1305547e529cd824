"""Names in transformers that differ between its releases or between models, and functions that find the right one.

The argument for the cache, for example, was `past_key_values` up to 5.23 and is `cache` since 5.24. The signature or
the source of a model shows which name it uses. tests/test_transformers_names.py checks every model type of the
installed release, and its failures show which names are missing.
"""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import transformers
from torch import nn
from transformers import masking_utils

from llm_profile.errors import UsageError
from llm_profile.models.patches import patched

COMMON_CACHES = ("cache", "past_key_values", "cache_params")
"""Names of a model's argument, and of the field of its output, for a cache of class `Cache`. Newest first."""

OWN_CACHES = ("past_buckets_states", "state", "mems")
"""The same names for a cache that is not of class `Cache` but in a model's own format (Reformer, RWKV, XLNet)."""

CACHE_CLASS = re.compile(r"\b\w*Cache\b")
"""In the annotation of an argument: the argument takes a cache."""

ADDS_PAST = re.compile(r"position_ids = position_ids \+ (past_key_values_length|cache_length)\b")
"""In the source of a model: it adds the number of cached tokens to the position_ids that it is given (Git)."""

TRACING_TEST = "is_tracing"
"""Function of `masking_utils` that tells whether a CUDA stream is being captured; then other masks are built."""


def takes(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def cache_argument(model: nn.Module) -> str:
    """The name that this model has for its cache, as an argument and as a field of its output.

    Raises UsageError for a model without a cache, which has no decode steps, and for a name that is not known here.
    """
    known = [name for name in COMMON_CACHES + OWN_CACHES if takes(model, name)]
    if known:
        return known[0]
    name = type(model).__name__
    if renamed := annotated_caches(type(model)):
        raise UsageError(
            f"--model: {name} of transformers {transformers.__version__} takes its cache by a name that is not known "
            f"here ({', '.join(renamed)}); install an older transformers"
        )
    raise UsageError(f"--model: {name} keeps no cache between tokens, so it has no decode to measure")


def annotated_caches(model_class: type[nn.Module]) -> list[str]:
    """Arguments of a model's forward whose annotation names a cache class."""
    parameters = inspect.signature(model_class.forward).parameters.values()
    return [each.name for each in parameters if CACHE_CLASS.search(str(each.annotation))]


def adds_past(model: nn.Module) -> bool:
    """Whether the model's code adds the number of cached tokens to the position_ids that it is given."""
    module = inspect.getmodule(type(model))
    with suppress(OSError):  # the source is not available
        return module is not None and ADDS_PAST.search(inspect.getsource(module)) is not None
    return False


@contextmanager
def masks_as_in_eager() -> Iterator[None]:
    """While open, transformers builds the same attention masks during stream capture as in eager mode."""
    with patched(masking_utils, TRACING_TEST, lambda *_args, **_kwargs: False):
        yield
