"""Models for GPU tests: the tiny ones of tests/tiny.py, and models of real dimensions with random weights."""

from typing import Any

from llm_profile.models import catalog
from llm_profile.models.building import ModelOptions
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.subject import Subject
from tests.tiny import CONFIGS

LLAMA_8B = "meta-llama/Llama-3.1-8B"


def config_of(name: str) -> dict[str, Any]:
    """Fields of config.json of a tiny model or of a model of the built-in table."""
    if name in CONFIGS:
        return CONFIGS[name]
    found = catalog.find(name)
    assert found is not None
    return found[1]


def options_of(name: str, num_layers: int = 1, experts: str = "grouped_mm") -> ModelOptions:
    """Options of a model in bfloat16 on the GPU. experts: their implementation, if the model has experts."""
    has_experts = "num_local_experts" in config_of(name)
    return ModelOptions(num_layers, "cuda", "bfloat16", experts_implementation=experts if has_experts else "auto")


def gpu_subject(name: str, num_layers: int = 1, longest: int = 32, experts: str = "grouped_mm", **more: Any) -> Subject:
    """A model on the GPU, ready for passes of up to `longest` tokens. more: further fields of SubjectOptions."""
    fields: dict[str, Any] = {"config": config_of(name), "max_input": longest, "max_total": longest} | more
    return Subject(SubjectOptions(model=options_of(name, num_layers, experts), **fields))
