"""Shards of tensor parallelism: those of transformers' own load on two processes, and what engines do beyond that."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from llm_profile.errors import UsageError
from llm_profile.models.blocks import first_blocks, blocks_of_each_kind
from llm_profile.models.building import ModelOptions, dummy_model, make_config, meta_model
from llm_profile.models.shards import cut_to_shard
from llm_profile.models.tp_plan import tp_plan_of
from tests.tensor_parallel_ranks import RANKS, loaded, products_of
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
"""Type -> why transformers cannot load a tiny model of it on two processes, or run it then."""


def has_plan(model_type: str) -> bool:
    plan = meta_model(make_config(tiny_fields(model_type))).tp_plan
    return any(".*." in name for name in plan)


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
    assert ("error" in rank) == (model_type in NOT_LOADED), rank.get("error")
    if "parameters" not in rank:
        pytest.skip(NOT_LOADED[model_type])
    model, kept = loaded(model_type)
    cut_to_shard(model, RANKS)
    held = dict(model.named_parameters(remove_duplicate=False))
    assert held.keys() == rank["parameters"].keys()
    for name, value in rank["parameters"].items():
        assert torch.equal(held[name], value), name
    random = dummy_model(model.config, ModelOptions(1, "cpu", "float32", tp=RANKS), kept) if False else None
    assert random is None
    if "products" in rank:
        assert products_of(model) == rank["products"]
