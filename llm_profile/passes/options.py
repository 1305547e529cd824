"""The options of a model under measurement: its configuration, its weights, and how its passes are computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from llm_profile.models.blocks import Kept
from llm_profile.models.building import ModelOptions
from llm_profile.points import SweepPoint


@dataclass(frozen=True)
class SubjectOptions:
    """How the model under measurement is built and run.

    config: fields of config.json. weights: `dummy`, or what identifies real ones (a resolved revision, a folder).
    load: loads the real weights of the kept blocks, None for random ones. max_input: most tokens of a pass. max_total:
    the same with the tokens in the cache. allow_slow_path: measure layers that run slow Python; otherwise they are
    refused. kernels: one of kernels.KERNEL_CHOICES. packed: points that run as packed passes. notice: what the user
    should know about the weights.
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
    kernels: str = "model"
    packed: Sequence[SweepPoint] = ()
    notice: str | None = None
