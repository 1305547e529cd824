"""Builds models: configurations, full models without weights, and models of few blocks with random weights.

Models of few blocks with real weights are loaded in checkpoint.py.
"""

import copy
import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llm_profile.errors import UsageError
from llm_profile.models.blocks import Kept, blocks_of_each_kind, first_blocks, keep_blocks, keep_entries, kept_of_depth
from llm_profile.models.config_errors import dtype_problem, explained
from llm_profile.models.construction import bounded_construction
from llm_profile.models.memory import check_fits
from llm_profile.models.shards import cut_to_shard

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}

WEIGHT_STD = 0.02
"""Standard deviation of random weights: the `initializer_range` of most configurations."""


FEWER_BLOCKS = "use fewer blocks (--num-layers, --scaling-num-layers), or smaller sizes in its config.json"

UNSUPPORTED: dict[str, str] = {
    "blt": "bytes go through several stacks of blocks, in patches that depend on the text",
    "gemma4_assistant": "it drafts tokens for another model and reads that model's keys and values",
    "gemma4_unified_assistant": "it drafts tokens for another model and reads that model's keys and values",
    "recurrent_gemma": "its recurrent state is kept in its modules, so passes cannot all start from the same state",
    "openai-gpt": "it keeps no cache, so it has no decode to measure",
    "xlm": "it keeps no cache, so it has no decode to measure",
}
"""Model types that cannot be profiled, with the reason."""


NO_ATTENTION: dict[str, str] = {
    "flex_attention": "torch compiles it at its first use, and compiled code cannot be watched to find the layers",
    "paged|": "it is for continuous batching, and passes here are of one batch",
}
"""Beginnings of names of attention implementations that cannot be profiled, with the reason."""


@dataclass(frozen=True)
class ModelOptions:
    """How a model is built.

    num_layers: number of decoder blocks that are kept, of each kind if `each_kind`, else the first ones of any kind.
    dtype, attn_implementation, experts_implementation: `auto` for the choice of the configuration and of transformers.
    seed: for random weights and inputs. tp: tensor parallel degree; above 1, the model is the shard of one rank.
    """

    num_layers: int
    device: str
    dtype: str = "auto"
    attn_implementation: str = "auto"
    experts_implementation: str = "auto"
    seed: int = 0
    each_kind: bool = True
    tp: int = 1


def make_config(fields: Mapping[str, Any]) -> Any:
    """A configuration object of transformers from the fields of a config.json.

    Raises UsageError for a missing, unknown or unsupported model type, and for fields that transformers refuses.
    """
    model_type = fields.get("model_type")
    if model_type is None:
        raise UsageError(
            f"--model: its config.json has no model_type, which says how to read it; {_type_advice(fields)}"
        )
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING), n=2)
        meant = f"did you mean {' or '.join(near)}? If not, a" if near else "a"
        raise UsageError(
            f"--model: transformers {transformers.__version__} does not know model type {model_type!r}; "
            f"{meant} newer transformers may"
        )
    if model_type in UNSUPPORTED:
        raise UsageError(f"--model: {model_type} is not supported: {UNSUPPORTED[model_type]}")
    if problem := dtype_problem(fields):
        raise UsageError(f"--model: {problem}")
    try:
        config = CONFIG_MAPPING[model_type].from_dict(PreTrainedConfig._decode_special_floats(dict(fields)))
        return _of_decoder(config)
    except Exception as error:
        # configuration classes raise errors of many types for fields that they refuse
        raise UsageError(f"--model: its config.json is refused by transformers: {explained(error, fields)}") from error


def _type_advice(fields: Mapping[str, Any]) -> str:
    """What to add to a config.json without a model_type. Its `architectures` may tell which type it is."""
    named = fields.get("architectures")
    for name in named if isinstance(named, list) else []:
        types = [kind for kind, class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if class_name == name]
        if types:  # types that share the class: the one that the class is named after is preferred
            own = next((kind for kind in types if name.lower().startswith(kind.replace("_", ""))), types[0])
            return f'add "model_type": "{own}", that of {name}'
    return 'add one, such as "model_type": "llama"'


def _of_decoder(config: Any) -> Any:
    """The part of a composite (multimodal) configuration that the causal LM is built from; others as they are.

    If transformers has no causal LM for the composite type, that is the configuration of the text model. If it has one
    whose class takes the configuration of a part, it is that part.
    """
    if not _is_causal(config):
        text_config = config.get_text_config(decoder=True)
        return text_config if _is_causal(text_config) else config
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    expected: Any = getattr(model_class, "config_class", None)
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    part = next((part for part in parts if expected and type(part) is expected), None)
    if part is None or isinstance(config, expected) or part is getattr(config, "text_config", None):
        return config
    if quantisation := getattr(config, "quantization_config", None):
        part.quantization_config = quantisation
    return part


