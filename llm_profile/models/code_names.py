"""Which fields of a configuration appear in the code of a model. A field that does not appear changes no block.

A configuration object keeps all fields of its config.json, even those that neither transformers nor the model uses.
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

READ_FOR_ALL_TYPES = ("layer_types",)
"""Fields that transformers itself reads, for models of any type: it chooses the cache of each block by them."""


def is_read(model: nn.Module, field: str) -> bool:
    """Whether the modules of a model may depend on this field: its name is in the files that define their classes."""
    return field in READ_FOR_ALL_TYPES or _is_named(field, {type(module).__module__ for module in model.modules()})


def unread_lists(model: nn.Module, depth: int) -> list[str]:
    """Names of lists of a configuration that have an entry per block, not all equal, but appear in no code.

    Neither in that of the model nor in that of its configuration's class. depth: number of blocks.
    """
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
    """All words in the source of an imported module."""
    return frozenset(re.findall(r"\w+", inspect.getsource(sys.modules[module])))
