"""Real weights: which files are read, and that the kept blocks get the weights that they have in the full model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm_profile.errors import UsageError
from llm_profile.models.blocks import Kept, Stack, first_blocks
from llm_profile.models.checkpoint import CheckpointView, checkpoint_view, kept_indices, kept_name, load_weights
from llm_profile.models.hub import ModelSource, find_model

DEPTH = 4
COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "opt": {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "tie_word_embeddings": True},
    "phimoe": {**COMMON, "num_local_experts": 3, "attention_bias": True, "lm_head_bias": True},
    "mixtral": {**COMMON, "num_local_experts": 3},
    "qwen3_moe": {**COMMON, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
}


def make_config(model_type: str, depth: int = DEPTH) -> Any:
    return CONFIG_MAPPING[model_type].from_dict({**CONFIGS[model_type], "num_hidden_layers": depth})


@pytest.fixture(params=CONFIGS)
def model_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def full_model(model_type: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(model_type), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


@pytest.fixture
def folder(full_model: Any, tmp_path: Path) -> Path:
    """A checkpoint of about ten shards, with a tensor per expert as in published checkpoints, not fused ones."""
    full_model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    return tmp_path / "model"


def index_of(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])


def view_of(folder: Path, model: nn.Module, num_layers: int) -> CheckpointView:
    source = find_model(str(folder), load_format="hf")
    return checkpoint_view(source, kept=first_blocks(model, num_layers))


def only(*indices: int) -> Kept:
    return {Stack(("model.layers",)): indices}


@pytest.mark.parametrize("num_layers", [1, 3, DEPTH])
def test_first_blocks_are_those_of_the_full_model(
    full_model: Any, model_type: str, folder: Path, num_layers: int
) -> None:
    view = view_of(folder, full_model, num_layers)
    model = load_weights(view, make_config(model_type), torch.float32, "cpu")
    indices = kept_indices(first_blocks(full_model, num_layers))
    expected = {key: value for key, value in full_model.state_dict().items() if kept_name(key, indices) is not None}
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys()
    for key, value in loaded.items():
        assert torch.equal(value, expected[key]), key
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_other_shards_are_not_read(full_model: Any, model_type: str, folder: Path) -> None:
    view = view_of(folder, full_model, 1)
    needed = {
        shard for key, shard in index_of(folder).items() if ".layers." not in f".{key}" or ".layers.0." in f".{key}"
    }
    others = set(index_of(folder).values()) - needed
    assert len(others) >= 3
    assert {file.name for file in view.files} == needed
    for shard in others:
        (folder / shard).unlink()
    view = view_of(folder, full_model, 1)
    load_weights(view, make_config(model_type), torch.float32, "cpu")
    with pytest.raises(UsageError, match=r"model-.*\.safetensors is missing"):
        view_of(folder, full_model, DEPTH)


def test_mixtures_are_stored_expert_by_expert(folder: Path, model_type: str) -> None:
    per_expert = [key for key in index_of(folder) if ".experts.2." in key]
    assert bool(per_expert) == ("experts" in " ".join(CONFIGS[model_type]))


def test_another_dtype_and_implementation(full_model: Any, model_type: str, folder: Path) -> None:
    view = view_of(folder, full_model, 1)
    model: Any = load_weights(view, make_config(model_type), torch.bfloat16, "cpu", attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"


def test_single_file(full_model: Any, model_type: str, tmp_path: Path) -> None:
    full_model.save_pretrained(tmp_path / "whole")
    view = view_of(tmp_path / "whole", full_model, 2)
    assert [file.name for file in view.files] == ["model.safetensors"]
    model = load_weights(view, make_config(model_type), torch.float32, "cpu")
    last = next(iter(kept_indices(view.kept))) + ".1."
    assert any(key.startswith(last) for key in model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(value, full_model.state_dict()[key]), key


def test_unneeded_tensors_are_not_brought_into_memory(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({f"model.layers.{i}.weight": torch.ones(4096, 1024) for i in range(4)}, tmp_path / "model.safetensors")

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    view = CheckpointView("m", (tmp_path / "model.safetensors",), only(0, 1, 2, 3))
    before = resident_bytes()
    tensors = view.tensors()
    assert resident_bytes() - before < 8 * 1024**2
    assert tensors["model.layers.3.weight"].sum() == 4096 * 1024


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Apply `change` to the tensors of a checkpoint that is one file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def drop(folder: Path, *keys: str) -> None:
    def pop(tensors: dict[str, torch.Tensor]) -> None:
        for key in keys:
            del tensors[key]

    rewrite(folder, pop)


@pytest.fixture
def llama() -> Any:
    return AutoModelForCausalLM.from_config(make_config("llama"), dtype=torch.float32)


@pytest.fixture
def llama_file(llama: Any, tmp_path: Path) -> Path:
    llama.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def load_llama(folder: Path, llama: Any, **options: Any) -> nn.Module:
    source = find_model(str(folder), load_format="hf", **options)
    view = checkpoint_view(source, kept=first_blocks(llama, 1))
    return load_weights(view, make_config("llama"), torch.float32, "cpu")


def test_missing_tensors_are_named(llama: Any, llama_file: Path) -> None:
    projections = [f"self_attn.{letter}_proj" for letter in "qkvo"]
    drop(llama_file, *(f"model.layers.0.{name}.weight" for name in ("input_layernorm", "mlp.up_proj", *projections)))
    with pytest.raises(UsageError, match=r"lacks 6 of the model's tensors \(.*input_layernorm\.weight.*, \.\.\.\)"):
        load_llama(llama_file, llama)


def test_tensors_missing_from_blocks_left_out_do_not_matter(llama: Any, llama_file: Path) -> None:
    drop(llama_file, "model.layers.2.mlp.up_proj.weight")
    load_llama(llama_file, llama)


def test_missing_expert_is_refused(tmp_path: Path) -> None:
    mixtral = AutoModelForCausalLM.from_config(make_config("mixtral"), dtype=torch.float32)
    mixtral.save_pretrained(tmp_path / "mixtral")
    drop(tmp_path / "mixtral", "model.layers.0.block_sparse_moe.experts.1.w2.weight")
    view = view_of(tmp_path / "mixtral", mixtral, 1)
    with pytest.raises(UsageError, match=r"experts\.down_proj"):
        load_weights(view, make_config("mixtral"), torch.float32, "cpu")


def test_wrong_shape_is_named(llama: Any, llama_file: Path) -> None:
    rewrite(llama_file, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}))
    with pytest.raises(UsageError, match=r"another shape .*model\.norm\.weight"):
        load_llama(llama_file, llama)


def test_cut_file_is_refused(llama: Any, llama_file: Path) -> None:
    file = llama_file / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match="model.safetensors is truncated"):
        load_llama(llama_file, llama)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {"lm_head.weight": "../secret.safetensors"}}'])
def test_broken_index_is_refused(llama: Any, llama_file: Path, index: str) -> None:
    (llama_file / "model.safetensors").unlink()
    (llama_file / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UsageError, match="is no index of shards"):
        load_llama(llama_file, llama)


class Payload:
    """An object whose pickle creates the file `trace` when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


