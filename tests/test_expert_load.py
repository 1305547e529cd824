"""Tokens per expert, as the metadata has them, compared with a routing that is known."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_profile.passes.expert_load import expert_load
from llm_profile.passes.routing import expert_assignment
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from tests.shrunken import SIZES
from tests.test_architectures import OF_RELEASE, RELEASE, open_subject, write_model
from tests.tiny import subject

EXPERTS, TOP_K, LONGEST = 4, 2, 70


def load(tiny: Subject) -> dict[str, Any]:
    try:
        return expert_load(tiny.runner, tiny.layout, tiny.options.max_input)
    finally:
        tiny.close()


def test_balanced_routing_is_even() -> None:
    (found,) = load(subject("mixtral", 2, max_total=LONGEST)).items()
    assert found == (
        "block",
        {
            "experts": EXPERTS,
            "experts_per_token": TOP_K,
            "routing": "balanced",
            "tokens_per_expert": [
                {"tokens": 1, "min": 0, "mean": 0.5, "max": 1, "idle": 2},
                {"tokens": 64, "min": 32, "mean": 32, "max": 32, "idle": 0},
                {"tokens": LONGEST, "min": 35, "mean": 35, "max": 35, "idle": 0},
            ],
        },
    )


def test_random_routing_is_what_was_drawn() -> None:
    last = load(subject("mixtral", max_total=LONGEST, routing="random"))["block"]["tokens_per_expert"][-1]
    counts = torch.bincount(expert_assignment("random", LONGEST, TOP_K, EXPERTS).flatten(), minlength=EXPERTS)
    assert (last["min"], last["max"]) == (counts.min(), counts.max()) and last["min"] < last["max"]


def test_the_router_is_watched() -> None:
    tiny = subject("mixtral", max_total=LONGEST, routing="model")
    routers: list[torch.Tensor] = []
    gate = tiny.model.model.layers[0].mlp.gate
    with torch.no_grad():
        gate.weight[0] = 0
        gate.weight[1:] *= 100  # so that some experts get far more tokens than others
    handle = gate.register_forward_hook(lambda _m, _a, output: routers.append(output[-1]))
    tiny.runner.run(SweepPoint(LONGEST, 0))
    handle.remove()
    found = load(tiny)["block"]
    counts = torch.bincount(routers[0].flatten(), minlength=EXPERTS)
    last = found["tokens_per_expert"][-1]
    assert found["routing"] == "model" and last["tokens"] == LONGEST
    assert (last["min"], last["max"], last["idle"]) == (counts.min(), counts.max(), (counts == 0).sum())
    assert last["min"] < last["max"]


def test_passes_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = subject("mixtral", max_total=LONGEST)
    run = tiny.runner.run

    def out_of_memory(point: SweepPoint) -> Any:
        if point.input_len == LONGEST:
            raise torch.OutOfMemoryError
        return run(point)

    monkeypatch.setattr(tiny.runner, "run", out_of_memory)
    assert [at["tokens"] for at in load(tiny)["block"]["tokens_per_expert"]] == [1, 64]


def test_only_kinds_with_experts_are_told() -> None:
    assert list(load(subject("deepseek_v2"))) == ["moe"]
    assert load(subject("llama")) == {}


@pytest.mark.parametrize("routing", ["balanced", "model"])
def test_what_is_recorded_is_counted_once_and_leaves_nothing(routing: str) -> None:
    tiny = subject("phimoe", routing=routing)
    hooks = [len(m._forward_pre_hooks) for m in tiny.model.modules()]
    before = tiny.runner.run(SweepPoint(5, 0)).logits.clone()
    facts = tiny.facts()["expert_load"]
    assert facts is tiny.facts()["expert_load"] and list(facts) == ["block"]
    assert [len(m._forward_pre_hooks) for m in tiny.model.modules()] == hooks
    assert torch.equal(tiny.runner.run(SweepPoint(5, 0)).logits, before)
    tiny.close()


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param("aria_text", marks=pytest.mark.skipif(not OF_RELEASE, reason=f"as in transformers {RELEASE}")),
        "jetmoe",
    ],
)
def test_experts_that_are_told_counts_are_counted(model_type: str, tmp_path: Path) -> None:
    """Compared with the logits of all routers; JetMoE has one for its attention too."""
    tiny = open_subject(write_model(model_type, tmp_path / model_type))
    experts, top_k = SIZES["num_experts"], SIZES["top_k"]
    counts: list[torch.Tensor] = []

    def count(_module: Any, _args: Any, logits: torch.Tensor) -> None:
        counts.append(torch.bincount(logits.topk(top_k, dim=-1).indices.flatten(), minlength=experts))

    routers = [m for m in tiny.model.modules() if getattr(m, "out_features", None) == experts]
    handles = [router.register_forward_hook(count) for router in routers]
    tiny.runner.run(SweepPoint(tiny.options.max_input, 0))
    for handle in handles:
        handle.remove()
    told = load(tiny)["block"]
    of_routers = torch.stack(counts)
    assert (told["experts"], told["experts_per_token"], told["routing"]) == (experts, top_k, "model")
    last = told["tokens_per_expert"][-1]
    assert (last["min"], last["max"]) == (of_routers.min(), of_routers.max()) and last["min"] < last["max"]
    assert last["idle"] == pytest.approx((of_routers == 0).sum(1).double().mean().item())


def test_experts_that_compute_all_tokens_are_left_out(tmp_path: Path) -> None:
    assert load(open_subject(write_model("llama4_text", tmp_path / "llama4"))) == {}
