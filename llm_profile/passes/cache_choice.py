"""Which KV cache the passes of a model use: the in-place one, or copies of the one that its own code makes."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn

from llm_profile.models.patches import modelling_functions
from llm_profile.models.transformers_names import COMMON_CACHES, cache_argument
from llm_profile.passes.cache import CopiedCache, InPlaceCache
from llm_profile.passes.inputs import WHOLE_SEQUENCE

OWN_CACHE = re.compile(r"Cache$")
"""A modelling file that defines a class with such a name has a cache of its own: its model accepts no other cache."""


def cache_for(model: nn.Module, capacity: int, prefill: Callable[[int], Any]) -> InPlaceCache | CopiedCache:
    """The cache for the passes of a model.

    capacity: most tokens, past and new together, of any pass. prefill: as in CopiedCache.
    """
    config: Any = model.config
    own = modelling_functions(model, OWN_CACHE, own=True) or config.model_type in WHOLE_SEQUENCE
    if cache_argument(model) in COMMON_CACHES and not own:
        with suppress(NotImplementedError):  # there is no in-place form of some layer
            return InPlaceCache(config, capacity)
    return CopiedCache(prefill)
