"""Models with quantised weights, built with the quantizers of transformers.

transformers has a quantizer for each method of quantisation. It checks the packages and the GPU that the method needs,
and replaces modules of a model by modules that compute with quantised weights. If it refuses, a UsageError is raised.
quantisation_config.py reads the `quantization_config` of a config.json.
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

QUANTISATION_ADVICE = (
    "install what is missing, use a GPU that the method runs on, or take a checkpoint that is not quantised"
)


def quantisation_of(config: Any) -> Mapping[str, Any] | None:
    """The `quantization_config` of a configuration object; None for weights that are not quantised."""
    holders = (config, config.get_text_config(decoder=True))
    return next((fields for holder in holders if (fields := quantisation_fields(vars(holder)))), None)


def full_model_of(config: Any, options: ModelOptions) -> nn.Module:
    """The model of `config` at full depth on the meta device, with the modules of its method of quantisation.

    These modules make blocks that a method quantises and blocks that it leaves as they are differ in kind.
    Raises UsageError if transformers cannot run the method here, or only by dequantising the weights.
    """
    model: Any = meta_model(config)
    fields = quantisation_of(model.config)
    if fields is None:
        return model
    method, placement = method_of(fields), device_map(options.device)
    dtype = resolve_dtype(config, options.dtype)
    logs = _LogCollector()
    try:
        quantizer = AutoHfQuantizer.from_config(dict(fields), pre_quantized=True)
        asked = _dequantizes(quantizer)
        with logs, torch.device("meta"):
            quantizer.validate_environment(device_map=placement, weights_only=True)
            quantizer.preprocess_model(
                model=model,
                dtype=quantizer.update_dtype(dtype),
                device_map=placement,
                checkpoint_files=None,
                use_kernels=False,
            )
    except Exception as error:
        # quantizers raise errors of many types for missing packages or GPUs and for fields that they refuse
        raise UsageError(
            f"--model: its {method} weights cannot be used here: {one_line(error)}; {QUANTISATION_ADVICE}"
        ) from error
    if _dequantizes(quantizer) and not asked:
        reason = logs.texts[0] if logs.texts else "it lacks the GPU or the packages for them"
        raise UsageError(
            f"--model: its {method} weights cannot be used on {options.device}: transformers would turn them into "
            f"{str(dtype).removeprefix('torch.')} ({one_line(reason)}); {QUANTISATION_ADVICE}"
        )
    return model


class _LogCollector(Handler):
    """While entered, collects the messages that transformers logs, in `texts`, and prints none."""

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
    """The `device_map` argument of transformers, by which quantizers choose kernels.

    None means the CPU, for machines without the package accelerate, which any other value needs.
    """
    return None if device == "cpu" and not is_accelerate_available() else {"": device}


@contextmanager
def cut_once_quantised(kept: Kept) -> Iterator[None]:
    """While open, a model that transformers quantises drops all but the kept blocks once its modules are replaced.

    They are dropped no earlier because lists of modules that are not quantised have the indices of the full model.
    """
    preprocess = HfQuantizer.preprocess_model

    def preprocess_and_cut(self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        preprocess(self, model, *args, **kwargs)
        keep_blocks(model, kept)

    with patched(HfQuantizer, "preprocess_model", preprocess_and_cut):
        yield


def compressed_modules(model: nn.Module) -> set[nn.Module]:
    """The modules with a matrix of their own (parameter or buffer) that holds integers or floats of one byte."""
    return {module for module in model.modules() if any(map(_is_compressed, _matrices(module)))}


def _matrices(module: nn.Module) -> list[torch.Tensor]:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [tensor for tensor in tensors if tensor.ndim >= 2]


def _is_compressed(tensor: torch.Tensor) -> bool:
    wide = tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1
    return not wide and not tensor.dtype.is_complex and tensor.dtype != torch.bool
