"""What the project finds in transformers by name, each with the names that its releases have given it.

Names change between releases: the cache of a model was `past_key_values` up to 5.23 and is `cache` since 5.24.
A model's own signature and code say which name it has. tests/test_transformers_names.py runs over every model type of
the installed release and fails where one of these names has gone, naming it.
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
"""Arguments, and fields of a model's output, for a cache of transformers' own class `Cache`. Newest first."""

OWN_CACHES = ("past_buckets_states", "state", "mems")
"""The same for tensors that a model arranges in its own way (Reformer, RWKV, XLNet)."""

CACHE_CLASS = re.compile(r"\b\w*Cache\b")
"""In the annotation of an argument: it takes a cache."""

ADDS_PAST = re.compile(r"position_ids = position_ids \+ (past_key_values_length|cache_length)\b")
"""In the code of a model: it adds the number of past tokens to the position numbers that it is given (Git)."""

TRACING_TEST = "is_tracing"
"""The function of `masking_utils` that asks whether a stream is being captured, and builds other masks if so."""


def takes(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def cache_argument(model: nn.Module) -> str:
    """What this model calls its cache, as an argument and in its output.

    Raises UsageError for a model without a cache, which cannot decode, and for one with a cache of an unknown name.
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
    """The arguments of a model's forward that are annotated with a class of caches."""
    parameters = inspect.signature(model_class.forward).parameters.values()
    return [each.name for each in parameters if CACHE_CLASS.search(str(each.annotation))]


def adds_past(model: nn.Module) -> bool:
    """Whether the model's code adds the number of past tokens to the position numbers that it is given."""
    module = inspect.getmodule(type(model))
    with suppress(OSError):  # no source to be read
        return module is not None and ADDS_PAST.search(inspect.getsource(module)) is not None
    return False


@contextmanager
def masks_as_in_eager() -> Iterator[None]:
    """Keep transformers from building other attention masks while a stream is captured than it does otherwise."""
    with patched(masking_utils, TRACING_TEST, lambda *_args, **_kwargs: False):
        yield
