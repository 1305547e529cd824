"""Which compositions `--axes` measures, and a sweep of them on the fake device and on a CPU."""

import json
from pathlib import Path
from typing import Any

import pytest

import run_profile
from llm_profile import compositions
from llm_profile.compositions import AXES, axis_points, halton, held_out
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.sweep import Sweep, plan

POSITIONS = 131_072


def test_halton_numbers_are_those_of_the_literature() -> None:
    """Bases 2 and 3, as in Halton's paper and in scipy.stats.qmc.Halton(scramble=False)."""
    assert [halton(n)[0] for n in range(1, 6)] == [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]
    assert [halton(n)[1] for n in range(1, 5)] == pytest.approx([1 / 3, 2 / 3, 1 / 9, 4 / 9])


def test_at_most_400_with_the_corners_of_each_range() -> None:
    points = axis_points(AXES, POSITIONS)
    assert len(points) == len({*points}) <= 400 and not any(point.is_flat for point in points)
    corners = {
        *(SweepPoint(1, history, n) for history in (16, 16_384) for n in (2, 256)),
        *(SweepPoint(16, 0, 2), SweepPoint(2048, 0, 2), SweepPoint(2048, 16_384), SweepPoint(1, 0, 256)),
    }
    assert corners <= {*points}


def test_ranges() -> None:
    for point in axis_points(AXES, POSITIONS):
        assert point.batch <= 256 + 4 and point.tokens <= 8192 + 256
        assert all(tokens <= 2048 and history <= 16_384 for tokens, history in point.sequences)


@pytest.mark.parametrize("longest", [4, 17, 128, 4096])
def test_no_sequence_is_longer_than_the_model_has_positions(longest: int) -> None:
    assert max(point.total_len for point in axis_points(AXES, longest)) <= longest


def test_decode_steps_fill_their_range_evenly_on_a_logarithmic_scale() -> None:
    points = axis_points(["decode"], POSITIONS)
    quarters = [sum(16 * 32**i <= p.kv_len < 16 * 32 ** (i + 1) for p in points) for i in range(2)]
    assert quarters == pytest.approx([55, 55], abs=6)


@pytest.mark.parametrize("axis", ["decode", "chunk", "mixed"])
def test_held_out_compositions_are_not_measured_and_fit(axis: str) -> None:
    found = held_out(axis, POSITIONS, 33, most_cached=250_000)
    assert len({*found}) == 33 and not {*found} & {*axis_points([axis], POSITIONS)}
    assert max(point.cache_len for point in found) <= 250_000


def test_a_sweep_has_its_compositions_and_is_told_by_its_record() -> None:
    sweep = Sweep("both", 4, 4, axes=("decode", "mixed"), axes_longest=64)
    points = sweep.points()
    assert {*axis_points(["decode", "mixed"], 64)} <= {*points} and all(point in sweep for point in points)
    assert SweepPoint(1, 0, 2) not in sweep
    assert Sweep.of_record(json.loads(json.dumps(sweep.record()))) == sweep
    assert "axes" not in Sweep("both", 4, 4).record()


def test_what_memory_does_not_suffice_for_is_left_out_with_the_reason() -> None:
    laid_out = plan(Sweep("both", 4, 4, axes=("decode",)), most_cached=100_000)
    assert "cache of 100000 tokens" in laid_out.unrunnable[SweepPoint(1, 16_384, 256)]
    assert SweepPoint(1, 16, 256) not in laid_out.unrunnable and SweepPoint(4, 0) not in laid_out.unrunnable


COMMAND = ["--model", "tiny-llama", "--prefill-max", "3", "--decode-max", "3", "--skip-scaling", "--no-report"]


def run(folder: Path, device: str, *more: str) -> int:
    return run_profile.main([*COMMAND, "--device", device, "--output-dir", str(folder), *more])


def test_a_sweep_of_the_fake_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows file has the compositions, the CSV those of one sequence only; the same command finds all done."""
    axes = ("--axes", "decode,chunk,mixed,per-sequence")
    assert run(tmp_path, "fake", *axes) == 0
    csv = tmp_path / "FAKE" / "tiny-llama.csv"
    table = read_table(csv)
    compositions_there = {point for point in table.records if not point.is_flat}
    assert compositions_there == {*axis_points(AXES, 8192)}
    assert table.latency_ns("sampler_greedy", SweepPoint(1, 0, 64)) == pytest.approx(9_000 + 700 * 64, rel=0.02)
    assert "sampler" not in csv.read_text()
    capsys.readouterr()
    assert run(tmp_path, "fake", *axes) == 0
    assert "complete" in capsys.readouterr().err


def test_axes_are_added_to_a_table_with_append(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "fake") == 0
    assert run(tmp_path, "fake", "--axes", "per-sequence") == 2
    assert "--append" in capsys.readouterr().err
    assert run(tmp_path, "fake", "--axes", "per-sequence", "--append") == 0


def test_a_sweep_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {
        "decode": [SweepPoint(1, 5, 3)],
        "mixed": [SweepPoint.of([(1, 4), (1, 9), (3, 2)])],
        "per-sequence": [SweepPoint(1, 0, 2)],
    }

    def corners_of(points: list[SweepPoint]) -> Any:
        return lambda _longest: (points, lambda _at: points[0])

    for axis, points in few.items():
        monkeypatch.setitem(AXES, axis, compositions.Axis(1, corners_of(points)))
    compositions._axis_points.cache_clear()
    try:
        assert run(tmp_path, "cpu", "--axes", ",".join(few), "--repeat", "2") == 0
    finally:
        compositions._axis_points.cache_clear()
    table = read_table(tmp_path / "CPU" / "tiny-llama.csv")
    for (point,) in few.values():
        rows = table.records[point].rows
        assert {"q_proj", "attn", "attn_other", "rope", "lm_head", "embedding"} <= {*rows}
    assert {"sampler_greedy", "sampler_temperature"} <= {*table.records[SweepPoint(1, 0, 2)].rows}
    assert table.meta["runs"][-1]["packed_attention"] == {"even": 2, "padded": 1}


def test_an_unknown_axis_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "fake", "--axes", "decode,width") == 2
    assert "--axes width: not an axis; choose some of decode, chunk, mixed" in capsys.readouterr().err


def test_the_plan_counts_compositions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "fake", "--axes", "decode,per-sequence", "--plan") == 0
    assert "125 compositions (decode, per-sequence)" in capsys.readouterr().out
