"""The parts of bench/ that need no GPU: statistics, bounds, printed lines, exit codes."""

import ast
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import run_profile
from bench import adaptive, compare_tables, independent_clock, roofline, speed
from bench.compare_tables import ALL_ROWS, NAMED_ROWS, Agreement, compare
from bench.independent_clock import TwoClocks, spread_points
from bench.loading import longest_of, sweep_sizes
from bench.roofline import bound_ns, bounds, gemm_weights
from bench.speed import Timed, even_lengths, range_times, summary
from llm_profile.errors import UsageError
from llm_profile.layers.ranges import LayerRanges
from llm_profile.measurement import PointFailure, PointSample, RowSample, StoppingRule
from llm_profile.models import catalog
from llm_profile.points import SweepPoint
from llm_profile.records import FILLED, PointRecord
from llm_profile.store.files import read_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable
from llm_profile.timing.session import ROW_RANGE, RangeRecorder
from tests.table_samples import write
from tests.tiny import subject

ROOT = Path(__file__).parent.parent
ONE_KIND = [{"name": "block", "layers": [0, 1, 2, 3]}]


@pytest.fixture(scope="module")
def fake_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of tiny-llama from the fake device, prompts of 1 to 8 and caches of 0 to 8 tokens."""
    folder = tmp_path_factory.mktemp("tables")
    command = "--model tiny-llama --device fake --hardware Fake --prefill-max 8 --decode-max 8 --skip-scaling"
    assert run_profile.main([*command.split(), "--output-dir", str(folder)]) == 0
    return folder / "Fake" / "tiny-llama.csv"


def changed(csv: Path, folder: Path, change: Callable[[LatencyTable], None]) -> Path:
    """A changed copy of a table."""
    table = read_table(csv)
    change(table)
    paths = TablePaths.of(folder, table.hardware, table.model)
    write(table, paths)
    return paths.csv


def slower(row: str, factor: float) -> Callable[[LatencyTable], None]:
    def change(table: LatencyTable) -> None:
        for point, record in table.records.items():
            one = record.rows[row]
            measurement = replace(one.measurement, trimmed_mean_ns=one.measurement.trimmed_mean_ns * factor)
            rows = record.rows | {row: replace(one, measurement=measurement)}
            table.records[point] = replace(record, rows=rows)

    return change


def in_bfloat16(table: LatencyTable) -> None:
    table.meta["conditions"]["dtype"] = "bfloat16"


def usage_error(main: Callable[[Sequence[str]], int], arguments: list[Any], capsys: Any) -> str:
    """Run a command that refuses its arguments, and return the one line that it prints."""
    assert main([str(argument) for argument in arguments]) == 2
    said: str = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_the_package_knows_nothing_of_bench() -> None:
    for source in [*ROOT.glob("*.py"), *(ROOT / "llm_profile").rglob("*.py")]:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "bench" for name in names), source


@pytest.mark.parametrize("command", [adaptive, compare_tables, independent_clock, roofline, speed])
def test_every_command_has_help(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    assert "--json" in capsys.readouterr().out


# compare_tables


def test_agreement_by_hand() -> None:
    """Relative differences of 0, 2/99, 200/900 and 100/150. The first two are at most 5 %, the last is 100 ns."""
    found = Agreement.of([(50.0, 50.0), (98.0, 100.0), (800.0, 1000.0), (100.0, 200.0)])
    assert found.n == 4
    assert found.median == pytest.approx((2 / 99 + 200 / 900) / 2)
    assert found.p99 == pytest.approx(2 / 3 - 0.03 * (2 / 3 - 200 / 900))
    assert found.within == 0.75
    assert found.bias == pytest.approx((2 / 99 + 200 / 900 + 100 / 150) / 4)


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), min_size=1, max_size=50))
def test_agreement_does_not_depend_on_which_is_first(pairs: list[tuple[float, float]]) -> None:
    found = Agreement.of(pairs)
    assert replace(found, bias=-found.bias) == Agreement.of([(b, a) for a, b in pairs])
    assert 0 <= found.median <= found.p99 <= 2 and 0 <= found.within <= 1
    assert Agreement.of([(a, a) for a, _ in pairs]) == Agreement(len(pairs), 0.0, 0.0, 0.0, 1.0, 0.0)


def test_a_table_agrees_with_itself(fake_csv: Path) -> None:
    table = read_table(fake_csv)
    found = compare(table, table)
    assert found.points == 16 and found.only_one == () and found.conditions == ()
    assert {phase: of_row[ALL_ROWS].n for phase, of_row in found.by_row.items()} == {
        "prefill": 8 * len(table.row_names()),
        "decode": 8 * len(table.row_names()),
    }
    for of_row in found.by_row.values():
        assert list(of_row) == [ALL_ROWS, NAMED_ROWS, *table.row_names()]
        assert of_row[NAMED_ROWS].n == sum(of_row[row].n for row in table.row_names() if not row.endswith("_other"))
        assert all(agreement.p99 == 0 and agreement.within == 1 for agreement in of_row.values())


def test_an_adaptive_grid_is_judged_on_a_full_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "--model tiny-llama --device fake --hardware Fake --prefill-max 128 --decode-max 128 --skip-scaling"
    assert run_profile.main([*command.split(), "--output-dir", str(tmp_path)]) == 0
    csv = tmp_path / "Fake" / "tiny-llama.csv"
    capsys.readouterr()
    assert adaptive.main([str(csv), "--json", str(tmp_path / "found.json")]) == 0
    head, _, prefill, decode, _, prefill_passes, decode_passes, *floors = capsys.readouterr().out.splitlines()
    measured = int(head.split()[0])
    assert head.split()[1:4] == ["of", "256", "points"] and 4 < measured <= 64
    (n, mean, *_), (of_decode, *_) = prefill.split()[3:], decode.split()[3:]
    assert prefill.startswith("rows of prefill") and int(n) + int(of_decode) == 19 * (256 - measured)
    assert prefill_passes.startswith("passes of prefill")
    assert int(prefill_passes.split()[3]) + int(decode_passes.split()[3]) == 256 - measured
    assert float(mean) < 1, "the fake device's times are linear in the length, with a noise of 0.4 % per pass"
    assert len(floors) == 2
    told = json.loads((tmp_path / "found.json").read_text())
    assert told["measured"] == measured and told["rows"]["prefill"]["n"] == int(n)
    assert set(told["beside"]) == set(told["passes"]) == {"prefill", "decode"}
    assert told["passes"]["decode"]["mean"] < told["rows"]["decode"]["mean"]

    partly = changed(csv, tmp_path, lambda table: table.records.update(filled_in(table, SweepPoint(3, 0))))
    assert "filled points" in usage_error(adaptive.main, [partly], capsys)


def filled_in(table: LatencyTable, point: SweepPoint) -> dict[SweepPoint, PointRecord]:
    return {point: replace(table.records[point], source=FILLED)}


def test_filled_points_are_compared_with_measured_ones_only_when_asked(fake_csv: Path, tmp_path: Path) -> None:
    def fill_two(table: LatencyTable) -> None:
        for point in (SweepPoint(3, 0), SweepPoint(1, 5)):
            table.records |= filled_in(table, point)

    whole, part = read_table(fake_csv), read_table(changed(fake_csv, tmp_path, fill_two))
    assert compare(whole, part).points == len(whole.records) - 2
    assert compare(whole, part, filled=True).points == compare(part, whole, filled=True).points == 2
    with pytest.raises(UsageError, match="no point is measured in one table and interpolated in the other"):
        compare(whole, whole, filled=True)


def test_a_slower_row_shows_in_its_own_line(fake_csv: Path, tmp_path: Path) -> None:
    other = read_table(changed(fake_csv, tmp_path, slower("lm_head", 1.10)))
    of_row = compare(read_table(fake_csv), other).by_row["prefill"]
    assert of_row["lm_head"].median == pytest.approx(0.10 / 1.05, rel=1e-3)
    assert of_row["lm_head"].within == 0
    assert of_row["q_proj"].median == 0
    assert of_row[ALL_ROWS].within == pytest.approx(1 - 1 / (len(of_row) - 2))


def test_compare_command(fake_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(table: LatencyTable) -> None:
        table.meta["conditions"]["gpu"] = "another"
        for point in [p for p in table.records if p.kind == "decode" or p.input_len > 5]:
            del table.records[point]

    other = changed(fake_csv, tmp_path, change)
    path = tmp_path / "found.json"
    assert compare_tables.main([str(fake_csv), str(other), "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("5 points in both")
    assert 'conditions differ: gpu is "fake" there and "another" now' in lines
    assert any(line.split()[:1] == ["q_proj"] for line in lines)
    assert json.loads(path.read_text())["by_row"]["prefill"]["q_proj"]["n"] == 5


def test_tables_without_a_common_point_are_refused(
    fake_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = changed(fake_csv, tmp_path, lambda table: table.records.clear())
    assert "no point is measured in both tables" in usage_error(compare_tables.main, [fake_csv, empty], capsys)
    assert "no latency table there" in usage_error(compare_tables.main, [fake_csv, tmp_path / "none.csv"], capsys)


# roofline


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            "meta-llama/Llama-3.1-8B",
            {
                **{"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096)},
                **{"gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336)},
                "lm_head": (128256, 4096),
            },
        ),
        (
            "facebook/opt-6.7b",
            {
                **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (4096, 4096)),
                **{"fc1": (16384, 4096), "fc2": (4096, 16384), "lm_head": (50272, 4096)},
            },
        ),
        (
            "microsoft/Phi-mini-MoE-instruct",
            {
                **{"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096)},
                **{"gate": (16, 4096), "lm_head": (32064, 4096)},
            },
        ),
        (
            "mistralai/Mixtral-8x7B-v0.1",
            {
                **{"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096)},
                **{"gate": (8, 4096), "lm_head": (32000, 4096)},
            },
        ),
    ],
)
def test_weights_are_those_of_the_published_dimensions(model: str, expected: dict[str, tuple[int, int]]) -> None:
    found = catalog.find(model)
    assert found is not None
    assert gemm_weights(found[1], ONE_KIND) == expected


def test_weights_of_several_kinds_of_blocks_are_told_apart() -> None:
    config = {
        **{"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "vocab_size": 256},
        "layer_types": ["sliding_attention", "full_attention"],
    }
    weights = gemm_weights(config, [{"name": "sliding", "layers": [0]}, {"name": "full", "layers": [1]}])
    assert weights["sliding.gate_proj"] == weights["full.gate_proj"] == (128, 64)
    assert weights["lm_head"] == (256, 64) and "gate_proj" not in weights


def test_bound_by_hand() -> None:
    """A 3 x 5 weight of 2-byte values: 30 bytes at 10 bytes/s are 3 s; 7 tokens are 210 FLOPs."""
    assert bound_ns((3, 5), tokens=7, dtype_bytes=2, bandwidth=10, flops=1e9) == pytest.approx(3e9)
    assert bound_ns((3, 5), tokens=7, dtype_bytes=2, bandwidth=1e9, flops=42) == pytest.approx(5e9)


def test_every_point_of_a_gemm_row_is_checked(fake_csv: Path, tmp_path: Path) -> None:
    table = read_table(changed(fake_csv, tmp_path, in_bfloat16))
    found = bounds(table, bandwidth=1e12, flops=1e15)
    assert {bound.row for bound in found} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    }
    assert len(found) == 8 * len(table.records)
    (head,) = [bound for bound in found if bound.row == "lm_head" and bound.point == SweepPoint(8, 0)]
    assert head.latency_ns == table.latency_ns("lm_head", SweepPoint(8, 0))
    assert head.bound_ns == pytest.approx(4096 * 256 * 2 / 1e12 * 1e9)


def test_roofline_command(fake_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = str(changed(fake_csv, tmp_path, in_bfloat16))
    assert roofline.main([csv, "--bandwidth", "4.8e12", "--flops", "989e12"]) == 0
    assert "0 of 128 are faster" in capsys.readouterr().out
    # 0.35 MB in 30 us are 11.7e9 bytes/s, more than this memory's 11e9; all other rows need less
    path = tmp_path / "found.json"
    assert roofline.main([csv, "--bandwidth", "11e9", "--flops", "989e12", "--json", str(path)]) == 1
    out = capsys.readouterr().out
    assert "48 of 128 are faster" in out
    shown = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert len(shown) == roofline.SHOWN and set(shown) <= {"gate_proj", "up_proj", "down_proj"}
    written = json.loads(path.read_text())
    assert {violation["row"] for violation in written["violations"]} == {"gate_proj", "up_proj", "down_proj"}
    assert len(written["violations"]) == 48 and written["checked"] == 128 and 0.9 < written["least_ratio"] < 1
    # 8 tokens are 2.8e6 FLOPs, in 31 us more than this device's 8e10 per second; 4 tokens are not
    assert roofline.main([csv, "--bandwidth", "1e15", "--flops", "8e10"]) == 1
    out = capsys.readouterr().out
    assert "gate_proj at input 8, " in out and "gate_proj at input 4, " not in out


def test_what_cannot_be_checked_is_refused(fake_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peaks = ["--bandwidth", "1e12", "--flops", "1e15"]
    assert "dtype" in usage_error(roofline.main, [fake_csv, *peaks], capsys)  # tables of the fake device have no dtype
    assert "--flops" in usage_error(roofline.main, [fake_csv, "--bandwidth", "1", "--flops", "0"], capsys)


# independent_clock


def test_points_are_spread_over_both_phases() -> None:
    points = spread_points(8, 2048, 2047)
    prefill = [point.input_len for point in points if point.kv_len == 0]
    decode = [point.kv_len for point in points if point.kv_len]
    assert len(prefill) == len(decode) == 8
    assert (prefill[0], prefill[-1], decode[0], decode[-1]) == (1, 2048, 1, 2047)
    assert spread_points(1, 5, 5) == [SweepPoint(1, 0), SweepPoint(1, 1)]


def test_ratios_are_printed() -> None:
    results = [TwoClocks(SweepPoint(4, 0), 11_000, 10_000), TwoClocks(SweepPoint(1, 9), 10_500, 10_000)]
    lines = independent_clock.table_lines(results)
    assert lines[1].split() == ["4", "0", "11.0", "10.0", "1.100"]
    assert lines[-1] == "ratio from 1.050 to 1.100, median 1.075"


def test_no_point_lies_beyond_learned_positions() -> None:
    """A pass beyond learned positions would kill the CUDA context."""
    learned: Any = SimpleNamespace(learned_positions=2048)
    assert longest_of(learned, 2048) == (2048, 2047)
    assert longest_of(learned, 100) == (100, 100)
    rotary: Any = SimpleNamespace(learned_positions=None)
    assert longest_of(rotary, 4096) == (4096, 4096)
    assert sweep_sizes(2048, 2048) == {"prefill": 2048, "decode": 2048}


def seen(point: SweepPoint, **rows: tuple[int, ...]) -> Any:
    """A backend whose result is always this point with these rows, each of two blocks."""
    samples = {name: RowSample(pass_ns, blocks=2) for name, pass_ns in rows.items()}
    pass_ns = tuple(sum(column) for column in zip(*rows.values(), strict=True))
    return SimpleNamespace(sample=lambda *_args, **_options: [PointSample(point, samples, pass_ns, "fake")])


def test_rows_of_a_pass_add_up_by_the_number_that_tables_carry() -> None:
    point = SweepPoint(4, 0)
    backend = seen(point, q_proj=(10, 10, 10, 40, 90), mlp_other=(7, 1, 3, 2, 2))
    # trimmed means of 20 and 7/3, without the fastest and the slowest of five; the medians would be 10 and 2
    assert independent_clock.summed_rows(backend, [point]) == {point: pytest.approx(20 + 7 / 3)}


@pytest.mark.parametrize("command", [independent_clock, speed])
def test_no_gpu_is_a_usage_error(
    command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device cuda" in usage_error(command.main, ["--model", "tiny-llama"], capsys)


# speed


def event(name: str, start: float, kernels_us: Sequence[float] = (), inside: Sequence[Any] = ()) -> Any:
    """An event as torch.profiler returns it. A range also has itself among its kernels, as an event of the device."""
    kernels = [SimpleNamespace(name="a kernel", duration=us) for us in kernels_us]
    kernels += [SimpleNamespace(name=name, duration=1e6)] if name.startswith(ROW_RANGE) else []
    return SimpleNamespace(
        name=name,
        device_type=DeviceType.CPU,
        time_range=SimpleNamespace(start=start),
        kernels=kernels,
        cpu_children=list(inside),
    )


def test_range_times_by_hand() -> None:
    """Two passes, each with two calls of q_proj inside the range of the whole model."""
    events = []
    for number in range(2):
        calls = [
            event(f"{ROW_RANGE}q_proj", 10 * number + call, inside=[event("aten::mm", 0, [2.0 + number, 0.5])])
            for call in (1, 2)
        ]
        events += [*reversed(calls), event(f"{ROW_RANGE}model_other", 10 * number, [1.0], calls)]
    device_side = event(f"{ROW_RANGE}q_proj", 3)
    device_side.device_type = DeviceType.CUDA
    assert range_times([device_side, *reversed(events)], repeat=2) == {
        "q_proj": [5000.0, 7000.0],
        "model_other": [6000.0, 8000.0],
    }
    with pytest.raises(RuntimeError, match="q_proj ran 4 times in 3 passes"):
        range_times(events, repeat=3)


def test_range_times_of_a_real_session() -> None:
    """On a CPU, every row of a model is there in every pass, with a time of 0 since there are no kernels."""
    tiny = subject("llama", 2)
    with LayerRanges(tiny.model, tiny.layout, RangeRecorder()), profile(activities=[ProfilerActivity.CPU]) as session:
        for _ in range(3):
            tiny.runner.run(SweepPoint(5, 0))
    rows = {site.row for site in tiny.layout.sites} | {"model_other", "attn", "rope"}
    assert range_times(session.events() or [], 3) == dict.fromkeys(rows, [0.0, 0.0, 0.0])
    assert any(average.key == f"{ROW_RANGE}q_proj" and average.count == 6 for average in session.key_averages())
    tiny.close()


@given(st.integers(2, 100), st.integers(1, 5000))
def test_lengths_are_evenly_spread(count: int, longest: int) -> None:
    lengths = even_lengths(count, longest)
    assert lengths[0] == 1 and lengths[-1] == longest and len(lengths) == min(count, longest)
    gaps = [after - before for before, after in pairwise(lengths)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_documented_way_times_both_ends_too() -> None:
    dense = even_lengths(speed.DENSER * 15 + 1, 2048)
    assert len(dense) == 241
    sparse = dense[:: speed.DENSER]
    assert (len(sparse), sparse[0], sparse[-1]) == (16, 1, 2048)


def timed(seconds_per_point: float, row_ns: float, passes: int, lengths: Sequence[int]) -> Timed:
    points = [SweepPoint(length, 0) for length in lengths]
    return Timed(
        seconds_per_point * len(points),
        1e9 * 0.5 * seconds_per_point * len(points),
        {point: {"q_proj": row_ns, "lm_head": 10 * row_ns} for point in points},
        [passes] * len(points),
    )


def test_both_ways_give_the_number_that_tables_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trimmed mean over passes, of named rows only and over all blocks."""
    point = SweepPoint(4, 0)
    q_proj = (10, 10, 10, 40, 90)
    this = speed.this_way(seen(point, q_proj=q_proj, mlp_other=(1, 2, 3, 2, 2)), [point], StoppingRule())
    assert this.rows_ns == {point: {"q_proj": 20.0}} and this.passes == [5] and this.device_ns == 170

    layers = [event(f"{ROW_RANGE}q_proj", number, [ns / 1e3]) for number, ns in enumerate(q_proj)]
    passes = [event(f"{ROW_RANGE}model_other", number, [0.002], [layer]) for number, layer in enumerate(layers)]
    session = SimpleNamespace(events=lambda: [*layers, *passes], key_averages=list)
    monkeypatch.setattr(speed, "profile", lambda **_options: nullcontext(session))
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    ran: list[SweepPoint] = []
    runner: Any = SimpleNamespace(runner=SimpleNamespace(forget_masks=list, run=ran.append))
    documented = Timed()
    speed.documented_point(runner, point, documented, repeat=5)
    assert len(ran) == speed.WARMUP + 5
    assert documented.rows_ns == {point: pytest.approx({"q_proj": 20.0})}
    assert documented.passes == [5] and documented.device_ns == pytest.approx(170)


