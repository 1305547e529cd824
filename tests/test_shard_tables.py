"""Tables of tensor parallel degrees: `--tp`, their names and conditions, and what reads them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import run_profile
import validation
from llm_profile.errors import EXIT_USAGE, UsageError
from llm_profile.exporters import BUNDLES
from llm_profile.exporters.bundle import ExportRequest
from llm_profile.models.building import ModelOptions
from llm_profile.models.hub import ModelSource
from llm_profile.passes.loading import subject_options
from llm_profile.points import SweepPoint
from llm_profile.report.roofline import roofline
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from tests.exported_tables import DEPTH, made_up_table, ns

SWEEP = ["--model", "tiny-llama", "--device", "cpu", "--prefill-max", "2", "--decode-max", "1"]
QUICK = ["--repeat", "1", "--precision", "0", "--warmup", "0", "--skip-scaling", "--no-report"]
SMALL = ExportRequest(max_tokens=96, max_sequences=16, max_kv=128)
STEP = SweepPoint(40, 0)


def run(folder: Path, *words: str) -> int:
    return run_profile.main([*SWEEP, *QUICK, "--output-dir", str(folder), *words])


def test_each_degree_has_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--tp", "1,2") == 0
    whole, shard = (read_table(tmp_path / "CPU" / f"tiny-llama{suffix}.csv") for suffix in ("", "-tp2"))
    assert (whole.model, shard.model) == ("tiny-llama", "tiny-llama-tp2")
    assert (whole.conditions["tp"], shard.conditions["tp"]) == (1, 2)
    assert {**whole.conditions, "tp": 2} == shard.conditions
    assert (whole.row_names(), whole.points()) == (shard.row_names(), shard.points())
    written = (tmp_path / "CPU" / "tiny-llama-tp2.csv").read_bytes()
    assert run(tmp_path, "--tp", "2") == 0
    assert (tmp_path / "CPU" / "tiny-llama-tp2.csv").read_bytes() == written
    capsys.readouterr()
    assert validation.main(["--csv", str(tmp_path / "CPU" / "tiny-llama-tp2.csv")]) == EXIT_USAGE
    assert "a shard cannot be validated" in capsys.readouterr().err
    assert "1 of 2" not in (why := roofline(shard).why_not or "")
    assert "2 ranks" in why


def test_degree_one_is_the_table_that_there_was(tmp_path: Path) -> None:
    fake = [*SWEEP, *QUICK, "--device", "fake"]
    for folder, words in (("flat", []), ("tp", ["--tp", "1"])):
        assert run_profile.main([*fake, "--output-dir", str(tmp_path / folder), *words]) == 0
    csvs = [(tmp_path / folder / "FAKE" / "tiny-llama.csv").read_bytes() for folder in ("flat", "tp")]
    assert csvs[0] == csvs[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tp", "1,3"], "--tp 3: does not divide the 8 attention heads of llama; use 1, 2, 4 or 8"),
        (["--tp", "0"], "--tp 0: must be a whole number from 1 to 1024"),
        (["--tp", "2,x"], "'2,x' is no list of whole numbers such as 1,2,4"),
        (["--tp", "1,2", "--json"], "--json: prints one document, of one table; give --tp one degree"),
        (["--tp", "2", "--device", "fake"], "--tp 2: made-up times have no shards"),
    ],
)
def test_refusals(words: Sequence[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, *words) == EXIT_USAGE
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert not list(tmp_path.rglob("*.csv"))


def test_a_shard_is_not_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_profile.main([*SWEEP, "--output-dir", str(tmp_path), "--tp", "1,2"]) == EXIT_USAGE
    assert "--tp 2: a shard cannot be validated against the whole model on one GPU; add --skip-scaling" in (
        capsys.readouterr().err
    )
    assert not list(tmp_path.rglob("*.csv"))


def test_quantised_weights_are_not_divided() -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    source = ModelSource("org/model", config, "hub", weights_file="model.safetensors")
    with pytest.raises(UsageError, match=r"^--tp 2: the weights of org/model are quantised \(gptq\), and only plain"):
        subject_options(source, ModelOptions(1, "cpu", tp=2), max_input=1, max_total=1)


def test_a_plan_has_each_degree_and_its_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of Llama-3.1-8B: 2 x 128,256 x 4,096 outside the blocks; per block 218,103,808 in matrices, and two norms."""
    words = ["--model", "meta-llama/Llama-3.1-8B", "--tp", "1,16", "--dtype", "bfloat16", "--plan", "--hardware", "X"]
    assert run_profile.main([*SWEEP[2:], *QUICK, "--output-dir", str(tmp_path), *words]) == 0
    said = capsys.readouterr().out
    assert "shard: one of 16 tensor parallel ranks" in said
    assert "Llama-3.1-8B-tp16.csv" in said
    # 16 ranks share 8 heads of keys, so each rank has one of them: twice a sixteenth
    keys = 2 * 8 * 128 * 4096
    matrices = (2 * 128_256 * 4096 + 218_103_808 - keys) / 16 + keys / 8
    assert f"weights of a shard {2 * (matrices + 3 * 4096) / 2**30:.2f} GiB" in said


