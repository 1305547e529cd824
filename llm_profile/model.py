"""The model with few blocks: its configuration cut to depth, its weights real or random."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm_profile.errors import UsageError

DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}

WEIGHT_STD = 0.02
"""Spread of random weights: the initializer_range that most configurations carry."""


@dataclass(frozen=True)
class ModelOptions:
    """How a model is built. num_layers: decoder blocks kept. dtype, attn_implementation, experts_implementation:
    `auto` takes what the configuration and transformers choose. seed: of random weights and inputs."""

    num_layers: int
    device: str
    dtype: str = "auto"
    attn_implementation: str = "auto"
    experts_implementation: str = "auto"
    seed: int = 0


def make_config(fields: Mapping[str, Any]) -> Any:
    """A transformers configuration from the fields of a config.json. Raises UsageError for a type it does not know."""
    model_type = fields.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise UsageError(
            f"--model: transformers {transformers.__version__} does not know model type {model_type!r}; "
            "a newer transformers may (code of model repositories is never run)"
        )
    try:
        return CONFIG_MAPPING[model_type].from_dict(dict(fields))
    except Exception as error:
        # configuration classes raise errors of many types for fields that they refuse
        raise UsageError(f"--model: its config.json is refused by transformers: {_one_line(error)}") from error


def depth(config: Any) -> int:
    """Number of decoder blocks of a configuration. Raises UsageError where it names none."""
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise UsageError(f"--model: a configuration of type {config.model_type} names no num_hidden_layers")
    return layers


def cut(config: Any, num_layers: int) -> Any:
    """A copy of `config` with its first `num_layers` blocks; lists with an entry a block are cut along.

    Raises UsageError if the model has fewer blocks.
    """
    full = depth(config)
    if num_layers > full:
        raise UsageError(f"--num-layers {num_layers}: the model has {full} blocks; use 1 to {full}")
    config = type(config).from_dict(config.to_dict())
    text_config = config.get_text_config(decoder=True)
    for key, value in list(vars(text_config).items()):
        if isinstance(value, list) and len(value) == full:
            setattr(text_config, key, value[:num_layers])
    text_config.num_hidden_layers = num_layers
    return config


def resolve_dtype(config: Any, dtype: str) -> torch.dtype:
    """`auto` is the configuration's own type, bfloat16 where it names none."""
    if dtype != "auto":
        return DTYPES[dtype]
    own = getattr(config.get_text_config(decoder=True), "dtype", None) or getattr(config, "dtype", None)
    return own if isinstance(own, torch.dtype) else DTYPES.get(str(own), torch.bfloat16)


def implementation_arguments(options: ModelOptions) -> dict[str, str]:
    """The keyword arguments of `from_config` and `from_pretrained` that choose implementations."""
    chosen = {
        "attn_implementation": options.attn_implementation,
        "experts_implementation": options.experts_implementation,
    }
    return {name: value for name, value in chosen.items() if value != "auto"}


def dummy_model(config: Any, options: ModelOptions) -> nn.Module:
    """A model of `config` with random weights, made on the device: host memory holds none of them.

    Raises UsageError for implementations that the model does not have and for weights that do not fit.
    """
    torch.manual_seed(options.seed)
    try:
        with torch.device(options.device):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, dtype=resolve_dtype(config, options.dtype), **implementation_arguments(options)
            )
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"{depth(config)} blocks do not fit on {options.device}; use fewer (--num-layers, --scaling-num-layers)"
        ) from error
    except (ValueError, ImportError) as error:
        raise UsageError(f"--model: it cannot be built: {_one_line(error)}") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.ndim == 1 and not name.endswith("bias")
            parameter.normal_(1.0 if scale else 0.0, WEIGHT_STD)
    return model.eval().requires_grad_(False)


def meta_model(config: Any) -> nn.Module:
    """The architecture without weights, on the meta device: structure and shapes at full depth, at no cost."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def takes(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
