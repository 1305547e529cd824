"""How large a shard is, before it is loaded."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from llm_profile.models.blocks import keep_blocks
from llm_profile.models.building import ModelOptions, choose_blocks, make_config, meta_model
from llm_profile.models.model_errors import as_usage_error
from llm_profile.models.shards import cut_to_shard


class Parameters(NamedTuple):
    """Numbers of parameters of the kept blocks and of what is outside blocks: of the whole model, and of a shard."""

    whole: int
    shard: int


def shard_parameters(config: Mapping[str, Any], num_layers: int, tp: int) -> Parameters:
    """config: fields of a config.json. Raises UsageError for a degree that does not divide the model."""
    with as_usage_error(config.get("model_type"), "check its config.json"):
        model = meta_model(make_config(config))
        keep_blocks(model, choose_blocks(model, ModelOptions(num_layers, "meta")))
        whole = _count(model)
        cut_to_shard(model, tp)
        model.tie_weights()  # type: ignore[operator]
        return Parameters(whole, _count(model))


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