def pickle_checkpoint(llama: Any, llama_file: Path, **extra: Any) -> None:
    (llama_file / "model.safetensors").unlink()
    torch.save({**llama.state_dict(), **extra}, llama_file / "pytorch_model.bin")


def test_pickle_is_refused_with_the_reason(llama: Any, llama_file: Path) -> None:
    pickle_checkpoint(llama, llama_file)
    with pytest.raises(UsageError, match=r"pickle .*may run code.*--allow-pickle"):
        load_llama(llama_file, llama)


def test_allowed_pickle_loads(llama: Any, llama_file: Path) -> None:
    pickle_checkpoint(llama, llama_file)
    model = load_llama(llama_file, llama, allow_pickle=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, llama.state_dict()[key]), key


def test_allowed_pickle_of_the_old_format_loads(llama: Any, llama_file: Path) -> None:
    (llama_file / "model.safetensors").unlink()
    state = llama.state_dict()
    torch.save(state, llama_file / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    load_llama(llama_file, llama, allow_pickle=True)


def test_no_code_of_an_allowed_pickle_runs(llama: Any, llama_file: Path, tmp_path: Path) -> None:
    pickle_checkpoint(llama, llama_file, payload=Payload(tmp_path / "trace"))
    with pytest.raises(UsageError, match="more than tensors"):
        load_llama(llama_file, llama, allow_pickle=True)
    assert not (tmp_path / "trace").exists()


def test_no_code_of_a_repository_runs(llama: Any, llama_file: Path, tmp_path: Path) -> None:
    config_file = llama_file / "config.json"
    config = json.loads(config_file.read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config["attn_implementation"] = "someone/kernels"
    config_file.write_text(json.dumps(config))
    (llama_file / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    source = find_model(str(llama_file), load_format="hf")
    view = checkpoint_view(source, kept=only(0))
    full = CONFIG_MAPPING["llama"].from_dict(source.config)
    model: Any = load_weights(view, full, torch.float32, "cpu")
    assert type(model).__module__ == "transformers.models.llama.modeling_llama"
    assert model.config._attn_implementation == "sdpa"
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.layers.3.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        ("model.layers.2.mlp.up_proj.weight", None),
        ("model.layers.13.mlp.up_proj.weight", None),
        ("layers.3.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"),
        ("language_model.model.layers.2.mlp.up_proj.weight", None),
        ("language_model.model.layers.3.mlp.weight", "language_model.model.layers.1.mlp.weight"),
        ("model.layers.3.mlp.experts.7.w1.weight", "model.layers.1.mlp.experts.7.w1.weight"),
        ("vision_tower.encoder.layers.5.weight", "vision_tower.encoder.layers.5.weight"),
        ("lm_heads.5.weight", "lm_heads.5.weight"),
    ],
)
def test_names_of_kept_tensors(key: str, name: str | None) -> None:
    assert kept_name(key, kept_indices(only(0, 3))) == name


def test_blocks_from_the_middle_keep_their_weights(llama: Any, llama_file: Path) -> None:
    source = find_model(str(llama_file), load_format="hf")
    view = checkpoint_view(source, kept=only(1, 3))
    model: Any = load_weights(view, make_config("llama"), torch.float32, "cpu")
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1]
    for new, old in enumerate((1, 3)):
        loaded, original = model.model.layers[new].state_dict(), llama.model.layers[old].state_dict()
        assert all(torch.equal(value, original[key]) for key, value in loaded.items())


