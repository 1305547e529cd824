"""Quantised weights as the quantizers of transformers run them on a device.

transformers has a quantizer for each method of quantisation. It knows the packages and GPUs that the method needs, and
replaces the modules of a model by those that compute with quantised weights. What it refuses is a UsageError here.
What a config.json says of quantisation is read in quantisation_config.py.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import Handler, LogRecord
from typing import Any

import torch
from torch import nn
from transformers.quantizers import AutoHfQuantizer, HfQuantizer
from transformers.utils import is_accelerate_available, logging

from llm_profile.errors import UsageError, one_line
from llm_profile.models.blocks import Kept, keep_blocks
from llm_profile.models.building import ModelOptions, meta_model, resolve_dtype
from llm_profile.models.patches import patched
from llm_profile.models.quantisation_config import method_of, quantisation_fields

QUANTISATION_ADVICE = "install what is missing, use a GPU that it runs on, or take a checkpoint that is not quantised"


def quantisation_of(config: Any) -> Mapping[str, Any] | None:
    """What a configuration object says of the quantisation of its weights; None for plain weights."""
    holders = (config, config.get_text_config(decoder=True))
    return next((fields for holder in holders if (fields := quantisation_fields(vars(holder)))), None)


def full_model_of(config: Any, options: ModelOptions) -> nn.Module:
    """The model of `config` at full depth, on the meta device, with the modules that transformers computes with.

    Blocks that a method of quantisation leaves plain are of another kind than those that it does not.
    Raises UsageError where transformers cannot run the method here, or only by turning the weights into plain ones.
    """
    model: Any = meta_model(config)
    fields = quantisation_of(model.config)
    if fields is None:
        return model
    method, placement = method_of(fields), device_map(options.device)
    dtype = resolve_dtype(config, options.dtype)
    told = _Told()
    try:
        quantizer = AutoHfQuantizer.from_config(dict(fields), pre_quantized=True)
        asked = _dequantizes(quantizer)
        with told, torch.device("meta"):
            quantizer.validate_environment(device_map=placement, weights_only=True)
            quantizer.preprocess_model(
                model=model,
                dtype=quantizer.update_dtype(dtype),
                device_map=placement,
                checkpoint_files=None,
                use_kernels=False,
            )
    except Exception as error:
        # quantizers raise errors of many types for what they miss and for fields that they refuse
        raise UsageError(
            f"--model: its {method} weights cannot be used here: {one_line(error)}; {QUANTISATION_ADVICE}"
        ) from error
    if _dequantizes(quantizer) and not asked:
        reason = told.texts[0] if told.texts else "it lacks the GPU or the packages for them"
        raise UsageError(
            f"--model: its {method} weights cannot be used on {options.device}: transformers would turn them into "
            f"{str(dtype).removeprefix('torch.')} ({one_line(reason)}); {QUANTISATION_ADVICE}"
        )
    return model


class _Told(Handler):
    """While entered, collects what transformers logs; nothing is printed."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> None:
        logging.disable_default_handler()
        logging.add_handler(self)

    def __exit__(self, *_error: object) -> None:
        logging.remove_handler(self)
        logging.enable_default_handler()


def _dequantizes(quantizer: Any) -> bool:
    return bool(getattr(quantizer.quantization_config, "dequantize", False))


def device_map(device: str) -> dict[str, str] | None:
    """`device_map` of transformers: quantizers choose kernels by it. None means the CPU, and needs no accelerate."""
    return None if device == "cpu" and not is_accelerate_available() else {"": device}


@contextmanager
def cut_once_quantised(kept: Kept) -> Iterator[None]:
    """While open, a model that transformers quantises drops all but the kept blocks, after its modules were replaced.

    Not before, since lists of modules that stay plain name blocks by their numbers in the full model.
    """
    preprocess = HfQuantizer.preprocess_model

    def preprocess_and_cut(self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        preprocess(self, model, *args, **kwargs)
        keep_blocks(model, kept)

    with patched(HfQuantizer, "preprocess_model", preprocess_and_cut):
        yield


def compressed_modules(model: nn.Module) -> set[nn.Module]:
    """Modules whose own matrices are held in integers or in floats of one byte."""
    return {module for module in model.modules() if any(map(_is_compressed, _matrices(module)))}


def _matrices(module: nn.Module) -> list[torch.Tensor]:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [tensor for tensor in tensors if tensor.ndim >= 2]


def _is_compressed(tensor: torch.Tensor) -> bool:
    wide = tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1
    return not wide and not tensor.dtype.is_complex and tensor.dtype != torch.bool
