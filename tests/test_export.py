"""`run_profile.py export`: what it writes, what it refuses, what it prints of a step."""

import json
from pathlib import Path
from typing import Any

import pytest

import run_profile
from llm_profile.cli.export_steps import parse_step
from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, UsageError
from llm_profile.exporters import BUNDLES, folder
from llm_profile.exporters.folder import write_bundle
from llm_profile.points import SweepPoint
from llm_profile.store.paths import TablePaths
from llm_profile.validation.scripting import apply_scaling_to_latency_csv
from tests.exported_tables import made_up_table
from tests.table_samples import write

FORM = "llmservingsim-0.2"
LATER = "llmservingsim-1.0"
REACH = ["--max-tokens", "96", "--max-kv", "128", "--max-sequences", "4"]


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("tables"))


def written(base: Path, **meta: Any) -> Path:
    """A table of a Llama on disk."""
    table = made_up_table("llama", **meta)
    paths = TablePaths.of(base, table.hardware, table.model)
    write(table, paths)
    return paths.csv


def export(*words: object, form: str = FORM) -> int:
    return run_profile.main(["export", "--format", form, *map(str, words)])


def files_in(base: Path) -> set[str]:
    return {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()}


def test_an_export_is_the_bundle_and_what_has_to_be_known_of_it(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("--output", tmp_path / "out", csv, *REACH) == EXIT_COMPLETE
    assert files_in(tmp_path / "out") == {
        "perf_model/H200.csv",
        "perf_model/H200.llm-profile.json",
        "model_configs/org/llama-8b.json",
    }
    about = json.loads((tmp_path / "out/perf_model/H200.llm-profile.json").read_text())
    assert about["kernels"] == "transformers' own"
    assert about["tables"][0]["scaling"] is None and about["tables"][0]["clock"] == "gpu-kernel"
    assert about["asked"]["max_tokens"] == 96 and about["format"] == FORM
    printed = capsys.readouterr().out
    assert "kernels: transformers' own" in printed and "not scaled" in printed
    assert about["notes"] and not [note for note in about["notes"] if note not in printed]


def test_the_same_export_again_changes_nothing(csv: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert export("--output", tmp_path, csv, *REACH) == EXIT_COMPLETE


def test_files_that_are_there_are_replaced_only_if_told(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "perf_model/H200.csv"
    there.parent.mkdir()
    there.write_text("mine")
    assert export("--output", tmp_path, csv, *REACH) == EXIT_USAGE
    assert "perf_model/H200.csv already; --overwrite" in capsys.readouterr().err
    assert files_in(tmp_path) == {"perf_model/H200.csv"} and there.read_text() == "mine"
    assert export("--output", tmp_path, csv, *REACH, "--overwrite") == EXIT_COMPLETE
    assert there.read_text().startswith("hardware,model,")


def test_scaled_tables_are_named_with_their_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = written(tmp_path / "tables")
    assert export("--scaled", "--output", tmp_path / "none", csv, *REACH) == EXIT_USAGE
    assert "validation.py" in capsys.readouterr().err
    apply_scaling_to_latency_csv(csv, 3.0, details={"runtime": "cuda-graph"})
    for name, words in {"measured": (), "scaled": ("--scaled",)}.items():
        assert export(*words, "--output", tmp_path / name, csv, *REACH) == EXIT_COMPLETE
    assert "scaled for cuda-graph" in capsys.readouterr().out
    about = json.loads((tmp_path / "scaled/perf_model/H200.llm-profile.json").read_text())
    assert about["tables"][0]["scaling"]["runtime"] == "cuda-graph"
    lines = {
        name: (tmp_path / name / "perf_model/H200.csv").read_text().splitlines() for name in ("measured", "scaled")
    }
    key = "H200,org/llama-8b,q_proj,7,0,"
    once, thrice = (next(int(line.removeprefix(key)) for line in of if line.startswith(key)) for of in lines.values())
    assert thrice == 3 * once


@pytest.mark.parametrize(
    ("meta", "option", "said"),
    [
        ({"clock": "cpu-wall"}, "--allow-cpu", "wall times of a CPU"),
        ({"clock": "fake"}, "--allow-predicted", "its clock is fake"),
        ({"origin": "predicted"}, "--allow-predicted", "predicted, not measured"),
    ],
)
def test_numbers_that_are_not_of_a_gpu_are_exported_only_if_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], meta: dict[str, Any], option: str, said: str
) -> None:
    csv = written(tmp_path / "tables", **meta)
    assert export("--output", tmp_path / "out", csv, *REACH) == EXIT_USAGE
    told = capsys.readouterr().err
    assert said in told and option in told and not (tmp_path / "out").exists()
    assert export("--output", tmp_path / "out", csv, *REACH, option) == EXIT_COMPLETE


@pytest.mark.parametrize("form", BUNDLES)
def test_a_missing_point_leaves_nothing_behind(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert export("--output", tmp_path / "out", csv, "--max-tokens", "4096", form=form) == EXIT_USAGE
    assert "org/llama-8b on H200: lacks input " in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "out"], "no table was given"),
        (["TABLE"], "say where the files go"),
        (["TABLE", "--output", "out", "--into", "out"], "give one of them"),
        (["TABLE", "--into", "."], "inference_serving/generate_trace.py"),
        (["TABLE", "--output", "out", "--max-tokens", "0"], "at least 1"),
        (["TABLE", "--output", "out", "--simulator-version", "9"], "llmservingsim-0.2 has no versions"),
        (["TABLE", "--output", "out", "--check", "E:5"], "not a sequence"),
        (["--bundle", ".", "--check", "P:1"], "needs --check, --hardware and --model"),
        (["--bundle", ".", "--check", "P:1", "--hardware", "H", "--model", "m", "TABLE"], "leave out tables"),
        (["--bundle", ".", "--check", "P:1", "--hardware", "H", "--model", "m"], "no perf_model/H.csv"),
        (["--bundle", ".", "--check", "P:1", "--hardware", "H", "--model", "m", "--tp", "0"], "--tp 0"),
    ],
)
def test_command_lines_that_make_no_sense(
    csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert export(*(csv if word == "TABLE" else word for word in words)) == EXIT_USAGE
    assert said in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def simulator(base: Path, form: str) -> Path:
    marker = base / BUNDLES[form].marker
    marker.parent.mkdir(parents=True)
    marker.touch()
    return base


def test_into_a_simulator_keeps_its_own_configuration_of_the_model(csv: Path, tmp_path: Path) -> None:
    base = simulator(tmp_path, FORM)
    config = base / "model_configs/org/llama-8b.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"num_hidden_layers": 3, "hidden_size": 64, "of_its_own": True}))
    assert export("--into", base, csv, *REACH) == EXIT_COMPLETE
    assert json.loads(config.read_text())["of_its_own"]


def test_another_model_of_that_name_is_not_replaced(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = simulator(tmp_path, FORM)
    config = base / "model_configs/org/llama-8b.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"num_hidden_layers": 4}))
    assert export("--into", base, csv, *REACH) == EXIT_USAGE
    assert "has model_configs/org/llama-8b.json already" in capsys.readouterr().err
    assert not (base / "perf_model").exists()


def test_files_that_the_simulator_would_prefer_are_removed_only_if_told(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = simulator(tmp_path, LATER)
    stale = base / "llm_profile/perf_models/H200/org/llama-8b/tp1/predictions/attn_decode_prediction_dict.pkl"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert export("--into", base, csv, *REACH, form=LATER) == EXIT_USAGE
    assert "attn_decode_prediction_dict.pkl already" in capsys.readouterr().err
    assert export("--into", base, csv, *REACH, "--overwrite", form=LATER) == EXIT_COMPLETE
    assert not stale.exists() and (stale.parent / "attn_decode_predictions.csv").is_file()


@pytest.mark.parametrize("form", [FORM, LATER])
def test_a_check_prints_the_layers_of_each_step(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """With the export, of the files, and without writing any: all the same."""
    of_files = ["--hardware", "H200", "--model", "org/llama-8b"]
    check = ["--check", "P:32 D:5", "--check", "3xD:63"]
    printed = []
    for words in (["--output", tmp_path, csv, *REACH], ["--bundle", tmp_path, *of_files], [csv, *REACH]):
        assert export(*words, *check, form=form) == EXIT_COMPLETE
        lines = capsys.readouterr().out.splitlines()
        printed.append(lines[next(i for i, line in enumerate(lines) if " ms without communication" in line) :])
    assert printed[0] == printed[1] == printed[2]
    heads = [line for line in printed[0] if not line.startswith("  ")]
    assert "2 sequences of input 33, kv_cache 5 in all" in heads[0] and "input 1, kv_cache 63, batch 3" in heads[1]
    ms = [float(head.split()[-4]) for head in heads]
    us = [float(line.split()[-3].replace(",", "")) for line in printed[0] if line.startswith("  ")]
    assert sum(us) / 1000 == pytest.approx(sum(ms), abs=0.01)


def test_a_check_of_damaged_files_says_so(csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("--output", tmp_path, csv, *REACH) == EXIT_COMPLETE
    (tmp_path / "model_configs/org/llama-8b.json").write_text("{")
    of_files = ["--bundle", tmp_path, "--hardware", "H200", "--model", "org/llama-8b"]
    assert export(*of_files, "--check", "P:1") == EXIT_USAGE
    assert "damaged" in capsys.readouterr().err


def test_files_of_others_are_read_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines as Windows ends them, another order of columns, a column more."""
    layers = ["embedding", "input_layernorm", "q_proj", "k_proj", "v_proj", "rope", "attn", "o_proj", "post_layernorm"]
    layers += ["gate_proj", "up_proj", "act_fn", "down_proj", "final_layernorm", "lm_head"]
    lines = ["model,hardware,layer_name,kv_cache,input,latency(ns),more"]
    lines += [f"a/llama,A6000,{layer},0,4,{1000 * number},x" for number, layer in enumerate(layers, 1)]
    (tmp_path / "perf_model").mkdir()
    (tmp_path / "perf_model/A6000.csv").write_text("\r\n".join(lines), newline="")
    (tmp_path / "model_configs/a").mkdir(parents=True)
    (tmp_path / "model_configs/a/llama.json").write_text('{"num_hidden_layers": 2}')
    of_files = ["--bundle", tmp_path, "--hardware", "A6000", "--model", "a/llama"]
    assert export(*of_files, "--check", "P:4") == EXIT_COMPLETE
    # 1 + 14 + 15 us outside of blocks, 2 + ... + 13 us in each of two blocks
    assert ": 0.210 ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("P:128", SweepPoint(128, 0)),
        ("D:300", SweepPoint(1, 300)),
        ("P:64@512", SweepPoint(64, 512)),
        ("64xD:128", SweepPoint(1, 128, 64)),
        ("D:1024  P:128 D:300", SweepPoint.of([(128, 0), (1, 300), (1, 1024)])),
    ],
)
def test_steps_of_the_command_line(text: str, point: SweepPoint) -> None:
    assert parse_step(text) == point


@pytest.mark.parametrize("text", ["", " ", "P:0", "D:0", "0xD:1", "P:-1", "D:1@5", "P:1,D:2", "P:9999999999", "128"])
def test_no_step(text: str) -> None:
    with pytest.raises(UsageError, match="--check"):
        parse_step(text)


def test_a_failure_on_the_way_leaves_no_half_of_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole = folder.write_whole

    def full_disk(path: Path, data: bytes) -> None:
        if path.name == "b":
            raise OSError(28, "No space left on device")
        write_whole(path, data)

    monkeypatch.setattr(folder, "write_whole", full_disk)
    for there in (False, True):
        if there:
            (tmp_path / "out").mkdir()
        with pytest.raises(UsageError, match="No space"):
            write_bundle({"a": b"1", "b": b"2"}, tmp_path / "out", overwrite=False)
        assert files_in(tmp_path) == set()


@pytest.mark.parametrize("path", ["/a", "../a", "a/../../b"])
def test_no_file_is_written_outside(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match="leads out"):
        write_bundle({path: b""}, tmp_path / "out", overwrite=True)
    assert not [*tmp_path.iterdir()]