def test_keys_without_the_base_model_in_front(tmp_path: Path) -> None:
    """Published OPT checkpoints were saved from the base model: `decoder.layers.0` without `model.`, and no head."""
    opt: Any = AutoModelForCausalLM.from_config(make_config("opt"), dtype=torch.float32)
    opt.save_pretrained(tmp_path / "opt")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[key.removeprefix("model.")] = tensors.pop(key)

    rewrite(tmp_path / "opt", rename)
    view = view_of(tmp_path / "opt", opt, 1)
    assert {key.split(".")[2] for key in view.tensors() if key.startswith("decoder.layers.")} == {"0"}
    model = load_weights(view, make_config("opt"), torch.float32, "cpu")
    for key, value in model.state_dict().items():
        assert torch.equal(value, opt.state_dict()[key]), key


def test_a_source_without_weights_is_a_programming_error() -> None:
    with pytest.raises(ValueError):
        checkpoint_view(ModelSource("tiny-llama", {}, "table"), kept={})


def test_transformers_is_as_loud_as_before(llama: Any, llama_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    load_llama(llama_file, llama)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.WARNING, True)
    assert capfd.readouterr().err == ""


def test_the_folder_may_move_away_once_loaded(llama: Any, llama_file: Path) -> None:
    model = load_llama(llama_file, llama)
    shutil.rmtree(llama_file)
    logits = model(torch.tensor([[1, 2, 3]])).logits  # [1, 3, vocab_size]
    assert torch.isfinite(logits).all()
