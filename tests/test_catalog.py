"""The built-in table of models, and the parameters and the memory that are computed from a config.json."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_profile.models import catalog
from llm_profile.models.architectures import ARCHITECTURES
from llm_profile.models.footprint import memory_bytes, parameter_count

ROOT = Path(__file__).parent.parent


def kept_parameters(config: dict[str, Any], num_layers: int) -> int:
    """Parameters of the built model with `num_layers` blocks of each kind, counted from its tensors."""
    from llm_profile.models.blocks import blocks_of_each_kind, keep_blocks
    from llm_profile.models.building import make_config, meta_model

    model = meta_model(make_config(config))
    keep_blocks(model, blocks_of_each_kind(model, num_layers))
    return sum(parameter.numel() for parameter in model.parameters())


RECURRENT = ("Qwen/Qwen3-Next-80B-A3B-Instruct", "tiiuae/falcon-mamba-7b")
"""Models whose memory is unknown: what their scans need depends on the kernels that are installed."""


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("model_id", catalog.MODELS)
def test_every_entry_builds_and_the_weights_that_a_run_keeps_are_counted(model_id: str, num_layers: int) -> None:
    config = catalog.MODELS[model_id]
    kept = kept_parameters(config, num_layers)
    assert parameter_count(config, num_layers) == (None if model_id in RECURRENT else kept)


@pytest.mark.parametrize(
    ("model_id", "billions"),
    [
        # parameters of the full model, in 1e9, as published with it
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
    count = parameter_count(config, config["num_hidden_layers"]) or kept_parameters(config, 99)
    assert count / 1e9 == pytest.approx(billions, rel=0.005)


FLAGS = ("attention_bias", "mlp_bias", "enable_bias", "lm_head_bias", "tie_word_embeddings", "do_layer_norm_before")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_parameter_count_is_exact_for_any_dimensions(data: st.DataObject) -> None:
    model_type = data.draw(st.sampled_from(sorted(ARCHITECTURES)))
    kv_heads = data.draw(st.integers(1, 3))
    latent = ARCHITECTURES[model_type].latent
    heads = kv_heads if latent or model_type == "opt" else kv_heads * data.draw(st.integers(1, 3))
    depth = data.draw(st.integers(1, 6))
    config: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": data.draw(st.integers(8, 99)),
        "hidden_size": heads * data.draw(st.integers(1, 4)) * 2,
        "intermediate_size": data.draw(st.integers(1, 40)),
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "max_position_embeddings": data.draw(st.integers(4, 64)),
        "num_key_value_heads": kv_heads,
    }
    if model_type == "opt":
        del config["num_key_value_heads"]
    if model_type == "phi3":  # the default id is outside so small a vocabulary
        config["pad_token_id"] = 0
    if not latent and (model_type in HEAD_DIM_NEEDED or data.draw(st.booleans()) and model_type != "opt"):
        config["head_dim"] = 2 * data.draw(st.integers(1, 5))
    for name, values in SPECIAL[model_type].items():
        config[name] = data.draw(values)
    config |= {flag: data.draw(st.booleans()) for flag in FLAGS if data.draw(st.booleans())}
    layers = data.draw(st.integers(1, depth))
    assert parameter_count(config, layers) == kept_parameters(config, layers)


HEAD_DIM_NEEDED = ("gemma3_text", "gpt_oss", "llama4_text", "qwen3", "qwen3_moe")
"""Types whose default head_dim is a constant, not hidden_size / num_attention_heads."""

WIDTH, COUNT, BLOCKS = st.integers(1, 40), st.integers(1, 4), st.lists(st.integers(0, 5), unique=True)
EXPERTS: dict[str, Any] = {"num_local_experts": st.integers(2, 4), "num_experts_per_tok": st.just(2)}
SPECIAL: dict[str, dict[str, Any]] = {
    **{name: {} for name in ARCHITECTURES},
    "deepseek_v3": {
        **dict.fromkeys(("n_shared_experts", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"), COUNT),
        "q_lora_rank": st.none() | COUNT,
        "qk_rope_head_dim": st.sampled_from([2, 4]),
        "n_routed_experts": st.integers(2, 4),
        "moe_intermediate_size": WIDTH,
        "first_k_dense_replace": st.integers(0, 7),
    },
    "gemma3_text": {"sliding_window_pattern": COUNT},
    "gpt_oss": EXPERTS,
    "llama4_text": {
        **EXPERTS,
        "intermediate_size_mlp": WIDTH,
        "moe_layers": st.none() | BLOCKS,
        "interleave_moe_layer_step": COUNT,
        "no_rope_layer_interval": COUNT,
    },
    "mixtral": EXPERTS,
    "opt": {"ffn_dim": WIDTH, "word_embed_proj_dim": WIDTH},
    "phimoe": EXPERTS,
    "qwen3_moe": {
        "num_experts": st.sampled_from([0, 2, 4]),
        "num_experts_per_tok": st.just(2),
        "mlp_only_layers": BLOCKS,
        "decoder_sparse_step": COUNT,
        "moe_intermediate_size": WIDTH,
    },
}
"""Type -> strategies for its own fields, beside the fields that all types have."""


@pytest.mark.parametrize("types", [["sliding_attention", "full_attention", "full_attention"], None])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama4_text", "gpt_oss", "llama"])
def test_types_of_blocks_that_a_configuration_names(model_type: str, types: list[str] | None) -> None:
    """With a list of types, parameters are counted. Without one, sliding windows in some blocks make them unknown."""
    config = {
        **catalog.MODELS["tiny-llama"],
        **{"model_type": model_type, "num_hidden_layers": 3, "head_dim": 32, "num_local_experts": 2},
        **({"layer_types": types} if types else {}),
    }
    assert parameter_count(config, 1) == kept_parameters(config, 1)
    windows = parameter_count({**config, "use_sliding_window": True}, 1)
    assert (windows is None) == (types is None and model_type in ("qwen2", "qwen3"))


def test_unknown_stays_unknown() -> None:
    llama = catalog.MODELS["tiny-llama"]
    assert memory_bytes({**llama, "model_type": "something-new"}, 1, 2, 128) is None
    assert memory_bytes({}, 1, 2, 128) is None
    without_vocab = {key: value for key, value in llama.items() if key != "vocab_size"}
    assert parameter_count(without_vocab, 1) is None
    assert memory_bytes(without_vocab, 1, 2, 128) is None


@pytest.mark.parametrize(
    ("model_id", "field"),
    [
        ("tiny-llama", {"num_attention_heads": 0}),
        ("tiny-llama", {"num_hidden_layers": None}),
        ("google/gemma-3-12b-it", {"sliding_window_pattern": 0}),
        ("Qwen/Qwen3-30B-A3B", {"decoder_sparse_step": 0}),
        ("Qwen/Qwen3-30B-A3B", {"mlp_only_layers": 3}),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", {"moe_layers": "all"}),
        ("deepseek-ai/DeepSeek-V3", {"first_k_dense_replace": None}),
    ],
)
def test_fields_that_no_model_could_be_built_of_leave_it_unknown(model_id: str, field: dict[str, Any]) -> None:
    config = catalog.MODELS[model_id]
    assert parameter_count(config, 1) is not None
    assert parameter_count({**config, **field}, 1) is None


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
    code = "import sys, llm_profile.models.catalog, llm_profile.models.footprint;"
    code += "print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"
