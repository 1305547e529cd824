"""The model of few blocks is the full model without the others, and its caches go on where a pass stopped."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from llm_profile.blocks import blocks_of_each_kind, find_kinds, find_stacks, first_blocks
from llm_profile.cache import InPlaceCache
from llm_profile.model import ModelOptions, dummy_model, meta_model
from llm_profile.subject import Subject, SubjectOptions
from llm_profile.sweep import SweepPoint
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
                if runner._takes_positions:
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
