"""The model to be measured, loaded on its device, with what is known of its weights and its code before any pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llm_profile.models.blocks import Kept
from llm_profile.models.building import (
    check_attention,
    choose_blocks,
    depth,
    dummy_model,
    make_config,
    resolve_dtype,
)
from llm_profile.models.code_names import unread_lists
from llm_profile.models.remote_code import code_id
from llm_profile.models.transformers_quantizer import full_model_of, quantisation_of
from llm_profile.passes.options import SubjectOptions


@dataclass(frozen=True)
class LoadedModel:
    """A model that has only the kept blocks.

    dtype: of weights and activations. quantisation: what the configuration says of quantised weights, None for plain
    ones. code: identifies the code of the model's repository that runs, None if there is none. unread_lists: fields of
    its config.json that are lists with an entry for each block and that the model's code does not read.
    """

    model: nn.Module
    dtype: torch.dtype
    quantisation: Mapping[str, Any] | None
    code: str | None
    unread_lists: list[str]

    @property
    def dtype_name(self) -> str:
        """`float16`, `bfloat16` or `float32`."""
        return str(self.dtype).removeprefix("torch.")


def load_model(options: SubjectOptions) -> tuple[LoadedModel, nn.Module, Kept]:
    """The model with its kept blocks; the full model, without weights (meta device); which of its blocks were kept.

    Raises UsageError for a model that cannot be built or loaded.
    """
    check_attention(options.model.attn_implementation)
    full_config = make_config(options.config)
    full_model = full_model_of(full_config, options.model)
    kept = choose_blocks(full_model, options.model)
    unread = unread_lists(full_model, depth(full_config))
    model = (options.load or dummy_model)(full_config, options.model, kept)
    code = code_id(model)
    quantisation = quantisation_of(full_config)
    dtype = resolve_dtype(full_config, options.model.dtype)
    if quantisation is not None:  # its quantizer may have chosen another dtype
        dtype = resolve_dtype(model.config, "auto")
    return LoadedModel(model, dtype, quantisation, code, unread), full_model, kept
