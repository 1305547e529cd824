"""The `quantization_config` of a config.json, which describes how the weights are quantised. Imports no torch.

transformers_quantizer.py runs quantised weights.
"""

from collections.abc import Mapping
from typing import Any

from llm_profile.errors import UsageError


def quantisation_fields(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The fields of `quantization_config`, which may be in text_config; None for weights that are not quantised.

    Raises UsageError where it is no JSON object.
    """
    inner = config.get("text_config")
    holders = (config, inner) if isinstance(inner, Mapping) else (config,)
    fields = next((found for holder in holders if (found := holder.get("quantization_config"))), None)
    if fields is not None and not isinstance(fields, Mapping):
        raise UsageError("--model: quantization_config in its config.json is no JSON object; correct it")
    return fields


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without `quantization_config`, also in its text_config."""
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    if isinstance(inner := plain.get("text_config"), Mapping):
        plain["text_config"] = without_quantisation(inner)
    return plain


def method_of(fields: Mapping[str, Any]) -> str:
    """The method of quantisation, such as `fp8` or `gptq`; `unknown` if none is named.

    Old configurations of bitsandbytes have no `quant_method` but one of its switches.
    """
    by_switch = "bitsandbytes" if fields.get("load_in_8bit") or fields.get("load_in_4bit") else "unknown"
    return str(fields.get("quant_method") or by_switch)


def parameters_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The method and its parameters (bits, group size, format), without lists of names of modules and empty values."""
    return {"quant_method": method_of(fields)} | _parameters(fields)


def _parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: _parameters(value) if isinstance(value, Mapping) else value for name, value in fields.items()}
    return {name: value for name, value in kept.items() if value not in (None, {}, []) and not _is_list_of_names(value)}


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, str) for entry in value)