def _is_causal(config: Any) -> bool:
    """Whether transformers has a causal LM for this type of configuration."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or _whole(config) in MODEL_FOR_CAUSAL_LM_MAPPING


def _whole(config: Any) -> Any:
    """The composite class of configurations that this `<type>_decoder` configuration is part of; None for others."""
    model_type = str(config.model_type).removesuffix("_decoder")
    return CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401 (its `get` finds nothing)


def depth(config: Any) -> int:
    """Number of decoder blocks of a configuration object. Raises UsageError if it has no such number."""
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise UsageError(f"--model: its config.json, of type {config.model_type}, has no num_hidden_layers")
    return layers


def choose_blocks(full_model: nn.Module, options: ModelOptions) -> Kept:
    """The blocks of a full model (on the meta device) that are kept. Raises UsageError for more than it has."""
    config: Any = full_model.config
    full = depth(config)
    if full < 1:
        raise UsageError(f"--model: its config.json has num_hidden_layers {full}; it must have at least one")
    if options.num_layers > full:
        raise UsageError(f"--num-layers {options.num_layers}: the model has {full} blocks; use 1 to {full}")
    choose = blocks_of_each_kind if options.each_kind else first_blocks
    return choose(full_model, options.num_layers)


def resolve_dtype(config: Any, dtype: str) -> torch.dtype:
    """The torch dtype for `--dtype`. `auto` is the one of the configuration, or bfloat16 if it has none."""
    if dtype != "auto":
        return TORCH_DTYPES[dtype]
    own = getattr(config.get_text_config(decoder=True), "dtype", None) or getattr(config, "dtype", None)
    return own if isinstance(own, torch.dtype) else TORCH_DTYPES.get(str(own), torch.bfloat16)


def check_attention(name: str) -> None:
    """Raise UsageError if this implementation of attention cannot be profiled (NO_ATTENTION)."""
    for beginning, why in NO_ATTENTION.items():
        if name.startswith(beginning):
            raise UsageError(f"--attn-implementation {name}: {why}; use auto, sdpa or eager")


def implementation_arguments(options: ModelOptions) -> dict[str, str]:
    """Keyword arguments of `from_config` and `from_pretrained` for the implementations that are not `auto`."""
    chosen = {
        "attn_implementation": options.attn_implementation,
        "experts_implementation": options.experts_implementation,
    }
    return {name: value for name, value in chosen.items() if value != "auto"}


def dummy_model(config: Any, options: ModelOptions, kept: Kept) -> nn.Module:
    """The kept blocks of a model of `config` with random weights, which are made on the device and not in host memory.

    Raises UsageError for implementations that the model does not have and for weights that do not fit in memory.
    """
    dtype = resolve_dtype(config, options.dtype)
    model: Any = meta_model(config, dtype=dtype, **implementation_arguments(options))
    depths = kept_of_depth(model, kept)
    keep_blocks(model, kept)
    cut_to_shard(model, options.tp)
    tensors = [*model.parameters(), *model.buffers()]
    needed = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    check_fits(torch.device(options.device).type, needed, "the weights", FEWER_BLOCKS)
    try:
        model.to_empty(device=options.device)
    except torch.OutOfMemoryError as error:
        raise UsageError(f"{options.num_layers} blocks do not fit on {options.device}; {FEWER_BLOCKS}") from error
    for buffer in model.buffers():
        buffer.zero_()  # nothing else sets buffers that are expected in a checkpoint
    model.tie_weights()
    model.initialize_weights()  # sets the other buffers, such as rotary frequencies; parameters are set below
    keep_entries(model, depths)
    torch.manual_seed(options.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.ndim == 1 and not name.endswith("bias")
            parameter.normal_(1.0 if scale else 0.0, WEIGHT_STD)
    random: nn.Module = model.eval().requires_grad_(False)
    return random


def meta_model(config: Any, **arguments: Any) -> nn.Module:
    """The full model on the meta device: modules and shapes of parameters, but no weights and no memory for them.

    arguments: of `from_config`. Raises UsageError for a configuration or implementation that cannot be built.
    """
    if not _is_causal(config):
        raise UsageError(
            f"--model: transformers {transformers.__version__} has no causal language model of type {config.model_type}"
        )
    try:
        with torch.device("meta"), bounded_construction():
            # a copy, since `keep_entries` changes the configuration of the model
            model: nn.Module = _build(copy.deepcopy(config), **arguments)
    except UsageError:
        raise
    except Exception as error:
        # constructors raise errors of many types for values that a configuration should not have
        raise UsageError(
            f"--model: {config.model_type} cannot be built from its config.json: {explained(error, _fields_of(config))}"
        ) from error
    return model


def _fields_of(config: Any) -> dict[str, Any]:
    """The fields of a configuration object; none if its `to_dict` fails."""
    with suppress(Exception):
        return dict(config.to_dict())
    return {}


def _build(config: Any, **arguments: Any) -> nn.Module:
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return cast(nn.Module, AutoModelForCausalLM.from_config(config, **arguments))
    # `config` is the decoder's part of a composite type, and the causal LM of that type is built from it
    return cast(nn.Module, MODEL_FOR_CAUSAL_LM_MAPPING[_whole(config)]._from_config(config, **arguments))


@contextmanager
def built_with_few_blocks(model_class: type[nn.Module], kept: Kept) -> Iterator[None]:
    """While open, a new model of this class drops all but the kept blocks as the last step of its construction."""
    construct: Any = model_class.__init__

    def construct_and_cut(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        keep_blocks(self, kept)

    own = "__init__" in vars(model_class)
    model_class.__init__ = construct_and_cut  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own:
            model_class.__init__ = construct  # type: ignore[method-assign]
        else:
            del model_class.__init__
