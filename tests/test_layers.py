from pathlib import Path

import pytest

from llm_profile.errors import UsageError
from llm_profile.layers.layout import expert_modules
from llm_profile.layers.naming import without_indices
from llm_profile.measurement import PointSample, StoppingRule
from llm_profile.models.building import meta_model
from llm_profile.points import SweepPoint
from llm_profile.timing.backends.cpu_wall import CpuWallBackend
from tests.shrunken import tiny_config
from tests.test_architectures import open_subject, write_model
from tests.tiny import CONFIGS, subject

LLAMA_BLOCK = [
    "block_other",
    "input_layernorm",
    "attn_other",
    "q_proj",
    "k_proj",
    "v_proj",
    "rope",
    "attn",
    "o_proj",
    "post_layernorm",
    "mlp_other",
    "gate_proj",
    "act_fn",
    "up_proj",
    "down_proj",
]
MOE_BLOCK = [*LLAMA_BLOCK[:-4], "gate", "experts"]
OPT_BLOCK = [row for row in LLAMA_BLOCK[:10] if row != "rope"] + ["fc1", "act_fn", "fc2"]
MODEL = ["model_other", "embedding", "final_layernorm", "lm_head"]

EXPECTED = {
    "llama": MODEL + LLAMA_BLOCK,
    "opt": [*MODEL, "embed_positions", *OPT_BLOCK],
    "phimoe": MODEL + MOE_BLOCK,
    "mixtral": MODEL + MOE_BLOCK,
    "qwen3": [*MODEL, *LLAMA_BLOCK, "q_norm", "k_norm"],
}


