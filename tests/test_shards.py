"""Shards of tensor parallelism: those of transformers' own load on two processes, and what engines do beyond that."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import AttentionInterface
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm_profile.errors import UsageError
from llm_profile.models.blocks import first_blocks
from llm_profile.models.building import ModelOptions, dummy_model, make_config, meta_model
from llm_profile.models.checkpoint import CheckpointView, checkpoint_view, load_weights
from llm_profile.models.hub import find_model
from llm_profile.models.patches import patched
from llm_profile.models.shards import cut_to_shard
from llm_profile.points import SweepPoint
from tests import tiny
from tests.tensor_parallel_ranks import RANKS, TOKENS, loaded, products_of
from tests.test_architectures import SUPPORTED
from tests.test_random_configs import tiny_fields

NOT_LOADED: dict[str, str] = {
    "doge": "its own mask is of all heads",
    "gemma4": "its embedding compares ids with a divided one",
    "inkling_text": "its relative positions are of all heads",
    "llama4": "the composite configuration has no pad_token_id",
    "qwen3_5": "the composite configuration has no vocab_size",
    "qwen3_5_moe": "the composite configuration has no vocab_size",
    "qwen4_exp": "the composite configuration has no vocab_size",
}
"""Type -> why transformers RELEASE cannot load a tiny model of it on two processes, or run it then. In other releases,
types that it cannot load so are skipped."""

RELEASE = "5.24"
OF_RELEASE = transformers.__version__.startswith(f"{RELEASE}.")


def has_plan(model_type: str) -> bool:
    """Whether transformers has rules for the blocks of a type. Only where classes do not tell, a model is built."""
    config_class = CONFIG_MAPPING[model_type]
    classes = (config_class, *getattr(config_class, "sub_configs", {}).values())
    plans = [getattr(each, "base_model_tp_plan", None) or {} for each in classes]
    if AutoConfig in classes:
        plans.append(meta_model(make_config(tiny_fields(model_type))).tp_plan)
    return any(".*." in name for plan in plans for name in plan)


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.named_parameters(remove_duplicate=False)}


PLANNED = [name for name in SUPPORTED if has_plan(name)]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Type -> what the first of two processes holds and computes."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.tensor_parallel_ranks", str(folder)]
    ranks = [subprocess.Popen([*command, str(rank), *PLANNED], stderr=subprocess.DEVNULL) for rank in range(RANKS)]
    try:
        assert [rank.wait(240) for rank in ranks] == [0] * RANKS
    finally:
        for rank in ranks:
            rank.kill()
    return dict(torch.load(folder / "real.pt"))


@pytest.mark.parametrize("model_type", PLANNED)
def test_a_shard_is_that_of_a_real_rank(real: dict[str, Any], model_type: str) -> None:
    rank = real[model_type]
    assert ("error" in rank) == (model_type in NOT_LOADED) or not OF_RELEASE, rank.get("error")
    if "parameters" not in rank:
        pytest.skip(NOT_LOADED.get(model_type, rank["error"]))
    model, kept = loaded(model_type)
    of_plan = "embedding_rowwise" in model.tp_plan.values()  # type: ignore[operator, union-attr]
    ends: Any = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator, union-attr]
    own = {id(value) for end in ends if end is not None and not of_plan for value in end.parameters()}
    names = [name for name, value in model.named_parameters() if id(value) not in own]
    cut_to_shard(model, RANKS)
    held = dict(model.named_parameters(remove_duplicate=False))
    assert held.keys() == rank["parameters"].keys()
    for name in names:
        assert torch.equal(held[name], rank["parameters"][name]), name
    random = dummy_model(make_config(tiny_fields(model_type)), ModelOptions(1, "cpu", "float32", tp=RANKS), kept)
    assert shapes_of(random) == {name: value.shape for name, value in held.items()}
    if "products" in rank and (of_plan or "lm_head" in model.tp_plan):  # type: ignore[operator]
        assert products_of(model) == rank["products"]


# ---- heads, and degrees that do not divide


def shard_of(fields: dict[str, Any], degree: int, depth: int = 1) -> nn.Module:
    config = make_config(fields)
    return dummy_model(
        config, ModelOptions(depth, "cpu", "float32", tp=degree), first_blocks(meta_model(config), depth)
    )


def heads_in_a_pass(model: nn.Module) -> tuple[int, int]:
    """Heads of queries and of keys that the attention interface is given."""
    seen: list[tuple[int, int]] = []
    find = AttentionInterface.get_interface

    def watched(self: Any, *names: Any) -> Any:
        attention = find(self, *names)

        def noting(module: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append((query.shape[1], key.shape[1]))
            return attention(module, query, key, *args, **kwargs)

        return noting

    with patched(AttentionInterface, "get_interface", watched), torch.no_grad():
        model(input_ids=TOKENS)
    (heads,) = set(seen)
    return heads


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from((2, 4, 8)),
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from(("llama", "qwen3", "gpt_oss")),
)
@settings(max_examples=40, deadline=None)
def test_any_dimensions(keys: int, groups: int, head_dim: int, inner: int, degree: int, model_type: str) -> None:
    heads, hidden, width = keys * groups, 8 * keys * groups, 16 * inner
    fields = tiny.COMMON | {"model_type": model_type, "head_dim": head_dim, "num_attention_heads": heads}
    fields |= {"num_key_value_heads": keys, "intermediate_size": width, "num_hidden_layers": 1, "hidden_size": hidden}
    fields |= {"num_local_experts": 2, "num_experts_per_tok": 2}
    if heads % degree or width % degree:
        with pytest.raises(UsageError, match=rf"^--tp {degree}: does not divide the .*; use ") as refusal:
            shard_of(fields, degree)
        told = str(refusal.value).rpartition("; use ")[2].replace(" or ", ", ").split(", ")
        assert told == [str(n) for n in range(1, 73) if heads % n == width % n == 0]
        return
    assume(model_type != "gpt_oss" or width // degree % 4 == 0)  # torch's grouped products want strides of 16 bytes
    model = shard_of(fields, degree)
    queries, kept = heads_in_a_pass(model)
    assert queries == heads // degree
    if keys % degree == 0:
        assert kept == keys // degree
    elif degree % keys == 0:
        assert kept == 1
    else:  # as many as hold the share of a rank, and as its queries divide among
        assert kept * degree >= keys
        assert queries % kept == 0
    shapes = {name.partition("layers.0.")[2]: tuple(shape) for name, shape in shapes_of(model).items()}
    assert shapes["self_attn.q_proj.weight"] == (queries * head_dim, hidden)
    assert shapes["self_attn.v_proj.weight"] == (kept * head_dim, hidden)
    assert shapes["self_attn.o_proj.weight"] == (hidden, queries * head_dim)
    if model_type == "gpt_oss":
        assert shapes["self_attn.sinks"] == (queries,)
        assert shapes["mlp.experts.gate_up_proj"] == (2, hidden, 2 * width // degree)
        assert shapes["mlp.experts.down_proj"] == (2, width // degree, hidden)
    else:
        assert shapes["mlp.up_proj.weight"] == (width // degree, hidden)


def test_a_type_without_a_plan_is_divided_by_roles() -> None:
    model = shard_of(tiny.CONFIGS["opt"], 2)
    assert heads_in_a_pass(model) == (2, 2)
    shapes = {name.partition("layers.0.")[2] or name: tuple(shape) for name, shape in shapes_of(model).items()}
    assert shapes["lm_head.weight"] == shapes["model.decoder.embed_tokens.weight"] == (128, 64)
    assert [shapes[f"self_attn.{name}"] for name in ("k_proj.weight", "k_proj.bias")] == [(32, 64), (32,)]
    assert [shapes[f"self_attn.{name}"] for name in ("out_proj.weight", "out_proj.bias")] == [(64, 32), (64,)]
    assert [shapes[name] for name in ("fc1.weight", "fc1.bias")] == [(64, 64), (64,)]
    assert [shapes[name] for name in ("fc2.weight", "fc2.bias")] == [(64, 64), (64,)]


@pytest.mark.parametrize("model_type", ["gpt2", "falcon", "mamba"])
def test_a_type_without_plan_and_roles_is_refused(model_type: str) -> None:
    with pytest.raises(UsageError, match=r"^--tp 2: transformers .* has no plan for .* how to divide .*; use --tp 1$"):
        shard_of(dict(tiny_fields(model_type)), 2)


def test_a_style_that_is_not_known_is_refused() -> None:
    model: Any = meta_model(make_config(tiny.CONFIGS["llama"]))
    model._tp_plan = {"model.layers.*.mlp.up_proj": "diagonal"}
    with pytest.raises(UsageError, match=r"in a way that is not known here \(diagonal\); use --tp 1"):
        cut_to_shard(model, 2)


def test_degree_one_changes_nothing() -> None:
    model, _ = loaded("llama")
    before = {name: id(value) for name, value in model.named_parameters()}
    cut_to_shard(model, 1)
    assert {name: id(value) for name, value in model.named_parameters()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ---- what a rank computes


def test_ids_of_other_ranks_are_zeros() -> None:
    model: Any = shard_of(tiny.CONFIGS["llama"], 4)
    found = model.get_input_embeddings()(torch.tensor([[0, 63, 64, 255]]))
    weight = model.get_input_embeddings().weight
    assert weight.shape == (64, 64)
    assert torch.equal(found[0, :2], weight[[0, 63]])
    assert not found[0, 2:].any()


def test_gathered_outputs_are_of_full_width_and_stay_where_they_are() -> None:
    model: Any = shard_of(tiny.CONFIGS["llama"], 2)
    with torch.no_grad():
        short, long, again = (model(torch.zeros(1, tokens, dtype=torch.long)).logits for tokens in (3, 9, 3))
    assert model.lm_head.weight.shape == (128, 64)
    assert (short.shape, long.shape) == ((1, 3, 256), (1, 9, 256))
    assert again.data_ptr() == long.data_ptr()
    assert 0.5 < float(long.std()) < 2


def test_a_sum_over_ranks_is_the_whole_layer() -> None:
    """Of the MLP, with the weights of the other rank in the place of the first one's."""
    model, _ = loaded("llama")
    other, _ = loaded("llama")
    states = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1))
    whole = model.model.layers[0].mlp(states)  # type: ignore[operator, index, union-attr]
    mlp: Any = other.model.layers[0].mlp  # type: ignore[index, union-attr]
    for name in ("gate_proj", "up_proj"):
        getattr(mlp, name).weight.data = getattr(mlp, name).weight.data.flip(0)
    mlp.down_proj.weight.data = mlp.down_proj.weight.data.flip(1)
    for each in (model, other):
        cut_to_shard(each, 2)
    parts = [each.model.layers[0].mlp(states) for each in (model, other)]  # type: ignore[operator, index, union-attr]
    assert torch.allclose(parts[0] + parts[1], whole, atol=1e-6)


