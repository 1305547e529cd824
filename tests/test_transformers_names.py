"""The names in transformers that this project relies on exist in the installed release, for every type of model."""

import re
from typing import Any

import pytest
import transformers
from torch import nn
from transformers import PreTrainedConfig, cache_utils, masking_utils
from transformers.modeling_utils import AttentionInterface
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llm_profile.errors import UsageError
from llm_profile.models.building import UNSUPPORTED
from llm_profile.models.transformers_names import (
    COMMON_CACHES,
    OWN_CACHES,
    TRACING_TEST,
    annotated_caches,
    cache_argument,
    takes,
)
from llm_profile.passes.cache_layers import IN_PLACE
from tests.shrunken import TYPES

CACHE_FREE = re.compile("no cache|keys and values")
"""Matches the reasons in UNSUPPORTED of types that have no cache, or only that of another model."""


@pytest.mark.parametrize("model_type", [name for name in TYPES if not CACHE_FREE.search(UNSUPPORTED.get(name, ""))])
def test_the_cache_of_every_type_has_a_known_name(model_type: str) -> None:
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    unknown = set(annotated_caches(model_class)) - set(COMMON_CACHES)
    assert not unknown, f"{model_class.__name__} takes its cache as {unknown}: add the name to COMMON_CACHES"
    known: list[str] = [name for name in COMMON_CACHES + OWN_CACHES if takes(model_class, name)]  # type: ignore[arg-type]
    assert known, f"{model_class.__name__} takes no cache by a name of COMMON_CACHES or OWN_CACHES"


class Renamed(nn.Module):
    def forward(self, input_ids: Any, memory: cache_utils.DynamicCache | None = None) -> None: ...


class Stateless(nn.Module):
    def forward(self, input_ids: Any, use_cache: bool = False) -> None: ...


def test_an_unknown_name_is_told_from_no_cache() -> None:
    with pytest.raises(UsageError, match=r"Renamed of transformers .* not known here \(memory\)"):
        cache_argument(Renamed())
    with pytest.raises(UsageError, match="Stateless keeps no cache"):
        cache_argument(Stateless())


def test_names_outside_of_models_are_there() -> None:
    assert callable(vars(masking_utils)[TRACING_TEST])
    assert callable(AttentionInterface.get_interface)
    assert callable(PreTrainedConfig._decode_special_floats)


def test_every_layer_of_the_dynamic_cache_has_one_in_place() -> None:
    """Quantised and static layers are left out, since a dynamic cache that is made from a configuration has none."""
    dynamic = {
        value
        for name, value in vars(cache_utils).items()
        if re.fullmatch(r"(Dynamic|LinearAttention)\w*Layer", name) and "Static" not in name
    }
    unknown = {each.__name__ for each in dynamic - set(IN_PLACE)}
    assert not unknown, f"transformers {transformers.__version__} has layers of a cache that IN_PLACE lacks"
