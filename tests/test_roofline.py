"""Rooflines: peaks of GPUs, and what rows have to compute, held against the models themselves."""

from pathlib import Path
from typing import Any

import pytest

from bench.roofline import bound_ns, gemm_weights
from llm_profile.cards import short_device_name
from llm_profile.gpus import GPUS
from llm_profile.models.catalog import MODELS
from llm_profile.points import SweepPoint
from llm_profile.report.roofline import SHOWN_LENGTHS, roofline
from llm_profile.store.files import read_table
from llm_profile.work import MATRICES, TYPES, Model, NoWork
from tests.report_samples import LLAMA, changed, finished
from tests.table_samples import sweep_points

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}

DRIVER_NAMES = {
    "H200": "NVIDIA H200",
    "H100": "NVIDIA H100 80GB HBM3",
    "H100NVL": "NVIDIA H100 NVL",
    "H100PCIe": "NVIDIA H100 PCIe",
    "GH200": "NVIDIA GH200 480GB",
    "A100-40GB": "NVIDIA A100-SXM4-40GB",
    "A100-80GB": "NVIDIA A100-SXM4-80GB",
    "A100PCIe-80GB": "NVIDIA A100 80GB PCIe",
    "L40S": "NVIDIA L40S",
    "A6000": "NVIDIA RTX A6000",
    "RTX3090": "NVIDIA GeForce RTX 3090",
    "RTX4090": "NVIDIA GeForce RTX 4090",
    "T4": "Tesla T4",
    "V100-32GB": "Tesla V100-SXM2-32GB",
    "MI300X": "AMD Instinct MI300X OAM",
}


@pytest.mark.parametrize("short", DRIVER_NAMES)
def test_peaks_are_found_by_what_the_driver_says(short: str) -> None:
    assert short_device_name(DRIVER_NAMES[short]) == short and short in GPUS


def test_every_peak_has_a_source_and_a_size_that_can_be() -> None:
    for name, peaks in GPUS.items():
        assert len(peaks.source) > 10, name
        assert 1e11 < peaks.bandwidth_bytes_per_sec < 2e13, name
        assert 1e12 < peaks.flops_per_sec["float32"] < peaks.flops_per_sec["float16"] < 1e16, name


def test_the_readme_gpu_is_that_of_the_bench() -> None:
    """bench/roofline.py takes 4.8e12 and 989e12 from the same datasheet."""
    assert GPUS["H200"].bandwidth_bytes_per_sec == 4.8e12
    assert GPUS["H200"].flops_per_sec["bfloat16"] == pytest.approx(989e12, rel=1e-3)


KNOWN = [name for name, config in MODELS.items() if (config.get("text_config") or config)["model_type"] in TYPES]


@pytest.mark.parametrize("name", KNOWN)
def test_matrices_are_those_of_the_model(name: str) -> None:
    """Shapes of a model that transformers built."""
    config = MODELS[name]
    found = gemm_weights(config, [{"name": "block", "layers": [0]}])
    model = Model.of(config, "bfloat16")
    checked = {row for row in found if row in MATRICES}
    assert {"lm_head", "o_proj"} <= checked
    for row in checked:
        work = model.work(row, SweepPoint(3, 0))
        given, taken = found[row]
        assert work is not None and work.flops == 2 * 3 * given * taken, row
        assert work.bytes == 2 * (given * taken + 3 * (given + taken)), row
        assert bound_ns((given, taken), 3, 2, 1e9, 1e30) < work.bytes, "the bench counts no activations"


def test_there_are_models_of_most_types() -> None:
    assert {MODELS[name]["model_type"] for name in KNOWN} >= {"llama", "opt", "qwen3", "mixtral", "phimoe"}


