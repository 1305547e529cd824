"""What a plan says, and that it is quick and light."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_profile.cli import planning
from llm_profile.cli.planning import plan_lines
from llm_profile.errors import UsageError
from llm_profile.models.hub import ModelSource
from llm_profile.points import SweepPoint
from llm_profile.request import Request, ScalingRequest
from llm_profile.sweep import Sweep, plan
from tests import tiny

ROOT = Path(__file__).parent.parent
LLAMA = "meta-llama/Llama-3.1-8B"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def lines(folder: Path, model: str = LLAMA, **fields: Any) -> list[str]:
    return plan_lines(Request(model, output_dir=folder, **({"hardware": "H200"} | fields)))


def metadata(folder: Path, name: str, runs: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.meta.json").write_text(runs if isinstance(runs, str) else json.dumps({"runs": runs}))


def test_a_plan_takes_less_than_a_second_and_no_torch(tmp_path: Path) -> None:
    """Processor time, so that a busy machine does not fail it."""
    code = (
        "import sys, time, run_profile; code = run_profile.main(sys.argv[1:]);"
        "print(code, time.process_time(), *({'torch', 'transformers', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    arguments = ["--model", LLAMA, "--plan", "--output-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "0" and float(last[1]) < 1 and last[2:] == []
    assert list(tmp_path.iterdir()) == []


def test_the_documented_sweep(tmp_path: Path) -> None:
    scaling = ScalingRequest(tuple((i, o) for i in range(128, 1025, 128) for o in range(128, 1025, 128)))
    assert lines(tmp_path, scaling=scaling) == [
        f"model: {LLAMA} (configuration from table), 1 decoder block(s) of each kind",
        f"table: {tmp_path}/H200/{LLAMA}.csv",
        "points: 2048 prefill, 2048 decode, 0 of them known",
        "memory: about 7.2 GiB on the device (bfloat16)",
        "time: unknown until the first batch",
        "validation: 64 (input, output) pairs against the real model (eager)",
    ]


def test_memory_follows_the_type_and_is_unknown_for_unknown_models(tmp_path: Path) -> None:
    assert "memory: about 14.4 GiB on the device (float32)" in lines(tmp_path, dtype="float32")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "new", "num_hidden_layers": 3}))
    assert "memory: unknown" in lines(tmp_path, str(tmp_path))


def test_memory_is_that_of_the_blocks_of_each_kind(tmp_path: Path) -> None:
    """One dense block of DeepSeek-V3 and one with experts: 1.1 GiB, and 21.4 GiB, beside 3.5 GiB of embeddings."""
    (memory,) = (line for line in lines(tmp_path, "deepseek-ai/DeepSeek-V3", device="cpu") if line.startswith("memory"))
    assert 26 < float(memory.split()[2]) < 29


def test_time_comes_from_the_latest_run_that_came_to_its_end(tmp_path: Path) -> None:
    sweep = Sweep("prefill", 100)
    metadata(tmp_path / "H200" / "org", "one", [{"started": "2026-01-01", "seconds": 100.0, "points": 100}])
    assert "time: about 100 s for the sweep" in lines(tmp_path, sweep=sweep)
    metadata(tmp_path / "H200", "two", [{"started": "2026-01-02", "seconds": 20.0, "points": 100}])
    metadata(tmp_path / "H200", "three", [{"started": "2026-01-03", "points": 100}])  # killed
    metadata(tmp_path / "H200", "four", [{"started": "2026-01-04", "seconds": 1.0, "points": 0}])
    metadata(tmp_path / "A100", "five", [{"started": "2026-01-05", "seconds": 1.0, "points": 100}])
    assert "time: about 20 s for the sweep" in lines(tmp_path, sweep=sweep)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"runs": 3}', '{"runs": [3, {"started": 1, "seconds": "x"}]}'])
def test_foreign_files_say_nothing_about_time(tmp_path: Path, content: str) -> None:
    metadata(tmp_path / "H200", "foreign", content)
    assert "time: unknown until the first batch" in lines(tmp_path)


def test_points_beyond_the_positions_of_each_sort_of_model(tmp_path: Path) -> None:
    def unusual(**fields: Any) -> list[str]:
        (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, **fields}))
        return [line for line in lines(tmp_path, str(tmp_path), sweep=Sweep("both", 12, 12)) if line.startswith("  ")]

    learned, rotary = tiny.CONFIGS["opt"], tiny.CONFIGS["llama"]
    assert unusual(**learned | {"max_position_embeddings": 10}) == [
        "  5 of 24 points will be missing: beyond the model's 10 learned positions"
    ]
    told = "5 of 24 points go beyond the model's 10 positions; they are timed too"
    assert unusual(**rotary | {"max_position_embeddings": 10}) == [f"  {told}"]
    assert unusual(model_type="new", max_position_embeddings=10) == [
        f"  {told}, or left out where positions are learned"
    ]
    assert unusual(model_type="new") == []


@pytest.mark.parametrize("config", tiny.CONFIGS.values(), ids=tiny.CONFIGS)
def test_learned_positions_are_those_of_the_model(config: dict[str, Any]) -> None:
    """What the configuration tells is what the walk over the live model finds."""
    name = next(name for name, fields in tiny.CONFIGS.items() if fields is config)
    subject = tiny.subject(name, num_layers=3)
    try:
        assert planning.learned_positions(config) == subject.layout.learned_positions
    finally:
        subject.close()


def test_hardware_is_named_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda index: ["NVIDIA H200", "NVIDIA GeForce RTX 3090"][index],
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert f"table: {tmp_path}/RTX3090/{LLAMA}.csv" in lines(tmp_path, hardware=None, device="cuda:1")
    unknown = "table: <hardware>/<model>.csv, the folder named after the device"
    assert unknown in lines(tmp_path, hardware=None, device="cuda:2"), "there is none"
    assert f"table: {tmp_path}/CPU/{LLAMA}.csv" in lines(tmp_path, hardware=None, device="cpu")


@pytest.mark.parametrize(
    ("request_", "source", "name"),
    [
        (Request("x"), ModelSource("org/model", {}, "hub"), "org/model"),
        (Request("x"), ModelSource("some/where", {}, "folder", path=Path("some/where")), "where"),
        (Request("x", model_name="mine"), ModelSource("org/model", {}, "hub"), "mine"),
    ],
)
def test_what_tables_are_called(request_: Request, source: ModelSource, name: str) -> None:
    assert planning.table_name(request_, source) == name


def test_a_folder_given_as_a_dot_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.CONFIGS["llama"]))
    monkeypatch.chdir(tmp_path)
    assert f"table: H200/{tmp_path.name}.csv" in lines(Path("."), ".")


def test_a_plan_says_how_little_of_an_adaptive_grid_is_measured(tmp_path: Path) -> None:
    metadata(tmp_path / "H200" / "org", "one", [{"started": "2026-01-01", "seconds": 100.0, "points": 100}])
    said = lines(tmp_path, LLAMA, sweep=Sweep(grid="adaptive"))
    assert "  615 of them are measured at most, the others interpolated" in said
    assert "time: about 615 s for the sweep" in said


def test_records_hold_what_was_asked_and_no_token() -> None:
    record = planning.run_record(Request("x", Sweep("prefill", 3), hf_token="secret"), {"host": "here"})
    assert record["sweep"] == {"mode": "prefill", "prefill_max": 3, "decode_max": 2048} | {
        "prefill_step": 1,
        "decode_step": 1,
        "grid": "full",
    }
    assert (record["warmup"], record["repeat"], record["precision"], record["host"]) == (10, 100, 0.01, "here")
    assert "secret" not in json.dumps(record)
    source = ModelSource("org/model", {"model_type": "llama"}, "hub", "c" * 40, weights_file="model.safetensors")
    kept = {"name": "org/model", "origin": "hub", "revision": "c" * 40}
    assert planning.model_record(source) == {"source": kept, "config": {"model_type": "llama"}}


def test_longer_than_trained_is_one_warning_for_points_that_run() -> None:
    laid_out = plan(Sweep("both", 12, 12))
    assert planning.beyond_training({"max_position_embeddings": 13}, laid_out) is None
    assert planning.beyond_training({}, laid_out) is None
    nested = {"text_config": {"max_position_embeddings": 12}}
    assert str(planning.beyond_training(nested, laid_out)).startswith(
        "1 of 24 points go beyond the model's 12 positions"
    )
    unrunnable = plan(Sweep("both", 12, 12), learned_positions=12)
    assert list(unrunnable.unrunnable) == [SweepPoint(1, 12)]
    assert planning.beyond_training(nested, unrunnable) is None


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_layer": 4},
        {"model_type": "mpt", "n_layers": 4},
        {"model_type": "llava", "text_config": {"model_type": "gpt2", "n_layer": 4}},
        {"model_type": "nemotron_h", "hybrid_override_pattern": "M*M-"},
        {"model_type": "bart", "encoder_layers": 60, "decoder_layers": 4, "is_decoder": True},
    ],
)
def test_a_plan_refuses_more_blocks_than_there_are_by_any_name(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="--num-layers 50: the model has 4 blocks; use 1 to 4"):
        lines(tmp_path, str(tmp_path), num_layers=50)
    lines(tmp_path, str(tmp_path), num_layers=4)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_layer": 4, "n_positions": 10},
        {"model_type": "mpt", "n_layers": 4, "max_seq_len": 10},
        {"model_type": "whisper", "decoder_layers": 4, "max_target_positions": 10},
        {"model_type": "llava", "text_config": {"model_type": "gpt2", "n_positions": 10}},
    ],
)
def test_a_plan_tells_positions_by_any_name(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = lines(tmp_path, str(tmp_path), sweep=Sweep("both", 12, 12))
    assert any("5 of 24 points go beyond the model's 10 positions" in line for line in told)


@pytest.mark.parametrize(
    ("folder", "given", "name"),
    [
        ("somewhere/0123abc", "my-granite", "my-granite"),
        ("hub/models--ibm--granite/snapshots/0123abc", "my-granite", "my-granite"),
        ("hub/models--ibm--granite/snapshots/0123abc", "hub/models--ibm--granite/snapshots/0123abc", "ibm/granite"),
        ("hub/models--ibm--granite/snapshots/0123abc", "hub/models--ibm--granite/snapshots/0123abc/", "ibm/granite"),
        ("hub/models--gpt2/snapshots/0123abc", "hub/models--gpt2/snapshots/0123abc", "gpt2"),
        ("snapshots/0123abc", "./snapshots/0123abc", "0123abc"),
        ("one/two", "one/two/.", "two"),
        ("one/two", "one/two/../two", "two"),
    ],
)
def test_a_folder_goes_by_its_own_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, given: str, name: str
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "config.json").write_text(json.dumps(tiny.CONFIGS["llama"]))
    if not (tmp_path / given).exists():
        (tmp_path / given).symlink_to(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    assert f"table: H200/{name}.csv" in lines(Path("."), f"./{given}")


def test_dots_lead_to_the_name_of_where_they_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abc"
    (snapshot / "inner").mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(tiny.CONFIGS["llama"]))
    for place, given in ((snapshot, "."), (snapshot / "inner", "..")):
        monkeypatch.chdir(place)
        assert f"table: {tmp_path}/H200/org/name.csv" in lines(tmp_path, given)


def test_a_plan_refuses_a_config_without_a_type_as_the_run_does(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OPTForCausalLM"], "num_hidden_layers": 2}))
    with pytest.raises(UsageError, match=r'no model_type.*"opt"'):
        lines(tmp_path, str(tmp_path))