def test_speed_figures_by_hand() -> None:
    documented = {"prefill": timed(5.0, 1010.0, 100, [1, 9]), "decode": timed(4.0, 1010.0, 100, [1, 9])}
    equal = {"prefill": timed(0.4, 1000.0, 100, [1, 9]), "decode": timed(0.2, 1000.0, 100, [1, 9])}
    this = {"prefill": timed(0.04, 1000.0, 10, [1, 5, 9]), "decode": timed(0.02, 1000.0, 10, [1, 5, 9])}
    found = summary(documented, equal, this, {"prefill": 100, "decode": 50})
    assert found["sweep_s"] == pytest.approx({"documented": 700.0, "equal_passes": 50.0, "this": 5.0})
    assert found["ratio"] == pytest.approx(140)
    assert found["ratio_at_equal_passes"] == pytest.approx(14)
    assert found["ways"]["this"]["decode"] == pytest.approx(
        {"points": 3, "s_per_point": 0.02, "passes_per_point": 10, "gpu_busy": 0.5}
    )
    with_documented = found["agreement"]["with_documented"]["decode"]
    assert with_documented["n"] == 4
    assert with_documented["median"] == -with_documented["bias"] == pytest.approx(10 / 1005)
    assert found["agreement"]["with_equal_passes"]["prefill"] == {
        "n": 4,
        "mean": 0.0,
        "median": 0.0,
        "p99": 0.0,
        "within": 1.0,
        "bias": 0.0,
    }
    lines = "\n".join(speed.table_lines(found))
    assert "a sweep of 150 points: documented 700 s, equal_passes 50 s, this 5 s" in lines
    assert "ratio 140.0, at equal passes 14.0" in lines


def test_unusable_requests_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--points 1" in usage_error(speed.main, ["--points", "1"], capsys)
    with pytest.raises(UsageError, match="5, kv_cache 0: out of memory"):
        full: Any = SimpleNamespace(sample=lambda *_args: [PointFailure(SweepPoint(5, 0), "out of memory")])
        speed.this_way(full, [SweepPoint(5, 0)], StoppingRule())