# ---- real weights


@pytest.mark.parametrize("tied", [False, True])
def test_real_weights_are_those_of_the_first_rank(tmp_path: Path, tied: bool) -> None:
    config = make_config(tiny.CONFIGS["qwen3"] | {"tie_word_embeddings": tied})
    torch.manual_seed(0)
    full: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    full.save_pretrained(tmp_path / "model")
    source = find_model(str(tmp_path / "model"), load_format="hf")
    view: CheckpointView = checkpoint_view(source, kept=first_blocks(meta_model(config), 2))
    shard: Any = load_weights(view, config, torch.float32, "cpu", 2)
    assert (shard.lm_head.weight is shard.model.embed_tokens.weight) == tied
    assert torch.equal(shard.lm_head.weight, full.lm_head.weight[:128])
    for ours, theirs in zip(shard.model.layers, full.model.layers[:2], strict=True):
        assert torch.equal(ours.self_attn.k_proj.weight, theirs.self_attn.k_proj.weight[:16])
        assert torch.equal(ours.self_attn.o_proj.weight, theirs.self_attn.o_proj.weight[:, :32])
        assert torch.equal(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight[:, :64])
        assert ours.mlp.down_proj.weight.is_contiguous()
        assert torch.equal(ours.self_attn.q_norm.weight, theirs.self_attn.q_norm.weight)


