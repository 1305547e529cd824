"""The model under measurement: how its experts are chosen, and which SDPA backend computes its attention."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import run_profile
from llm_profile.errors import UsageError
from llm_profile.layers.layout import expert_modules
from llm_profile.models.building import ModelOptions
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.routing import ExpertRouting
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.request import CPU_SDPA_BACKENDS, SDPA_BACKENDS
from tests import tiny
from tests.test_architectures import OF_RELEASE, RELEASE, write_model

ARIA = pytest.param("aria_text", marks=pytest.mark.skipif(not OF_RELEASE, reason=f"as in transformers {RELEASE}"))
"""In later releases its experts get the numbers of the chosen ones."""


def opened(model_type: str, folder: Path, **options: Any) -> Subject:
    fields = write_model(model_type, folder / model_type)
    model = ModelOptions(1, "cpu", "float32")
    return Subject(SubjectOptions(fields, model, 8, 9, allow_slow_path=True, **options))


@pytest.mark.parametrize("routing", ["balanced", "random"])
@pytest.mark.parametrize("model_type", [ARIA, "jetmoe", "llama4_text"])
def test_where_experts_are_told_no_choice_the_router_chooses(model_type: str, routing: str, tmp_path: Path) -> None:
    subject = opened(model_type, tmp_path, routing=routing)
    assert subject.conditions()["routing"] == subject.routing == subject.runner.routing == "model"
    (notice,) = subject.notices
    assert notice.startswith(f"--routing {routing} cannot be applied") and "its router chooses" in notice
    assert not any(module._forward_pre_hooks for module in expert_modules(subject.model))
    subject.close()


@pytest.mark.parametrize(
    "model_type",
    [
        "mixtral",
        "zaya",  # one expert per token
        "dbrx",  # its expert matrices are in a module below the one that gets the choice
        "inkling_text",  # it also has experts that every token uses
    ],
)
def test_where_experts_are_told_a_choice_it_is_replaced(model_type: str, tmp_path: Path) -> None:
    subject = opened(model_type, tmp_path)
    assert subject.conditions()["routing"] == "balanced"
    assert not any("--routing" in notice for notice in subject.notices)
    assert subject.facts()["expert_load"].keys() == {kind.name for kind in subject.layout.kinds}
    for told in subject.facts()["expert_load"].values():
        most = told["tokens_per_expert"][-1]
        assert told["routing"] == "balanced" and most["max"] - most["min"] <= 1
    subject.close()


def test_one_block_that_takes_no_choice_leaves_all_to_the_router(monkeypatch: pytest.MonkeyPatch) -> None:
    replace = ExpertRouting._route
    first: list[nn.Module] = []

    def only_in_the_first(routing: ExpertRouting, module: nn.Module, args: Any, kwargs: Any) -> Any:
        first.append(module)
        return replace(routing, module, args, kwargs) if module is first[0] else (args, kwargs)

    monkeypatch.setattr(ExpertRouting, "_route", only_in_the_first)
    subject = tiny.subject("mixtral", 2)
    assert len(set(first)) == 2
    assert subject.conditions()["routing"] == "model"
    assert not any(module._forward_pre_hooks for module in expert_modules(subject.model))
    subject.close()


def test_the_router_that_was_asked_for_is_no_news(tmp_path: Path) -> None:
    subject = opened("aria_text", tmp_path, routing="model")
    assert subject.conditions()["routing"] == "model" and subject.notices == []
    subject.close()


def test_a_model_without_experts_has_no_routing() -> None:
    subject = tiny.subject("llama")
    assert subject.conditions()["routing"] is None and subject.notices == []
    subject.close()


FLASH, MATH = "_scaled_dot_product_flash_attention_for_cpu", "_safe_softmax"


class Operators(TorchDispatchMode):
    """Notes the name of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name().removeprefix("aten::").partition(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", CPU_SDPA_BACKENDS)
def test_the_backend_of_attention_acts_on_a_cpu(backend: str) -> None:
    subject = tiny.subject("llama", sdpa_backend=backend)
    for point in (SweepPoint(6, 0), SweepPoint(1, 6)):
        with Operators() as ran:
            subject.runner.run(point)
        assert (FLASH in ran.names, MATH in ran.names) == (backend != "math", backend == "math")
    assert subject.conditions()["sdpa_backend"] == backend
    subject.close()


@pytest.mark.parametrize("backend", sorted({*SDPA_BACKENDS} - {*CPU_SDPA_BACKENDS}))
def test_backends_that_a_cpu_lacks_are_refused(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=f"--sdpa-backend {backend}: it cannot run this model's attention in float32"):
        tiny.subject("llama", sdpa_backend=backend)
    assert run_profile.main(["--model", "tiny-llama", "--device", "cpu", "--sdpa-backend", backend]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"run_profile.py: --sdpa-backend {backend}: not on a CPU; use auto, torch, flash or math"


@pytest.mark.parametrize(("model_type", "kept"), [("llama", True), ("bert", True), ("prophetnet", False)])
def test_models_that_compute_all_logits_are_known(model_type: str, kept: bool, tmp_path: Path) -> None:
    subject = opened(model_type, tmp_path)
    prompt = SweepPoint(5, 0)
    assert subject.facts()["logits_to_keep"] is kept
    assert subject.runner.run(prompt, last_token_only=True).logits.shape[-2] == (1 if kept else 5)
    subject.close()
