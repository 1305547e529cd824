"""The real model in one process: how it is opened for each `--scaling-runtime`."""

from collections.abc import Callable
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.validation.eager_steps import EagerSteps
from llm_profile.validation.graph_steps import GraphSteps
from llm_profile.validation.opening import profiled_model, profiled_subject
from llm_profile.validation.profiled import Profiled
from llm_profile.validation.real_steps import Steps


def _open_eager(profiled: Profiled, depth: int, device: str, *options: Any) -> Steps:
    conditions = profiled.conditions
    model = profiled_model(profiled, depth, device, *options)
    return EagerSteps(model, conditions["sdpa_backend"], conditions["seed"])


def _open_graphs(profiled: Profiled, depth: int, device: str, *options: Any) -> Steps:
    if not device.startswith("cuda"):
        raise UsageError(f"--scaling-runtime cuda-graph: not on {device}; use eager")
    return GraphSteps(profiled_subject(profiled, depth, device, *options))


REALITIES: dict[str, Callable[..., Steps]] = {"eager": _open_eager, "cuda-graph": _open_graphs}
"""`--scaling-runtime`: how the real model is run. Arguments as of `profiled_subject`."""
