"""Absurd values in options and config.json files: each is refused in one line, before anything takes much memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import run_profile
from llm_profile.errors import UsageError
from llm_profile.models import construction, memory
from llm_profile.models.building import make_config, meta_model
from llm_profile.models.memory import available_bytes
from llm_profile.models.model_errors import as_usage_error
from tests.tiny import CONFIGS

LLAMA = CONFIGS["llama"] | {"dtype": "float32"}
SMALL = ["--load-format", "dummy", "--skip-scaling", "--prefill-max", "3", "--decode-max", "3", "--repeat", "1"]
HUGE = str(10**21)


def refusal(capsys: pytest.CaptureFixture[str], tmp_path: Path, *options: str) -> str:
    """Run run_profile.py, which must exit with 2. Returns the one line that says why."""
    assert run_profile.main([*SMALL, "--output-dir", str(tmp_path / "out"), *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run_profile.py: ")]
    return line


def folder_of(tmp_path: Path, config: str | dict[str, Any]) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(folder)


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


DEEP: dict[str, str] = {
    "a list": nested(10_000),
    "an object": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "a list that can be read": nested(60),
    "lists in objects": nested(40, '{"a":[', "]}"),
}


@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("option", ["--plan", "--device=fake", "--device=cpu"])
def test_deep_json(deep: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder_of(tmp_path, json.dumps(LLAMA)[:-1] + f', "a": {deep}}}')
    assert "nest" in refusal(capsys, tmp_path, "--model", model, option)


def test_deep_json_in_our_own_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--model", "tiny-llama", "--device", "fake"]
    assert run_profile.main([*SMALL, "--output-dir", str(tmp_path / "out"), *run]) == 0
    capsys.readouterr()
    (tmp_path / "out" / "FAKE" / "tiny-llama.meta.json").write_text(nested(10_000))
    assert "damaged" in refusal(capsys, tmp_path, *run)


@pytest.mark.parametrize(
    "name", ["x" * 5_000, "x" * 300, "a/" * 3_000 + "b", "é" * 200 + "/b", "a\0b", "~nobody-of-that-name/model"]
)
def test_names_that_no_file_system_takes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = refusal(capsys, tmp_path, "--model", name, "--device", "fake")
    assert "--model " in line and len(line) < 600


@pytest.mark.parametrize("model_type", [["llama"], {"llama": 1}, 7, True])
@pytest.mark.parametrize("option", ["--plan", "--device=fake", "--device=cpu"])
def test_a_model_type_is_a_name(
    model_type: object, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder_of(tmp_path, LLAMA | {"model_type": model_type})
    assert f"its model_type is {model_type}, " in refusal(capsys, tmp_path, "--model", model, option)


def test_a_nested_model_type_is_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder_of(tmp_path, {"model_type": "llava", "text_config": LLAMA | {"model_type": ["llama"]}})
    assert "its model_type is ['llama'], " in refusal(capsys, tmp_path, "--model", model, "--plan")


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("llama", {"vocab_size": 10**12}),
        ("llama", {"hidden_size": 2**20, "intermediate_size": 2**24}),
        ("mixtral", {"num_local_experts": 10**9}),
        ("opt", {"max_position_embeddings": 10**12}),
    ],
)
def test_weights_that_the_host_cannot_hold(
    model: str, sizes: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, CONFIGS[model] | {"dtype": "float32"} | sizes)
    line = refusal(capsys, tmp_path, "--model", folder, "--device", "cpu")
    assert "the weights need" in line and "GiB of memory are left" in line and "--num-layers" in line


def test_the_size_that_is_told_is_that_of_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # an embedding and a head of 2**34 x 64 numbers of 4 bytes: 8 TiB; all else is below half a MiB
    folder = folder_of(tmp_path, LLAMA | {"vocab_size": 2**34})
    assert "need 8,192.0 GiB" in refusal(capsys, tmp_path, "--model", folder, "--device", "cpu")


def test_a_cache_that_the_host_cannot_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 10 * 2**20)
    folder = folder_of(tmp_path, LLAMA)
    lengths = ["--decode-max", "200000", "--decode-step", "200000"]
    line = refusal(capsys, tmp_path, "--model", folder, "--device", "cpu", *lengths)
    assert "the keys of a block need" in line and "--decode-max" in line


def test_the_host_has_memory_left() -> None:
    assert 2**28 < available_bytes() < 2**50


def test_memory_that_runs_out_while_a_model_is_opened() -> None:
    told = r"llama does not fit in memory \(MemoryError\); use fewer blocks"
    with pytest.raises(UsageError, match=told), as_usage_error("llama", "check it"):
        raise MemoryError


@pytest.mark.parametrize("options", [["--prefill-max", HUGE], ["--prefill-max", HUGE, "--prefill-step", HUGE]])
@pytest.mark.parametrize("more", [[], ["--mode", "decode"], ["--plan"]])
def test_huge_prompts(options: list[str], more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, tmp_path, "--model", "tiny-llama", "--device", "cpu", *options, *more)
    assert f"--prefill-max {HUGE}: " in line


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--decode-max", HUGE, "--decode-step", HUGE], "--decode-max"),
        (["--decode-max", "100000001", "--decode-step", "100000001"], "--decode-max"),
        (["--num-layers", HUGE], "--num-layers"),
        (["--seed", HUGE], "--seed"),
        (["--prefill-max", "9" * 5_000], "--prefill-max"),
    ],
)
def test_huge_numbers(options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        line = refusal(capsys, tmp_path, "--model", "tiny-llama", "--device", "cpu", *options)
    except SystemExit as refused:  # argparse itself refuses more digits than Python converts to an integer
        assert refused.code == 2
        line = capsys.readouterr().err
    assert told in line


def test_huge_steps_leave_the_ends(tmp_path: Path) -> None:
    steps = ["--prefill-step", HUGE, "--decode-step", HUGE]
    command = ["--model", "tiny-llama", "--device", "cpu", "--output-dir", str(tmp_path), *SMALL, *steps]
    assert run_profile.main(command) == 0


@pytest.mark.parametrize("field", ["num_hidden_layers", "n_layer", "encoder_layers", "num_blocks"])
@pytest.mark.parametrize("value", [1_001, 10**9, 10**30, float("inf")])
@pytest.mark.parametrize("inside", [False, True])
def test_more_blocks_than_any_model_has(
    field: str, value: float, inside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**LLAMA, "text_config": {field: value}} if inside else {**LLAMA, field: value}
    model = folder_of(tmp_path, config)
    assert f"its {field} is " in refusal(capsys, tmp_path, "--model", model, "--device", "cpu")


def test_a_constructor_that_makes_modules_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(LLAMA)
    made = sum(1 for _ in meta_model(config).modules())
    monkeypatch.setattr(construction, "MOST_MODULES", made // 2)
    with pytest.raises(UsageError, match=f"^--model: it has more than {made // 2} modules"):
        meta_model(config)
    torch.nn.Sequential(*(torch.nn.Identity() for _ in range(made)))  # outside of meta_model, modules are not counted
