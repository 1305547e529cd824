"""Predicted tables: physics that holds whatever is learned, and files that nobody takes for measurements."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import run_profile
from llm_profile.errors import UsageError
from llm_profile.exporters.flat_csv import flat_csv
from llm_profile.gpus import GPUS
from llm_profile.points import SweepPoint
from llm_profile.prediction.base import base_ns
from llm_profile.prediction.card import KERNEL_SHARES, Card
from llm_profile.prediction.gpu_spec import find_gpu, read_gpu
from llm_profile.prediction.predict import PredictionTarget, Predictor, predict_table
from llm_profile.prediction.row_work import RowWork, row_work
from llm_profile.prediction.training import TrainingTable, read_any_table, training_table
from llm_profile.store.files import read_table, write_table
from llm_profile.store.paths import TablePaths
from llm_profile.sweep import Sweep
from llm_profile.work import Model

ROOT = Path(__file__).parent.parent
MIXTRAL = ROOT / "H200/mistralai/Mixtral-8x7B-v0.1.csv"
QWEN = ROOT / "H200/Qwen/Qwen3-8B.measured.parquet"
POINTS = [SweepPoint(n, 0) for n in (1, 7, 16, 100, 300, 2048)] + [SweepPoint(1, k) for k in (1, 100, 2048)]
CARDS = {name: Card.of(gpu, "float16") for name, gpu in GPUS.items() if gpu.architecture in KERNEL_SHARES}


@pytest.fixture(scope="module")
def tables() -> list[TrainingTable]:
    return [training_table(read_any_table(MIXTRAL)), training_table(read_any_table(QWEN))]


@pytest.fixture(scope="module")
def predictor(tables: list[TrainingTable]) -> Predictor:
    return Predictor(tables, calibrate=False)


@pytest.fixture(scope="module")
def works(tables: list[TrainingTable]) -> list[RowWork]:
    found = []
    for table in tables:
        rows = table.table.records[SweepPoint(1, 0)].rows
        found += [row_work(table.model, row, point, r.launches) for point in POINTS for row, r in rows.items()]
    return found


def times(predictor: Predictor, works: list[RowWork], card: Card) -> list[float]:
    return list(predictor.predict(works, card, "a model of nobody").latency_ns)


@pytest.mark.parametrize("name", ["RTX3090", "H100", "L4", "V100-16GB"])
def test_nothing_is_below_the_floor_of_the_card(name: str, predictor: Predictor, works: list[RowWork]) -> None:
    card = CARDS[name]
    predicted = predictor.predict(works, card, "a model of nobody")
    for work, time, low in zip(works, predicted.latency_ns, predicted.low_ns, strict=True):
        floor = max(work.bytes / card.bandwidth_bytes_per_sec, work.flops / card.flops_per_sec) * 1e9
        assert floor * (1 - 1e-9) <= low <= time and time > 500, work


@pytest.mark.parametrize("name", ["RTX3090", "H100"])
@pytest.mark.parametrize("figure", ["bandwidth_bytes_per_sec", "flops_per_sec", "clock_hz", "l2_bytes"])
def test_a_larger_figure_slows_nothing(name: str, figure: str, predictor: Predictor, works: list[RowWork]) -> None:
    cards = [replace(CARDS[name], **{figure: getattr(CARDS[name], figure) * grown}) for grown in (0.5, 1, 1.3, 4)]
    by_card = [times(predictor, works, card) for card in cards]
    for slow, fast in zip(by_card, by_card[1:], strict=False):
        assert all(b <= a * (1 + 1e-12) for a, b in zip(slow, fast, strict=True))
    assert by_card[-1] != by_card[0], "the figure matters"


def slower_pairs() -> list[tuple[str, str]]:
    """Cards of one architecture, the first at most as good in every figure, and in the rate of a multiprocessor."""

    def figures(card: Card) -> list[float]:
        per_multiprocessor = card.flops_per_sec / card.multiprocessors
        return [*(value for value in vars(card).values() if not isinstance(value, str)), per_multiprocessor]

    def no_better(a: Card, b: Card) -> bool:
        return a.architecture == b.architecture and all(x <= y for x, y in zip(figures(a), figures(b), strict=True))

    return [(a, b) for a in CARDS for b in CARDS if CARDS[a] != CARDS[b] and no_better(CARDS[a], CARDS[b])]


def test_a_slower_card_is_faster_in_no_row(predictor: Predictor, works: list[RowWork]) -> None:
    assert ("H100PCIe", "H100") in slower_pairs() and ("H100", "H200") in slower_pairs()
    for slow, fast in slower_pairs():
        pairs = zip(times(predictor, works, CARDS[slow]), times(predictor, works, CARDS[fast]), strict=True)
        assert all(b <= a * (1 + 1e-12) for a, b in pairs), (slow, fast)


def test_a_large_product_takes_what_an_rtx_3090_can_reach() -> None:
    """4096 x 14336 weights: 117.4 MB at 936 GB/s are 125.5 us; 2,048 tokens are 240.5 GFLOP at 71 TFLOP/s."""
    config = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 14336}
    model = Model.of(config | {"vocab_size": 1000, "num_key_value_heads": 8}, "bfloat16")
    one, many = (base_ns(row_work(model, "gate_proj", SweepPoint(n, 0), 1), CARDS["RTX3090"]) for n in (1, 2048))
    assert 125_500 * 1.03 < one < 125_500 * 1.15
    assert 3_387_000 * 1.05 < many < 3_387_000 * 1.2


def target_of(table: TrainingTable, hardware: str) -> PredictionTarget:
    meta = table.table.meta
    return PredictionTarget(hardware, GPUS[hardware], table.name, meta["config"], meta["source"], "bfloat16")


def test_what_was_learned_is_said_again_on_the_same_card(tables: list[TrainingTable], predictor: Predictor) -> None:
    table = predict_table(target_of(tables[0], "H200"), Sweep(prefill_step=512, decode_step=512), predictor)
    measured = tables[0].table
    for point in table.records.keys() & measured.records.keys():
        assert table.pass_ns(point) == pytest.approx(measured.pass_ns(point), rel=0.1), point


@pytest.fixture()
def predicted(tmp_path: Path, tables: list[TrainingTable], predictor: Predictor) -> TablePaths:
    table = predict_table(target_of(tables[0], "RTX3090"), Sweep(prefill_step=512, decode_step=512), predictor)
    paths = TablePaths.of(tmp_path, "RTX3090", table.model)
    paths.csv.parent.mkdir(parents=True)
    write_table(table, paths, flat_csv(table))
    return paths


def test_intervals_and_the_mark_are_in_the_files(predicted: TablePaths) -> None:
    table = read_table(predicted.csv)
    assert table.meta["origin"] == "predicted" and not table.measured_points()
    for record in table.records.values():
        assert record.source == "predicted" and record.whole_pass.n == 0
        parts = [row.measurement for row in record.rows.values()]
        for one in (*parts, record.whole_pass):
            assert one.interval_ns is not None and one.interval_ns[0] <= one.trimmed_mean_ns <= one.interval_ns[1]
            assert math.isnan(one.median_ns)
        assert sum(one.trimmed_mean_ns for one in parts) == record.whole_pass.trimmed_mean_ns


def run(*words: str) -> int:
    return run_profile.main([*words])


def test_it_is_no_measurement_unless_told(predicted: TablePaths, capsys: pytest.CaptureFixture[str]) -> None:
    csv = str(predicted.csv)
    import validation

    assert run("compare", csv, csv) == 2 and validation.main(["--csv", csv]) == 2
    assert run("export", "--format", "llmservingsim-0.2", csv, "--output", str(predicted.csv.parent / "out")) == 2
    assert capsys.readouterr().err.count("--allow-predicted") == 3
    with pytest.raises(Exception, match="not measured kernel times"):
        training_table(read_table(predicted.csv))
    assert run("compare", csv, csv, "--allow-predicted") == 0


def test_a_measurement_takes_its_place_and_both_are_compared(predicted: TablePaths) -> None:
    folder, name = predicted.csv.parents[2], "mistralai/Mixtral-8x7B-v0.1"
    words = ["--hardware", "RTX3090", "--model", name, "--device", "fake", "--output-dir", str(folder)]
    words += ["--skip-scaling", "--no-report", "--quiet", "--prefill-step", "512", "--decode-step", "512"]
    assert run(*words) == 0
    kept = predicted.csv.with_name("Mixtral-8x7B-v0.1.predicted.csv")
    assert json.loads(predicted.meta.read_text())["origin"] == "measured"
    assert read_table(kept).meta["origin"] == "predicted"
    assert run("compare", str(kept), str(predicted.csv), "--allow-predicted") == 0


def test_the_command_learns_from_tables_and_leaves_measurements_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--hardware", "L4", "--model", "Qwen/Qwen3-8B", "--output-dir", str(tmp_path)]
    words += ["--from", str(QWEN), "--prefill-step", "1024", "--decode-step", "1024"]
    assert run(*words) == 0
    told = capsys.readouterr().out
    assert "PREDICTED" in told and "a judgement" in told
    assert "Nothing here was measured" in (tmp_path / "L4/README.md").read_text()
    assert run(*words) == 2 and "--overwrite" in capsys.readouterr().err
    meta = tmp_path / "L4/Qwen/Qwen3-8B.meta.json"
    meta.write_text(meta.read_text().replace('"origin": "predicted"', '"origin": "measured"'))
    assert run(*words) == 0
    assert (tmp_path / "L4/Qwen/Qwen3-8B.predicted.csv").exists()


def test_unknown_cards_get_near_names() -> None:
    with pytest.raises(UsageError, match="did you mean RTX3090"):
        find_gpu("RTX3900")
    assert find_gpu("NVIDIA GeForce RTX 3090") == GPUS["RTX3090"]


SPEC: dict[str, Any] = {
    "architecture": "sm_86",
    "bandwidth_gb_per_sec": 936,
    "half_tflops": 71,
    "multiprocessors": 82,
    "l2_mib": 6,
    "clock_mhz": 1695,
}


def spec_without(name: str) -> dict[str, Any]:
    return {key: value for key, value in SPEC.items() if key != name}


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (spec_without("l2_mib") | {"clock_mhz": -3}, ["l2_mib: missing", "clock_mhz: -3"]),
        (SPEC | {"multiprocessors": 1.5, "bandwidth_gb_per_sec": "936"}, ["bandwidth_gb_per_sec", "multiprocessors"]),
        (SPEC | {"architecture": "sm_8"}, ["architecture"]),
        (SPEC | {"half_tflop": 1}, ["half_tflop: not a figure"]),
        (SPEC | {"half_tflops": True}, ["half_tflops"]),
    ],
)
def test_wrong_figures_get_a_line_each(spec: dict[str, Any], named: list[str], tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps(spec))
    with pytest.raises(UsageError) as told:
        read_gpu(path)
    lines = str(told.value).split("\n")
    assert len(lines) == len(named)
    assert all(name in line for name, line in zip(named, lines, strict=True))


def test_a_spec_of_a_known_card_is_that_card(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps(SPEC))
    assert Card.of(read_gpu(path), "bfloat16") == CARDS["RTX3090"]


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_no_spec_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="--gpu-spec"):
        read_gpu(path)


@pytest.mark.parametrize("make", [lambda: find_gpu("MI300X"), lambda: GPUS["A100-80GB"]])
def test_each_card_of_the_table_is_whole(make: Callable[[], Any]) -> None:
    card = Card.of(make(), "bfloat16")
    assert card.multiprocessors > 30 and card.clock_hz > 1e9 and card.l2_bytes > 2**20