# ---- exporters


def tables_of(family: str, *degrees: int) -> list[LatencyTable]:
    """Made-up tables of a model, whose times of degree n are an n-th."""
    made = []
    for degree in degrees:
        table = made_up_table(family)
        table.meta["conditions"] = {"seed": 0, "tp": degree}
        if degree > 1:
            table.model = table.meta["model"] = f"{table.model}-tp{degree}"
            table.records = {
                point: replace(record, rows={name: _part(row, degree) for name, row in record.rows.items()})
                for point, record in table.records.items()
            }
        made.append(table)
    return made


def _part(row: Any, degree: int) -> Any:
    measured = row.measurement
    names = ("trimmed_mean_ns", "min_ns", "q1_ns", "median_ns", "q3_ns", "max_ns")
    return replace(row, measurement=replace(measured, **{name: getattr(measured, name) / degree for name in names}))


BLOCK_ROWS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("form", ["llmservingsim-1.0", "llmservingsim-1.1", "vidur"])
def test_exporters_take_all_degrees(form: str) -> None:
    tables = tables_of("llama", 1, 2, 4)
    bundle = BUNDLES[form].export(tables, SMALL)
    assert [(target.model, target.tp) for target in bundle.targets] == [("org/llama-8b", tp) for tp in (1, 2, 4)]
    for target, table in zip(bundle.targets, tables, strict=True):
        version = BUNDLES[form].versions[-1] if BUNDLES[form].versions else None
        layers = BUNDLES[form].step(bundle.files.__getitem__, STEP, replace(target, version=version))
        priced = {layer.layer: layer.total_ns for layer in layers}
        name = {"vidur": "mlp_down_proj"}.get(form, "down_proj")
        wanted = ns(table, "down_proj", STEP)
        assert priced[name] == pytest.approx(max(wanted, DEPTH), abs=DEPTH)
    assert not any("-tp" in path for path in bundle.files)


def test_the_bundle_of_main_says_its_degrees() -> None:
    bundle = BUNDLES["llmservingsim-1.1"].export(tables_of("mixtral", 1, 2), SMALL)
    (meta,) = (content.decode() for path, content in bundle.files.items() if path.endswith("meta.yaml"))
    assert "tp_degrees:\n- 1\n- 2\n" in meta
    assert [path.split("/")[-2] for path in bundle.files if path.endswith("/moe.csv")] == ["tp1"]
    with pytest.raises(UsageError, match="export it together with the table of --tp 1, org/llama-8b.csv"):
        BUNDLES["llmservingsim-1.1"].export(tables_of("llama", 2), SMALL)


def test_what_simulators_do_not_read_is_refused() -> None:
    with pytest.raises(UsageError, match="divides the rows of one GPU itself; export the table of --tp 1"):
        BUNDLES["llmservingsim-0.2"].export(tables_of("llama", 2), SMALL)
    with pytest.raises(UsageError, match="deals whole experts to tensor parallel ranks"):
        BUNDLES["llmservingsim-1.0"].export(tables_of("mixtral", 2), ExportRequest(8, 8, 64))
    for form in ("llmservingsim-1.0", "vidur"):
        with pytest.raises(UsageError, match="a folder is of one model"):
            BUNDLES[form].export([*tables_of("llama", 1), *tables_of("qwen3", 2)], SMALL)
        with pytest.raises(UsageError, match="a folder is of one model"):
            BUNDLES[form].export([*tables_of("llama", 2), *tables_of("llama", 2)], SMALL)