def test_attention_by_hand() -> None:
    """4 heads of 2 values, 2 of them with keys: scores and sums are 2 FLOPs for each of 2 values, head and pair."""
    model = Model.of(SMALL, "float16")
    work = model.work("attn", SweepPoint(3, 5))
    pairs = 6 + 7 + 8
    assert work is not None and work.flops == 2 * 2 * 2 * 4 * pairs
    values = 3 * 4 * 2 * 2 + (5 + 3) * 2 * 2 * 2  # queries and what comes out, keys and values
    assert work.bytes == 2 * values


def test_attention_in_a_window_by_hand() -> None:
    model = Model.of(SMALL | {"sliding_window": 4}, "float16")
    work = model.work("sliding_attention.attn", SweepPoint(3, 2))
    whole = model.work("full_attention.attn", SweepPoint(3, 2))
    assert work is not None and work.flops == 2 * 2 * 2 * 4 * (3 + 4 + 4)
    assert whole is not None and whole.flops == 2 * 2 * 2 * 4 * (3 + 4 + 5)


def test_experts_by_hand() -> None:
    fields = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    model = Model.of(SMALL | fields, "float16")
    expert = 3 * 8 * 20
    few, many = model.work("experts", SweepPoint(1, 9)), model.work("experts", SweepPoint(100, 0))
    assert few is not None and few.flops == 2 * 2 * expert and few.bytes == 2 * (2 * expert + 2 * 8)
    assert many is not None and many.bytes == 2 * (8 * expert + 2 * 100 * 8), "each expert is read once"
    assert Model.of(SMALL, "float16").work("experts", SweepPoint(1, 0)) is None
    assert Model.of(SMALL, "float16").work("gate", SweepPoint(1, 0)) is None


@pytest.mark.parametrize(
    ("changes", "dtype", "why"),
    [
        ({"quantization_config": {}}, "float16", "quantised"),
        ({"model_type": "mamba"}, "float16", "models of type mamba"),
        ({}, "float8", "size of float8"),
        ({"hidden_size": None}, "float16", "has no hidden_size"),
        ({"hidden_size": "wide"}, "float16", "hidden_size that is no number"),
        ({"num_attention_heads": 0}, "float16", "num_attention_heads that is no number"),
    ],
)
def test_what_is_not_known_is_said(changes: dict[str, Any], dtype: str, why: str) -> None:
    with pytest.raises(NoWork, match=why):
        Model.of(SMALL | changes, dtype)


def test_the_readme_table_lies_under_its_roof() -> None:
    found = roofline(read_table(LLAMA))
    assert found.roof is not None and found.why_not is None
    assert set(found.places) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "attn", "lm_head")
    }
    for row, by_phase in found.places.items():
        for phase, places in by_phase.items():
            assert len(places) <= SHOWN_LENGTHS[phase] and places[0].length == (1 if phase == "prefill" else 0)
            for place in places:
                roof = min(found.roof.flops_per_sec, place.intensity * found.roof.bandwidth_bytes_per_sec)
                assert 0 < place.flops_per_sec < roof, (row, place)
    best = max(place.flops_per_sec for place in found.places["down_proj"]["prefill"])
    assert best > 0.8 * found.roof.flops_per_sec, "long prompts are near the peak"


def test_an_unknown_gpu_has_no_roof(tmp_path: Path) -> None:
    paths = finished(tmp_path, sweep_points(4, 3))
    conditions = {"dtype": "bfloat16", "gpu": "Somebody's GPU", "num_layers": 1}
    found = roofline(changed(paths, config=SMALL, conditions=conditions))
    assert found.places and found.roof is None
    assert found.why_not == (
        "The peak rates of Somebody's GPU in bfloat16 are not in llm_profile/gpus.py, so no roof is drawn."
    )


def test_a_dtype_without_a_peak_has_no_roof(tmp_path: Path) -> None:
    conditions = {"dtype": "bfloat16", "gpu": "Tesla T4", "num_layers": 1}
    found = roofline(changed(finished(tmp_path), config=SMALL, conditions=conditions))
    assert found.roof is None and found.why_not is not None and "Tesla T4 in bfloat16" in found.why_not
