"""Models of few blocks: which blocks are kept, and that they compute what they compute in the full model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from llm_profile.models.blocks import blocks_of_each_kind, find_kinds, find_stacks, first_blocks
from llm_profile.models.building import ModelOptions, dummy_model, make_config, meta_model
from llm_profile.models.code_names import unread_lists
from llm_profile.passes.cache import InPlaceCache
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from tests.shrunken import DEPTH, tiny_config

FLOAT = ModelOptions(DEPTH, "cpu", "float32", each_kind=False)
STATES = ["mamba", "jamba", "falcon_h1", "qwen3_next", "lfm2_moe", "deepseek_v32", "gemma4_text", "gemma3n_text"]


@pytest.mark.parametrize("model_type", ["llama", "gemma4_text", "deepseek_v4", "jamba", "gptj", "whisper", "bloom"])
def test_buffers_are_those_of_a_model_that_was_built_on_the_device(model_type: str) -> None:
    config = tiny_config(model_type)
    built = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    model = dummy_model(config, FLOAT, first_blocks(meta_model(config), DEPTH))
    buffers = dict(model.named_buffers())
    assert buffers.keys() == dict(built.named_buffers()).keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in built.named_buffers())


@pytest.mark.parametrize("model_type", STATES)
def test_steps_on_the_cache_give_what_one_long_pass_gives(model_type: str) -> None:
    config = {**tiny_config(model_type).to_dict(), "dtype": "float32"}
    tiny = Subject(
        SubjectOptions(config, ModelOptions(1, "cpu", "float32"), 7, 7, routing="model", allow_slow_path=True)
    )
    try:
        runner, model = tiny.runner, tiny.model
        if not isinstance(runner.cache, InPlaceCache):
            pytest.skip("this release of transformers has a cache of its own for it")
        argument = runner.cache_argument
        fresh = {argument: DynamicCache(config=model.config)}
        with torch.no_grad():
            whole = model(input_ids=runner.input_ids, use_cache=True, **fresh).logits
            runner.run(SweepPoint(4, 0))
            for at in range(4, 7):
                inputs: dict[str, Any] = {"input_ids": runner.input_ids[:, at : at + 1], argument: runner.cache}
                if runner.inputs.takes_positions:
                    inputs["position_ids"] = torch.tensor([[at]])
                step = model(**inputs, use_cache=True).logits
                torch.testing.assert_close(step[0, 0], whole[0, at], rtol=1e-3, atol=1e-4)
    finally:
        tiny.close()


def test_blocks_of_each_kind_are_numbered_anew() -> None:
    config = tiny_config("jamba")
    full: Any = meta_model(config)
    (stack,) = find_stacks(full)
    kinds = find_kinds(full, stack)
    kept = blocks_of_each_kind(full, 1)
    assert {kinds[i] for i in kept[stack]} == set(kinds)
    assert len(kept[stack]) == len(set(kinds))
    model: Any = dummy_model(config, FLOAT, kept)
    assert len(model.model.layers) == len(kept[stack])
    kept_types = [config.layers_block_type[i] for i in kept[stack]]
    assert list(model.config.layers_block_type) == kept_types
    assert len(config.layers_block_type) == DEPTH


def test_keys_and_values_that_blocks_share_come_from_a_kept_block(tmp_path: Path) -> None:
    full: Any = meta_model(tiny_config("gemma3n_text"))
    (stack,) = find_stacks(full)
    kept = blocks_of_each_kind(full, 1)[stack]
    attention = [stack.blocks(full)[i][0].get_submodule("self_attn") for i in kept]
    if not hasattr(attention[0], "kv_shared_layer_index"):
        pytest.skip("this release of transformers shares keys and values in another way")
    needed = {module.kv_shared_layer_index for module in attention if module.kv_shared_layer_index is not None}
    assert needed and needed <= set(kept)


def kinds_of_type(model_type: str, **fields: Any) -> tuple[list[str], list[str]]:
    """The kind of each block of a tiny model, and the lists of its configuration that its code does not read."""
    full: Any = meta_model(make_config(tiny_config(model_type).to_dict() | fields))
    (stack,) = find_stacks(full)
    return find_kinds(full, stack), unread_lists(full, DEPTH)


@pytest.mark.parametrize(
    "lists",
    [
        {"layer_inter_size": [128, 128, 128, 96, 96, 96]},
        {"heads_by_layer": [4, 4, 2, 2, 4, 4], "pruned": [True, False] * 3},
        {"mlp_layer_types": ["dense", "sparse"] * 3},
        {"block_configs": [{"ffn": 128}] * 5 + [{"ffn": 64}]},
        {"attention_layers": ["global", "local"] * 3},
        {"widths": list(range(DEPTH))},
    ],
)
def test_lists_that_a_model_does_not_read_make_no_kinds_and_are_told(lists: dict[str, Any]) -> None:
    kinds, unread = kinds_of_type("llama", **lists)
    assert set(kinds) == {"block"}
    assert unread == sorted(lists)


@pytest.mark.parametrize(
    ("model_type", "fields", "number"),
    [
        ("smollm3", {"no_rope_layers": [1, 0] * 3}, 2),
        ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"] * 3}, 2),
        ("gpt_neo", {"attention_types": [[["global", "local"], DEPTH // 2]]}, 2),
        ("lfm2_moe", {"layer_types": ["conv", "conv", "full_attention"] * 2}, 3),
        ("llama", {"all_alike": [128] * DEPTH, "too_short": [1, 2]}, 1),
    ],
)
def test_lists_that_a_model_reads_make_kinds(model_type: str, fields: dict[str, Any], number: int) -> None:
    kinds, unread = kinds_of_type(model_type, **fields)
    assert len(set(kinds)) == number
    assert unread == []


@pytest.mark.parametrize(
    "model_type", ["qwen3_next", "deepseek_v4", "granitemoehybrid", "jamba", "zamba2", "llama4_text"]
)
def test_no_type_has_lists_of_its_own_that_it_does_not_read(model_type: str) -> None:
    assert kinds_of_type(model_type)[1] == []


def test_lists_that_are_not_read_are_told_of_the_subject() -> None:
    subject = Subject(
        SubjectOptions(
            tiny_config("llama").to_dict() | {"layer_inter_size": [128, 96] * 3},
            ModelOptions(1, "cpu", "float32"),
            4,
            4,
        )
    )
    subject.close()
    (told,) = subject.notices
    assert "layer_inter_size" in told and "llama does not read" in told
