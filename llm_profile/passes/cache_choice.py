"""Which cache the passes of a model use: the in-place one, or copies of the one that its own code makes."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn

from llm_profile.models.patches import modelling_functions
from llm_profile.models.transformers_names import COMMON_CACHES, cache_argument
from llm_profile.passes.cache import InPlaceCache, PastOfAPrompt
from llm_profile.passes.inputs import WHOLE_SEQUENCE

OWN_CACHE = re.compile(r"Cache$")
"""Classes of this name in a modelling file: its model takes a cache of that class and no other."""


def cache_for(model: nn.Module, capacity: int, prefill: Callable[[int], Any]) -> InPlaceCache | PastOfAPrompt:
    """The cache for passes of a model. capacity: most tokens, past and new, of any pass. prefill: of PastOfAPrompt."""
    config: Any = model.config
    own = modelling_functions(model, OWN_CACHE, own=True) or config.model_type in WHOLE_SEQUENCE
    if cache_argument(model) in COMMON_CACHES and not own:
        with suppress(NotImplementedError):  # it has nothing for these layers
            return InPlaceCache(config, capacity)
    return PastOfAPrompt(prefill)
