"""What a config.json says of quantised weights: its `quantization_config`. Imports no torch.

How transformers runs such weights is in transformers_quantizer.py.
"""

from collections.abc import Mapping
from typing import Any

from llm_profile.errors import UsageError


def quantisation_fields(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config.json says of the quantisation of its weights; None for plain weights. Raises UsageError."""
    inner = config.get("text_config")
    holders = (config, inner) if isinstance(inner, Mapping) else (config,)
    fields = next((found for holder in holders if (found := holder.get("quantization_config"))), None)
    if fields is not None and not isinstance(fields, Mapping):
        raise UsageError("--model: quantization_config in its config.json is no JSON object; write it again")
    return fields


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json as if its weights were plain."""
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    if isinstance(inner := plain.get("text_config"), Mapping):
        plain["text_config"] = without_quantisation(inner)
    return plain


def method_of(fields: Mapping[str, Any]) -> str:
    """`fp8`, `gptq`, ...: old configurations of bitsandbytes have its switches alone."""
    by_switch = "bitsandbytes" if fields.get("load_in_8bit") or fields.get("load_in_4bit") else "unknown"
    return str(fields.get("quant_method") or by_switch)


def parameters_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The method and its parameters (bits, group size, format), without the lists of modules that it leaves out."""
    return {"quant_method": method_of(fields)} | _parameters(fields)


def _parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: _parameters(value) if isinstance(value, Mapping) else value for name, value in fields.items()}
    return {name: value for name, value in kept.items() if value not in (None, {}, []) and not _names(value)}


def _names(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, str) for entry in value)