# ---- as a subject of measurements


@cache
def rows_of(name: str, degree: int) -> tuple[list[str], list[str], dict[str, Any]]:
    """Rows, notices and conditions of a model of tests/tiny.py."""
    model = tiny.SubjectOptions(tiny.CONFIGS[name], ModelOptions(1, "cpu", "float32", tp=degree), 32, 32)
    subject = tiny.Subject(model)
    try:
        subject.runner.run(SweepPoint(4, 0))
        subject.runner.run(SweepPoint(1, 3))
        return sorted({site.row for site in subject.layout.sites}), subject.notices, subject.conditions()
    finally:
        subject.close()


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_shard_has_the_rows_of_the_model(name: str) -> None:
    rows, _, conditions = rows_of(name, 2)
    whole, _, before = rows_of(name, 1)
    assert rows == whole
    assert conditions == before | {"tp": 2}
    assert before["tp"] == 1


def test_what_a_plan_leaves_whole_is_said() -> None:
    model: Any = meta_model(make_config(tiny.CONFIGS["phimoe"]))
    plan = " ".join(name for name in model.tp_plan if ".*." in name)
    whole = bool(plan) and "self_attn" not in plan  # without a plan for its blocks, all of them are divided
    said = [notice for notice in rows_of("phimoe", 2)[1] if notice.startswith("--tp 2: ")]
    assert any("q_proj, k_proj, v_proj, o_proj whole on each rank" in notice for notice in said) == whole
    assert not any(notice.startswith("--tp") for notice in rows_of("llama", 2)[1])