def sample(name: str, point: SweepPoint, num_layers: int = 1) -> PointSample:
    backend = CpuWallBackend(subject(name, num_layers))
    try:
        (result,) = backend.sample([point], StoppingRule(repeat=2, precision=0), warmup=0)
    finally:
        backend.close()
    assert isinstance(result, PointSample)
    return result


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("point", [SweepPoint(5, 0), SweepPoint(1, 7)])
def test_rows_of_a_family(name: str, point: SweepPoint) -> None:
    assert sorted(sample(name, point).rows) == sorted(EXPECTED[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_add_up_to_the_pass_exactly(name: str) -> None:
    result = sample(name, SweepPoint(6, 0), num_layers=4)
    for number, whole in enumerate(result.pass_ns):
        assert sum(row.pass_ns[number] for row in result.rows.values()) == whole


def test_rows_of_blocks_know_how_many_blocks_they_cover() -> None:
    rows = sample("llama", SweepPoint(5, 0), num_layers=3).rows
    assert {name: row.blocks for name, row in rows.items()} == dict.fromkeys(MODEL, 1) | dict.fromkeys(LLAMA_BLOCK, 3)
    assert rows["q_proj"].launches == 3


def test_blocks_of_one_kind_are_counted_at_full_depth() -> None:
    with_layers = subject("llama", 2)
    assert with_layers.layout.block_rows() == dict.fromkeys(LLAMA_BLOCK, "block")
    (kind,) = with_layers.layout.kinds
    assert (kind.name, kind.count, kind.profiled) == ("block", 4, (0, 1))
    with_layers.close()


def test_kinds_that_only_the_config_tells_apart() -> None:
    tiny = subject("gemma3", 2)
    kinds = {k.name: (k.count, k.layers, k.profiled) for k in tiny.layout.kinds}
    assert kinds == {"sliding_attention": (3, (0, 1, 3), (0, 1)), "full_attention": (1, (2,), (2,))}
    rows = {site.row for site in tiny.layout.sites}
    assert {"sliding_attention.q_proj", "full_attention.q_proj", "embedding"} <= rows
    tiny.close()


def test_kinds_that_structure_tells_apart() -> None:
    tiny = subject("deepseek_v2", 1)
    assert {k.name: (k.count, k.profiled) for k in tiny.layout.kinds} == {"dense": (1, (0,)), "moe": (3, (1,))}
    tiny.close()


def test_more_layers_than_the_model_has_are_refused() -> None:
    with pytest.raises(UsageError, match="--num-layers 5: the model has 4 blocks"):
        subject("llama", 5)


def test_matrices_of_heads_are_no_experts() -> None:
    for model_type, own in {"xlnet": "XLNetRelativeAttention", "zamba": "ZambaMambaMixer"}.items():
        model = meta_model(tiny_config(model_type))
        assert own in {type(module).__name__ for module in model.modules()} and not expert_modules(model)
    assert expert_modules(meta_model(tiny_config("mixtral")))


@pytest.mark.parametrize(("name", "positions"), [("opt", 32), ("llama", None), ("phimoe", None)])
def test_only_learned_positions_end(name: str, positions: int | None) -> None:
    tiny = subject(name)
    assert tiny.layout.learned_positions == positions
    tiny.close()


@pytest.mark.parametrize(
    ("model_type", "rows", "others"),
    [
        (
            "zamba",
            {"hybrid.mamba", "hybrid.in_proj", "hybrid.out_proj"},
            {"hybrid.experts"},
        ),  # its 3-D parameters have a matrix per head
        ("xlnet", {"attn"}, {"experts"}),  # its 3-D parameters have a matrix per head
        ("dbrx", {"experts"}, {"mlp"}),  # the matrices of its experts are stacked into one 2-D parameter
    ],
)
def test_experts_are_told_from_heads(model_type: str, rows: set[str], others: set[str], tmp_path: Path) -> None:
    tiny = open_subject(write_model(model_type, tmp_path / model_type))
    found = {site.row for site in tiny.layout.sites}
    tiny.close()
    assert rows <= found and not others & found


@pytest.mark.parametrize(
    ("model_type", "rows"),
    [
        ("bert", {"lm_head": "cls.predictions.decoder", "transform.LayerNorm": "cls.predictions.transform.LayerNorm"}),
        ("megatron-bert", {"ln": "bert.encoder.layer.0.ln", "encoder.ln": "bert.encoder.ln"}),
        ("modernbert-decoder", {"final_layernorm": "model.final_norm", "lm_head.norm": "lm_head.norm"}),
        ("musicgen", {"lm_head": "lm_heads.3", "embedding": "model.decoder.embed_tokens.3"}),
        ("gemma3n_text", {"altup_projections": "model.altup_projections.2", "final_layernorm": "model.norm"}),
        ("jetmoe", {"experts.router.layer": "model.layers.0.self_attention.experts.router.layer"}),
        ("inkling_text", {"hybrid.shared_experts": "model.layers.5.mlp.shared_experts"}),
        ("rwkv", {"embedding": "rwkv.embeddings", "final_layernorm": "rwkv.ln_out", "lm_head": "head"}),
    ],
)
def test_names_of_places(model_type: str, rows: dict[str, str], tmp_path: Path) -> None:
    tiny = open_subject(write_model(model_type, tmp_path / model_type))
    places = {module: place(path) for path, module in tiny.model.named_modules()}
    named = {site.row: places[site.module] for site in tiny.layout.sites}
    tiny.close()
    assert {row: named.get(row) for row in rows} == {row: place(path) for row, path in rows.items()}


def place(path: str) -> str:
    return ".".join(without_indices(path))


def test_a_row_of_the_model_is_never_one_of_blocks(tmp_path: Path) -> None:
    for model_type in ("megatron-bert", "xlm-roberta-xl"):
        tiny = open_subject(write_model(model_type, tmp_path / model_type), num_layers=2)
        of_model = {site.row for site in tiny.layout.sites if site.kind is None}
        assert not of_model & tiny.layout.block_rows().keys()
        assert {tiny.layout.blocks(row) for row in of_model} == {1}
        tiny.close()
