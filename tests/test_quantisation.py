"""Quantised checkpoints: a made-up method that runs on a CPU (fake_quantizer.py), and real methods where they run."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import run_profile
import validation
from llm_profile.errors import UsageError
from llm_profile.layers.probe import is_kernel
from llm_profile.models.blocks import blocks_of_each_kind
from llm_profile.models.building import ModelOptions, make_config
from llm_profile.models.checkpoint import checkpoint_view, load_weights
from llm_profile.models.footprint import memory_bytes
from llm_profile.models.hub import find_model
from llm_profile.models.quantisation_config import parameters_of, quantisation_fields
from llm_profile.models.transformers_quantizer import full_model_of
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from tests.fake_quantizer import METHOD, ByteLinear, quantise, set_config
from tests.test_checkpoint import CONFIGS, index_of, only
from tests.test_checkpoint import make_config as llama_config
from tests.worker_here import WorkerHere, worker_here

__all__ = ["worker_here"]  # a fixture

PLAIN = "model.layers.2.mlp"
"""Path of the modules that the checkpoint of these tests does not quantise."""

ON_CPU = ModelOptions(1, "cpu")
LLAMA = {"model_type": "llama", **CONFIGS["llama"], "dtype": "bfloat16"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama checkpoint of four blocks in several shards, whose linear layers are quantised to bytes."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(llama_config("llama"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "bytes", max_shard_size="10KB")
    quantise(tmp_path / "bytes", [PLAIN])
    return tmp_path / "bytes"


def profile(folder: Path, *options: str) -> int:
    sweep = ["--device", "cpu", "--prefill-max", "2", "--decode-max", "2", "--repeat", "1", "--skip-scaling"]
    return run_profile.main(["--model", str(folder), "--output-dir", str(folder.parent), *sweep, *options])


def table_of(folder: Path) -> LatencyTable:
    return read_table(folder.parent / "CPU" / f"{folder.name}.csv")


def with_fields(folder: Path, **fields: Any) -> Path:
    quantisation = json.loads((folder / "config.json").read_text())["quantization_config"]
    set_config(folder, quantisation | fields)
    return folder


# ---- a method that transformers runs here


def test_the_command_profiles_quantised_weights_and_says_which(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(folder) == 0, capsys.readouterr().err
    table = table_of(folder)
    kinds = {kind["name"]: kind["layers"] for kind in table.meta["kinds"]}
    assert kinds == {"block_1": [0, 1, 3], "block_2": [2]}, "a block that stays plain is of another kind"
    rows = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "attn", "input_layernorm"]
    assert {f"{kind}.{row}" for kind in kinds for row in rows} <= set(table.row_names())
    conditions = table.meta["conditions"]
    assert conditions["quantisation"] == {"quant_method": METHOD, "bits": 8, "decompressed": False}
    assert conditions["dtype"] == "float16", "the one that the quantizer takes for bfloat16"
    assert "decompress" not in capsys.readouterr().err


def test_quantised_weights_are_validated_at_full_depth(
    folder: Path, capsys: pytest.CaptureFixture[str], worker_here: list[WorkerHere]
) -> None:
    pairs = ["--scaling-input-min", "1", "--scaling-input-max", "2", "--scaling-input-step", "1"]
    assert profile(folder, "--decode-max", "5") == 0
    csv = str(folder.parent / "CPU" / f"{folder.name}.csv")
    lax = ["--scaling-repeat", "1", "--scaling-tolerance", "1e9"]
    assert validation.main(["--csv", csv, *pairs, *lax]) == 0, capsys.readouterr().err
    assert len(worker_here) == 3


def test_other_parameters_are_other_conditions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(folder) == 0
    capsys.readouterr()
    assert profile(with_fields(folder, group_size=32)) == 2
    assert "quantisation is" in (told := capsys.readouterr().err) and "group_size" in told and "--overwrite" in told


def test_shards_of_dropped_blocks_are_not_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = index_of(folder)
    needed = {shard for key, shard in index.items() if ".layers.1." not in key and ".layers.3." not in key}
    unread = {*index.values()} - needed
    assert any(".layers.1." in key and shard in unread for key, shard in index.items())
    for shard in unread:
        (folder / shard).unlink()
    assert profile(folder) == 0
    capsys.readouterr()
    assert profile(folder, "--num-layers", "2", "--overwrite") == 2
    assert ".safetensors is missing" in capsys.readouterr().err


def test_kept_blocks_have_their_own_weights_and_stay_plain_where_they_were(folder: Path) -> None:
    source = find_model(str(folder), load_format="hf")
    view = checkpoint_view(source, kept=only(1, 2))
    model: Any = load_weights(view, make_config(source.config), torch.float16, "cpu")
    stored = {
        key: value for shard in set(index_of(folder).values()) for key, value in load_file(folder / shard).items()
    }
    for new, old in enumerate((1, 2)):
        block = model.model.layers[new]
        assert type(block.self_attn.q_proj) is ByteLinear
        assert type(block.mlp.up_proj) is (ByteLinear if old == 1 else nn.Linear)
        for name, value in block.state_dict().items():
            expected = stored[f"model.layers.{old}.{name}"]
            assert torch.equal(value, expected.to(value.dtype)), name
            assert value.dtype == (torch.float16 if expected.dtype == torch.bfloat16 else expected.dtype), name
    assert type(model.lm_head) is nn.Linear
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1]


def test_missing_tensors_of_quantised_weights_are_named(folder: Path) -> None:
    with_fields(folder, modules_to_not_convert=["lm_head"])
    assert profile(folder) == 0, "blocks are alike then, and the first is whole"
    source = find_model(str(folder), load_format="hf")
    with pytest.raises(UsageError, match=r"lacks 3 of the model's tensors \(.*scale"):
        load_weights(checkpoint_view(source, kept=only(2)), make_config(source.config), torch.float16, "cpu")


def test_weights_that_are_decompressed_are_called_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(with_fields(folder, decompresses=True)) == 0
    assert table_of(folder).meta["conditions"]["quantisation"]["decompressed"] is True
    told = capsys.readouterr().err
    assert "decompresses the weights at their first use: matrix products are those of plain float16 weights" in told


# ---- refusals


def refusal_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Profile a model that is refused with exit code 2. Returns the line that says why."""
    assert profile(folder, "--load-format", "hf") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("run_profile.py: --model")
    return told


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError", "ValueError"])
def test_what_a_method_misses_is_told_in_one_line(folder: Path, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal_of(with_fields(folder, missing=error), capsys)
    assert "its bytes weights cannot be used here: bytes need the package `octets`; install what is missing" in told


def test_weights_made_plain_behind_the_back_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal_of(with_fields(folder, gives_up=True), capsys)
    assert "transformers would turn them into bfloat16 (Bytes need a GPU. We default to dequantizing.)" in told


def test_plain_weights_that_were_asked_for_are_not_refused() -> None:
    config = make_config(LLAMA | {"quantization_config": {"quant_method": METHOD, "dequantize": True}})
    full_model_of(config, ON_CPU)


def test_a_kernel_that_is_missing_when_it_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal_of(with_fields(folder, needs_kernel=True), capsys)
    assert "its bytes weights do not run here: no kernel of bytes is there; install" in told


@pytest.mark.parametrize("quantisation", ["fp8", ["fp8"], 8])
def test_a_configuration_of_no_fields(folder: Path, quantisation: Any, capsys: pytest.CaptureFixture[str]) -> None:
    set_config(folder, quantisation)
    assert "quantization_config in its config.json is no JSON object" in refusal_of(folder, capsys)


@pytest.mark.parametrize(
    ("package", "quantisation"),
    [
        ("optimum", {"quant_method": "gptq", "bits": 4, "group_size": 128}),
        ("gptqmodel", {"quant_method": "awq", "bits": 4, "group_size": 128}),
        ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("bitsandbytes", {"load_in_8bit": True}),
        ("compressed_tensors", {"quant_method": "compressed-tensors", "format": "float-quantized"}),
        ("", {"quant_method": "someones"}),
        ("", {"bits": 4}),
    ],
)
def test_methods_whose_package_is_missing(
    folder: Path, package: str, quantisation: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    if package and importlib.util.find_spec(package):
        pytest.skip(f"{package} is there")
    set_config(folder, quantisation)
    told = refusal_of(folder, capsys)
    assert quantisation.get("quant_method", "") in told and "install what is missing" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="they may run there")
@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_methods_that_need_a_gpu(folder: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_config(folder, {"quant_method": method})
    assert f"its {method} weights cannot be used" in refusal_of(folder, capsys)


def test_random_weights_are_refused_for_quantised_ones(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(folder, "--load-format", "dummy") == 2
    told = capsys.readouterr().err
    assert "its weights are quantised (bytes), and random ones would not be; use --load-format hf" in told


# ---- real methods


def test_fp8_weights_made_plain_on_demand(tmp_path: Path) -> None:
    """With `dequantize` in the configuration, transformers multiplies blocks of 16 x 16 weights by their scales."""
    pytest.importorskip("accelerate")
    from safetensors.torch import save_file

    folder = tmp_path / "fp8"
    model = AutoModelForCausalLM.from_config(llama_config("llama"), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for key in [key for key in tensors if "_proj." in key]:
        tensors[key] = tensors[key].to(torch.float8_e4m3fn)
        tensors[f"{key}_scale_inv"] = torch.full([-(-size // 16) for size in tensors[key].shape], 2.0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    set_config(folder, {"quant_method": "fp8", "weight_block_size": [16, 16], "dequantize": True})
    assert profile(folder) == 0
    expected = {"quant_method": "fp8", "weight_block_size": [16, 16], "dequantize": True, "decompressed": False}
    assert table_of(folder).meta["conditions"]["quantisation"] == expected
    source = find_model(str(folder), load_format="hf")
    loaded: Any = load_weights(checkpoint_view(source, kept=only(3)), make_config(source.config), torch.bfloat16, "cpu")
    weight = loaded.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, 2 * tensors["model.layers.3.mlp.up_proj.weight"].to(torch.bfloat16))


@pytest.mark.parametrize("kind", ["float", "int"])
def test_compressed_tensors(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("compressed_tensors")
    from safetensors.torch import save_file

    for shard in set(index_of(folder).values()):
        tensors = load_file(folder / shard)
        stored = torch.float8_e4m3fn if kind == "float" else torch.int8
        for key in [key for key in tensors if "_proj.weight" in key]:
            tensors[key] = tensors[key].to(stored)
            tensors[f"{key}_scale"] = torch.ones(tensors[key].shape[0], 1, dtype=torch.bfloat16)
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    scheme = {"num_bits": 8, "type": kind, "strategy": "channel", "symmetric": True, "dynamic": False}
    inputs = {**scheme, "strategy": "token", "dynamic": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": scheme, "input_activations": inputs}}
    status = {"quantization_status": "compressed", "ignore": ["lm_head"]}
    set_config(
        folder,
        {"quant_method": "compressed-tensors", "format": f"{kind}-quantized", "config_groups": groups, **status},
    )
    assert profile(folder) == 0, capsys.readouterr().err
    assert {"q_proj", "up_proj", "lm_head"} <= set(table_of(folder).row_names())
    recorded = table_of(folder).meta["conditions"]["quantisation"]
    assert recorded["config_groups"]["group_0"]["weights"]["num_bits"] == 8 and recorded["decompressed"] is True


# ---- what a configuration says


def test_parameters_are_those_that_decide_and_no_lists_of_modules() -> None:
    fields = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}}},
        "weight_block_size": [128, 128],
        "desc_act": False,
    }
    assert parameters_of(fields) == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
        "weight_block_size": [128, 128],
        "desc_act": False,
    }


def test_quantisation_of_a_composite_configuration() -> None:
    assert quantisation_fields({"text_config": {"quantization_config": {"bits": 4}}}) == {"bits": 4}
    assert quantisation_fields({"quantization_config": None, "text_config": {}}) is None


def test_memory_of_quantised_weights_is_unknown() -> None:
    assert memory_bytes(LLAMA, 1, 2, 8) is not None
    assert memory_bytes({**LLAMA, "quantization_config": {"quant_method": "fp8"}}, 1, 2, 8) is None


def test_blocks_of_each_quantisation_are_kept() -> None:
    quantisation = {"quant_method": METHOD, "modules_to_not_convert": ["model.layers.0", "model.layers.1"]}
    full = full_model_of(make_config(LLAMA | {"quantization_config": quantisation}), ON_CPU)
    assert list(blocks_of_each_kind(full, 1).values()) == [(0, 2)]


@pytest.mark.parametrize("name", ["_scaled_mm", "_scaled_grouped_mm", "_int_mm", "_weight_int4pack_mm"])
def test_products_of_quantised_matrices_are_layers(name: str) -> None:
    assert is_kernel(getattr(torch.ops.aten, name).default)
