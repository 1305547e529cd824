"""A made-up method of quantisation that runs on a CPU: weights of one byte, and a scale for each output.

It is registered with transformers as `bytes`. Fields of its quantization_config:
modules_to_not_convert: paths that are not quantised. dequantize: whether weights are dequantised on request.
gives_up: the quantizer itself sets `dequantize`, with a warning. missing: name of an error that it raises when it
checks the environment. decompresses: weights are dequantised in their first pass. needs_kernel: passes fail.
"""

import builtins
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "bytes"


@register_quantization_config(METHOD)
class BytesConfig(QuantizationConfigMixin):  # type: ignore[misc]
    def __init__(self, **fields: Any) -> None:
        self.quant_method = METHOD
        self.modules_to_not_convert = fields.get("modules_to_not_convert", [])
        self.dequantize = fields.get("dequantize", False)
        self.fields = fields


class ByteLinear(nn.Module):
    """A linear layer with quantised weights. weight: int8 [outputs, inputs]. scale: [outputs, 1]."""

    def __init__(self, linear: nn.Linear, fields: dict[str, Any]) -> None:
        super().__init__()
        shape = linear.weight.shape
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(shape[0], 1, dtype=torch.float32), requires_grad=False)
        self.fields = fields

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.fields.get("needs_kernel"):
            raise ImportError("no kernel of bytes\nis there")
        plain = self.weight.to(states.dtype) * self.scale.to(states.dtype)
        if self.fields.get("decompresses"):
            self.weight = nn.Parameter(plain, requires_grad=False)
            self.scale = nn.Parameter(torch.ones_like(self.scale), requires_grad=False)
        return nn.functional.linear(states, plain)


@register_quantizer(METHOD)
class BytesQuantizer(HfQuantizer):  # type: ignore[misc]
    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        fields = self.quantization_config.fields
        if missing := fields.get("missing"):
            raise getattr(builtins, missing)("bytes need\nthe package `octets`")
        if fields.get("gives_up"):
            logging.getLogger("transformers.bytes").warning("Bytes need a GPU. We default to dequantizing.")
            self.quantization_config.dequantize = True

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float16 if dtype == torch.bfloat16 else dtype

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        left_out = self.get_modules_to_not_convert(model, self.quantization_config.modules_to_not_convert)
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and not any(f"{name}.".startswith(f"{path}.") for path in left_out):
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, ByteLinear(module, self.quantization_config.fields))
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def quantise(folder: Path, left_out: list[str], **fields: Any) -> None:
    """Quantise the linear layers of a sharded checkpoint to bytes, without those below a path in `left_out`."""
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    for shard in set(index["weight_map"].values()):
        tensors = load_file(folder / shard)
        for key in [key for key in tensors if "_proj." in key and not any(key.startswith(f"{p}.") for p in left_out)]:
            scale = tensors[key].float().abs().amax(1, keepdim=True) / 127
            tensors[key] = (tensors[key].float() / scale).round().to(torch.int8)
            tensors[key.replace("weight", "scale")] = scale
            index["weight_map"][key.replace("weight", "scale")] = shard
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    index_file.write_text(json.dumps(index))
    set_config(folder, {"quant_method": METHOD, "bits": 8, "modules_to_not_convert": ["lm_head", *left_out], **fields})


def set_config(folder: Path, quantisation: Any) -> None:
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"quantization_config": quantisation}))
