"""What is measured and how it is computed, as far as the model is concerned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from llm_profile.models.blocks import Kept
from llm_profile.models.building import ModelOptions


@dataclass(frozen=True)
class SubjectOptions:
    """How the model under measurement is made and run.

    config: fields of config.json. weights: `dummy`, or what identifies real ones (a resolved revision, a folder).
    load: loads the real weights of the kept blocks, None for dummy ones. max_input, max_total: the largest pass that
    will be run, in tokens without and with the cache. allow_slow_path: measure layers for which a kernel is missing; if
    not, they are refused. notice: what the user should know of the weights.
    """

    config: Mapping[str, Any]
    model: ModelOptions
    max_input: int
    max_total: int
    weights: str = "dummy"
    load: Callable[[Any, ModelOptions, Kept], nn.Module] | None = None
    sdpa_backend: str = "auto"
    routing: str = "balanced"
    allow_slow_path: bool = False
    notice: str | None = None
