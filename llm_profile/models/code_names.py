"""Which fields of a configuration the code of a model names: what it does not name changes no block.

A configuration object keeps every field of its config.json, also those that transformers knows nothing of.
"""

import inspect
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from llm_profile.models.model_errors import MODEL_CODE

SHARED = ("layer_types",)
"""Fields that transformers reads for models of any type: the cache of each block is made by them."""


def is_read(model: nn.Module, field: str) -> bool:
    """Whether the modules of a model may be made or run by this field: the files of their classes have its name."""
    return field in SHARED or _is_named(field, {type(module).__module__ for module in model.modules()})


def unread_lists(model: nn.Module, depth: int) -> list[str]:
    """Lists with an entry a block, not all alike, that neither the model's code nor its configuration's names."""
    config: Any = model.config
    text_config: Any = config.get_text_config(decoder=True)
    own = {ancestor.__module__ for ancestor in type(text_config).__mro__} - {PreTrainedConfig.__module__}
    return [
        field
        for field, value in sorted(vars(text_config).items())
        if not (field.startswith("_") or hasattr(PreTrainedConfig(), field))
        and isinstance(value, list | tuple)
        and len(value) == depth
        and any(entry != value[0] for entry in value)
        and not is_read(model, field)
        and not _is_named(field, own)
    ]


def _is_named(field: str, modules: Iterable[str]) -> bool:
    return any(field in _words(module) for module in modules if module.partition(".")[0] in MODEL_CODE)


@lru_cache(maxsize=256)
def _words(module: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", inspect.getsource(sys.modules[module])))
