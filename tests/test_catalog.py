"""The built-in table, and what follows from a config: parameters and memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_profile import catalog
from llm_profile.footprint import ARCHITECTURES, memory_bytes, parameter_count

ROOT = Path(__file__).parent.parent


def meta_parameters(config: dict[str, Any], num_layers: int | None) -> int:
    """Of a model of that many blocks, None for its own depth."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cut = {} if num_layers is None else {"num_hidden_layers": num_layers}
    built = CONFIG_MAPPING[config["model_type"]].from_dict({**config, **cut})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(built)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("model_id", catalog.MODELS)
def test_every_entry_builds_and_its_parameters_are_counted(model_id: str) -> None:
    config = catalog.MODELS[model_id]
    known = config["model_type"] in ARCHITECTURES
    assert parameter_count(config, 2) == (meta_parameters(config, 2) if known else None)


@pytest.mark.parametrize(
    ("model_id", "billions"),
    [
        # as published with the models
        ("meta-llama/Llama-3.1-8B", 8.03),
        ("meta-llama/Llama-3.1-70B", 70.55),
        ("facebook/opt-125m", 0.125),
        ("facebook/opt-6.7b", 6.66),
        ("microsoft/Phi-mini-MoE-instruct", 7.65),
        ("mistralai/Mixtral-8x7B-v0.1", 46.70),
        ("Qwen/Qwen3-8B", 8.19),
        ("Qwen/Qwen3-32B", 32.76),
        ("Qwen/Qwen3-30B-A3B", 30.53),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 79.7),
        ("google/gemma-3-12b-it", 11.77),
        ("openai/gpt-oss-20b", 20.9),
        ("deepseek-ai/DeepSeek-V3", 671.0),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 107.8),
        ("microsoft/phi-4", 14.66),
        ("tiiuae/falcon-mamba-7b", 7.27),
    ],
)
def test_full_depth_has_the_published_size(model_id: str, billions: float) -> None:
    config = catalog.MODELS[model_id]
    count = parameter_count(config, config["num_hidden_layers"]) or meta_parameters(config, None)
    assert count / 1e9 == pytest.approx(billions, rel=0.005)


FLAGS = ("attention_bias", "mlp_bias", "enable_bias", "lm_head_bias", "tie_word_embeddings", "do_layer_norm_before")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_parameter_count_is_exact_for_any_dimensions(data: st.DataObject) -> None:
    model_type = data.draw(st.sampled_from(sorted(ARCHITECTURES)))
    kv_heads = data.draw(st.integers(1, 3))
    heads = kv_heads * data.draw(st.integers(1, 3)) if model_type != "opt" else kv_heads
    config: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": data.draw(st.integers(8, 99)),
        "hidden_size": heads * data.draw(st.integers(1, 4)) * 2,
        "intermediate_size": data.draw(st.integers(1, 40)),
        "num_attention_heads": heads,
        "max_position_embeddings": data.draw(st.integers(4, 64)),
    }
    if model_type == "opt":
        config["ffn_dim"] = data.draw(st.integers(1, 40))
        config["word_embed_proj_dim"] = data.draw(st.integers(1, 40))
    else:
        config["num_key_value_heads"] = kv_heads
    if model_type == "qwen3_moe":
        config["mlp_only_layers"] = data.draw(st.lists(st.integers(0, 3), unique=True))
        config["decoder_sparse_step"] = data.draw(st.integers(1, 3))
        config["moe_intermediate_size"] = data.draw(st.integers(1, 20))
    if model_type in ("qwen3_moe", "phimoe", "mixtral"):
        config[ARCHITECTURES[model_type].experts or ""] = data.draw(st.integers(2, 4))
        config["num_experts_per_tok"] = 2
    if model_type.startswith("qwen3") or data.draw(st.booleans()) and model_type != "opt":
        config["head_dim"] = 2 * data.draw(st.integers(1, 5))
    config |= {flag: data.draw(st.booleans()) for flag in FLAGS if data.draw(st.booleans())}
    layers = data.draw(st.integers(1, 4))
    assert parameter_count(config, layers) == meta_parameters(config, layers)


def test_unknown_stays_unknown() -> None:
    llama = catalog.MODELS["tiny-llama"]
    assert memory_bytes({**llama, "model_type": "something-new"}, 1, 2, 128) is None
    assert memory_bytes({}, 1, 2, 128) is None
    without_vocab = {key: value for key, value in llama.items() if key != "vocab_size"}
    assert parameter_count(without_vocab, 1) is None
    assert memory_bytes(without_vocab, 1, 2, 128) is None


def test_memory_grows_with_what_it_holds() -> None:
    config = catalog.MODELS["meta-llama/Llama-3.1-8B"]
    one, two = (memory_bytes(config, layers, 2, 4096) for layers in (1, 2))
    assert one is not None and two is not None
    block = 4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336 + 2 * 4096
    assert two - one == 2 * (block + 2 * 1024 * 4096)  # weights and KV cache of one block
    assert memory_bytes(config, 1, 4, 4096) == 2 * one
    embedding_and_head_bytes = 2 * 2 * 128256 * 4096
    assert one > embedding_and_head_bytes + 2 * block


def test_find_as_written_in_any_case_and_by_last_part() -> None:
    model_id = "meta-llama/Llama-3.1-8B"
    for name in (model_id, model_id.upper(), "Llama-3.1-8B", "llama-3.1-8b"):
        found = catalog.find(name)
        assert found is not None and found[0] == model_id
        assert found[1]["hidden_size"] == 4096
    assert catalog.find("Llama-3.1-80B") is None
    assert catalog.find("") is None


def test_another_owners_model_is_not_ours() -> None:
    assert catalog.find("someone/Llama-3.1-8B") is None


def test_found_config_may_be_changed() -> None:
    found = catalog.find("Llama-3.1-8B")
    assert found is not None
    found[1]["rope_scaling"]["factor"] = 1.0
    assert catalog.MODELS["meta-llama/Llama-3.1-8B"]["rope_scaling"]["factor"] == 8.0


def test_near_names() -> None:
    assert catalog.near_names("meta-llama/Llama-3.1-8b-instr")[0].startswith("meta-llama/Llama-3.1-8B")
    assert catalog.near_names("opt-6.7")[0] == "facebook/opt-6.7b"
    assert catalog.near_names("Mixtral")[0].startswith("mistralai/Mixtral")
    assert len(catalog.near_names("llama", n=1)) <= 1
    for unlike in ("zzzzzz", "gpt2", "", "a/"):
        assert catalog.near_names(unlike) == []


def test_imports_no_torch() -> None:
    code = "import sys, llm_profile.catalog, llm_profile.footprint; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"
