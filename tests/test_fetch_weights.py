"""Real weights that cannot be used: `--load-format hf` refuses them, `auto` says why and uses random ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm_profile.errors import CheckpointError, UsageError
from llm_profile.models.hub import find_model
from llm_profile.passes.loading import fetch_weights, requested_subject
from llm_profile.request import Request
from llm_profile.sweep import Sweep
from tests.tiny import CONFIGS

FIRST = "model.layers.0.mlp.up_proj.weight"


def saved(folder: Path, name: str = "llama", **options: Any) -> Path:
    config = CONFIG_MAPPING[CONFIGS[name]["model_type"]].from_dict(CONFIGS[name])
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder, **options)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "model")


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors of a checkpoint that has one file; `None` removes one. `__` in a name stands for a dot."""
    stored = load_file(folder / "model.safetensors")
    stored |= {key.replace("__", "."): tensor for key, tensor in tensors.items()}
    save_file({key: tensor for key, tensor in stored.items() if tensor is not None}, folder / "model.safetensors")


def set_field(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def request_of(folder: Path, load_format: str, **options: Any) -> Request:
    return Request(
        str(folder), Sweep("both", 4, 4), device="cpu", warmup=0, repeat=1, load_format=load_format, **options
    )


def opened(folder: Path, load_format: str, **options: Any) -> Any:
    request = request_of(folder, load_format, **options)
    source = find_model(request.model, load_format=load_format, allow_pickle=request.allow_pickle)
    source = fetch_weights(request, source)
    subject = requested_subject(request, source)
    subject.close()
    return [source.notice, *subject.notices], subject.conditions()["weights"]


def narrowed(folder: Path) -> None:
    change(folder, model__layers__2__mlp__down_proj__weight=torch.ones(64, 96, dtype=torch.bfloat16))


def first_narrowed(folder: Path) -> None:
    change(folder, model__layers__0__self_attn__q_proj__weight=torch.ones(48, 64, dtype=torch.bfloat16))


def all_narrowed(folder: Path) -> None:
    change(
        folder,
        **{f"model__layers__{i}__mlp__up_proj__weight": torch.ones(96, 64, dtype=torch.bfloat16) for i in range(4)},
    )


def other_vocabulary(folder: Path) -> None:
    change(folder, model__embed_tokens__weight=torch.ones(250, 64, dtype=torch.bfloat16))


def incomplete(folder: Path) -> None:
    change(folder, model__norm__weight=None)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def a_pointer_of_git(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def without_tensors(folder: Path) -> None:
    save_file({}, folder / "model.safetensors")


def shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {FIRST: "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def index_empty(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


PROBLEMS: dict[Callable[[Path], None], str] = {
    narrowed: r"model\.layers\.2\.mlp\.down_proj\.weight is \[64, 96\] where its config\.json makes it \[64, 128\]",
    first_narrowed: r"layers\.0\.self_attn\.q_proj\.weight is \[48, 64\] where its config\.json makes it \[64, 64\]",
    all_narrowed: r"layers\.0\.mlp\.up_proj\.weight is \[96, 64\] where its config\.json makes it \[128, 64\]",
    other_vocabulary: r"embed_tokens\.weight is \[250, 64\] where its config\.json makes it \[256, 64\]",
    incomplete: r"lacks 1 of the model's tensors \(model\.norm\.weight\)",
    cut: r"model\.safetensors is truncated or no safetensors file",
    empty: r"model\.safetensors is truncated or no safetensors file",
    a_pointer_of_git: r"model\.safetensors is truncated or no safetensors file",
    without_tensors: r"lacks \d+ of the model's tensors",
    shard_missing: r"its shard model-00002-of-00002\.safetensors is missing",
    index_empty: "is no index of shards",
}


@pytest.mark.parametrize("spoil", PROBLEMS, ids=lambda spoil: spoil.__name__)
def test_weights_that_cannot_be_used(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=PROBLEMS[spoil]) as refused:
        opened(folder, "hf")
    assert "\n" not in str(refused.value)
    notices, weights = opened(folder, "auto")
    assert weights == "dummy"
    (told,) = [text for text in notices if text and "dummy (random) weights, because of" in text]
    assert str(refused.value) in told


@pytest.mark.parametrize("load_format", ["hf", "auto"])
@pytest.mark.parametrize("name", ["llama", "opt", "phimoe", "mixtral", "qwen3", "gemma3", "deepseek_v2"])
def test_weights_as_they_should_be(tmp_path: Path, name: str, load_format: str) -> None:
    """Also those of models with several kinds of blocks, of experts that are stored one by one, and in shards."""
    notices, weights = opened(saved(tmp_path / "model", name, max_shard_size="50KB"), load_format)
    assert weights == "folder model"
    assert notices[0] is None or notices[0].startswith("real weights")


def test_blocks_of_one_kind_are_compared_among_themselves(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "deepseek_v2")  # a dense first block; all others have experts
    name = "model.layers.3.mlp.experts.2.down_proj.weight"
    change(folder, **{name.replace(".", "__"): torch.ones(64, 24, dtype=torch.bfloat16)})
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.experts\.2\.down_proj\.weight is \[64, 24\]"):
        opened(folder, "hf")


def test_layers_behind_the_last_block_are_not_compared(folder: Path) -> None:
    """Some checkpoints have further layers, which predict further tokens."""
    change(folder, model__layers__4__mlp__down_proj__weight=torch.ones(64, 96, dtype=torch.bfloat16))
    assert opened(folder, "hf")[1] == "folder model"


@pytest.mark.parametrize("load_format", ["hf", "auto"])
def test_a_whole_file_beside_an_index_that_was_left_behind(folder: Path, load_format: str) -> None:
    index = {"weight_map": {FIRST: "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert opened(folder, load_format)[1] == "folder model"


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ([torch.ones(2)], "holds a list and no state dict"),
        (torch.ones(2), "holds a Tensor and no state dict"),
        ({}, "holds a dict and no state dict"),
        ({"state_dict": {FIRST: torch.ones(2)}, "epoch": 3}, "holds a dict with 'state_dict' and no state dict"),
        ({FIRST: torch.ones(2), "step": 7}, "holds a dict with 'step' and no state dict"),
        ({3: torch.ones(2)}, "holds a dict with 3 and no state dict"),
        (b"no pickle at all", "is damaged, or holds more than tensors"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_hold_no_state_dict(folder: Path, state: Any, told: str, zipped: bool) -> None:
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    if isinstance(state, bytes):
        file.write_bytes(state)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=told) as refused:
        opened(folder, "hf", allow_pickle=True)
    assert "\n" not in str(refused.value)
    notices, weights = opened(folder, "auto", allow_pickle=True)
    assert weights == "dummy" and told in notices[0]


# --- plain weights whose config.json still has a quantization_config ---

LEFTOVERS: dict[str, dict[str, Any]] = {
    "MLX": {"group_size": 64, "bits": 4},
    "merged QLoRA": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "GPTQ": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "FP8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


@pytest.mark.parametrize("load_format", ["hf", "auto"])
@pytest.mark.parametrize("fields", LEFTOVERS.values(), ids=LEFTOVERS)
def test_plain_weights_are_measured_as_plain(folder: Path, fields: dict[str, Any], load_format: str) -> None:
    set_field(folder, quantization_config=fields)
    notices, weights = opened(folder, load_format)
    assert weights == "folder model"
    assert "are plain" in notices[0] and "remove the field" in notices[0]


def test_plain_weights_of_experts(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "mixtral")
    set_field(folder, quantization_config=LEFTOVERS["MLX"])
    assert "are plain" in opened(folder, "hf")[0][0]


@pytest.mark.parametrize(
    "tensors",
    [
        {"model__layers__0__mlp__up_proj__weight": torch.ones(128, 64).to(torch.float8_e4m3fn)},
        {"model__layers__0__mlp__up_proj__weight": torch.ones(4096, 1, dtype=torch.uint8)},
        {
            "model__layers__0__mlp__up_proj__weight": None,
            "model__layers__0__mlp__up_proj__qweight": torch.ones(8, 128, dtype=torch.int32),
        },
        {"model__layers__0__mlp__up_proj__qweight": torch.ones(8, 128, dtype=torch.int32)},
    ],
)
def test_quantised_weights_are_not_taken_for_plain(folder: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    change(folder, **tensors)
    set_field(folder, quantization_config=LEFTOVERS["GPTQ"])
    with pytest.raises(UsageError, match="gptq weights cannot be used here"):
        opened(folder, "hf")
