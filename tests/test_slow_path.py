"""Layers that run slowly for lack of a kernel: refused unless allowed, and then marked in the table."""

from pathlib import Path
from typing import Any

import pytest
from transformers.integrations.hub_kernels import use_kernel_func_from_hub_with_fallback

import run_profile
import validation
from llm_profile.errors import UsageError
from llm_profile.layers.slow_path import missing_package
from llm_profile.models.building import ModelOptions, meta_model
from llm_profile.models.patches import ANY_FUNCTION, SCAN_FUNCTION, modelling_functions
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.subject import Subject
from llm_profile.store.files import read_table
from llm_profile.store.table import slow_path
from tests.shrunken import tiny_config
from tests.tiny import CONFIGS, subject

MAMBA = "without causal_conv1d, mamba_ssm"
FLA = "without causal_conv1d, flash-linear-attention"
LOOP = "a Python loop over tokens"

SLOW: dict[str, dict[str, str]] = {
    # row -> reason; none of these packages runs on a CPU, so machines that run these tests on one do not have them
    "falcon_mamba": {"mixer": MAMBA},
    "mamba": {"mixer": MAMBA},
    "mamba2": {"mixer": MAMBA},
    "jamba": {f"linear_attention_{kind}.mamba": MAMBA for kind in ("dense", "moe")},
    "qwen3_next": {"linear_attention.linear_attn": FLA},
    "rwkv": {"block_1.attn": LOOP, "block_2.attn": LOOP},
    "xlstm": {"mlstm_backend": LOOP},
}


def tiny(model_type: str, tokens: int = 20, **options: Any) -> Subject:
    fields = {**tiny_config(model_type).to_dict(), "dtype": "float32"}
    return Subject(SubjectOptions(fields, ModelOptions(1, "cpu", "float32"), tokens, tokens + 1, **options))


@pytest.mark.parametrize("model_type", SLOW)
def test_slow_rows_are_found_with_what_they_lack(model_type: str) -> None:
    opened = tiny(model_type, allow_slow_path=True)
    try:
        assert opened.slow_path == SLOW[model_type]
    finally:
        opened.close()


@pytest.mark.parametrize("name", CONFIGS)
def test_other_models_have_no_slow_rows(name: str) -> None:
    opened = subject(name)
    try:
        assert opened.slow_path == {} and opened.notices == []
        assert "missing_kernels" not in opened.conditions()
    finally:
        opened.close()


def test_experts_may_loop_over_experts() -> None:
    options = ModelOptions(1, "cpu", "float32", experts_implementation="eager")
    many = CONFIGS["mixtral"] | {"num_local_experts": 256}  # so that each further token reaches further experts
    Subject(SubjectOptions(many, options, 32, 32)).close()


def test_a_decode_step_alone_shows_what_is_missing() -> None:
    with pytest.raises(UsageError, match="mixer .without causal_conv1d, mamba_ssm"):
        tiny("mamba", tokens=1)


SWEEP = ["--device", "cpu", "--load-format", "dummy", "--prefill-max", "4", "--decode-max", "4", "--repeat", "2"]
PAIRS = ["--scaling-input-min", "1", "--scaling-input-max", "2", "--scaling-input-step", "1", "--scaling-repeat", "1"]
PAIRS += ["--scaling-tolerance", "1e9"]


def model_folder(model_type: str, folder: Path) -> str:
    config: Any = tiny_config(model_type)
    config.dtype = "float32"
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    return str(folder)


def test_the_command_refuses_and_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folder("qwen3_next", tmp_path / "model")
    assert run_profile.main(["--model", folder, *SWEEP, "--skip-scaling", "--output-dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"linear_attention.linear_attn ({FLA})" in said and "--allow-slow-path" in said
    assert not (tmp_path / "out").exists()


def test_an_allowed_table_is_marked_and_can_be_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folder("qwen3_next", tmp_path / "model")
    asked = ["--model", folder, *SWEEP, "--output-dir", str(tmp_path)]
    assert run_profile.main([*asked, "--skip-scaling", "--allow-slow-path"]) == 0
    told = capsys.readouterr()
    said = f"slow path: linear_attention.linear_attn ({FLA})"
    assert said in told.err and said in told.out
    csv = tmp_path / "CPU" / "model.csv"
    table = read_table(csv)
    assert slow_path(table) == table.meta["runs"][0]["slow_path"] == SLOW["qwen3_next"]
    assert table.meta["conditions"]["missing_kernels"] == FLA.removeprefix("without ")
    assert run_profile.main([*asked, "--skip-scaling"]) == 2, "going on with it takes the flag again"
    assert validation.main(["--csv", str(csv), *PAIRS]) == 0


@pytest.mark.parametrize("model_type", ["falcon_mamba", "zamba2", "qwen3_next", "kimi_linear"])
def test_what_stands_in_for_a_kernel_is_known_as_a_scan(model_type: str) -> None:
    functions = modelling_functions(meta_model(tiny_config(model_type)), ANY_FUNCTION)
    standing_in = {name for _, name, function in functions if missing_package(function)}
    assert standing_in and all(SCAN_FUNCTION.search(name) for name in standing_in), standing_in


@pytest.mark.parametrize(("package", "missing"), [("math", None), ("not_there", "not_there")])
def test_a_package_that_is_there_is_not_missed(package: str, missing: str | None) -> None:
    def sqrt(x: float) -> float:
        return x**0.5

    chosen = use_kernel_func_from_hub_with_fallback("sqrt", package)(sqrt)
    assert chosen(4.0) == 2.0
    assert missing_package(chosen) == missing
    assert missing_package(sqrt) is None
