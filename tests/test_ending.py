"""The end of a run: the summary fits on a screen, and programs get one document."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import run_profile
import validation
from llm_profile.cli import table_validation
from llm_profile.cli.ending import MOST_LINES, Ending
from llm_profile.errors import UsageError
from llm_profile.timing.backends import BACKENDS
from llm_profile.validation.outcome import ValidationOutcome
from llm_profile.validation.report import ValidationReport
from llm_profile.validation.validate import fit_and_judge
from tests.fake_command import CSV, OPTIONS, TroubledBackend, use
from tests.fake_reality import FakeReality, make_table, write_table

PAIRS = [(i, o) for i in (32, 64, 96, 128) for o in (16, 32, 48, 64)]
GRID = ["--scaling-input-min", "32", "--scaling-input-max", "128", "--scaling-input-step", "32"]
FILES = {"csv": Path("H/m.csv"), "rows": Path("H/m.rows.parquet"), "meta": Path("H/m.meta.json")}


def report(speeds: tuple[float, ...] = (1.0,), noise: float = 0.0, tolerance: float = 0.05) -> ValidationReport:
    reality = FakeReality(lambda point, depth: 400_000, noise=noise, process_speeds=speeds)
    return fit_and_judge(make_table(), reality, PAIRS, tolerance=tolerance)


def outcome(**options: Any) -> ValidationOutcome:
    return ValidationOutcome.of(report(**options).as_json())


def test_an_outcome_says_what_the_report_does() -> None:
    for found in (report(), report(noise=0.2, tolerance=0.0), report(speeds=(1.0, 1.1, 1.3))):
        read = ValidationOutcome.of(json.loads(json.dumps(found.as_json())))
        assert (read.exit_code, read.noise_limit) == (found.exit_code, found.noise_limit)
        assert read.errors == dict(found.errors[found.mode])
        assert (read.noisy, [*read.over_tolerance]) == (found.noisy, found.over_tolerance)
    told = report().as_json()
    del told["noisy"]
    with pytest.raises(KeyError):
        ValidationOutcome.of(told)


def test_a_summary_goes_from_what_was_measured_to_files() -> None:
    found = outcome(speeds=(1.0, 1.02))
    lines = Ending(["m on H: 3 points"], ["missing: 1"], found, ["noise: 1 %"], ["doubtful: 2"], FILES).lines()
    heads = [line.split(":")[0].split(" (")[0] for line in lines]
    assert heads[:3] == ["m on H", "missing", "against the real model"]
    assert [line.split()[0] for line in lines[4:7]] == ["TTFT", "TPOT", "total"]
    assert lines[4].split()[1:] == [
        f"{value:.1%}"
        for value in (found.errors["ttft"].mean, found.errors["ttft"].worst, found.spread["ttft"])  # type: ignore
    ] + [f"{0.02 / 1.01:.1%}"]
    assert heads[7:10] == ["passed", "noise", "doubtful"]
    assert lines[-1] == "table: H/m.csv, m.rows.parquet, m.meta.json"


def test_noise_is_first_and_last() -> None:
    found = outcome(speeds=(1.0, 1.1, 1.3))
    lines = Ending(["title"], outcome=found, files=FILES, advice="what to do").lines()
    assert lines[0] == lines[-1] and lines[0].startswith("Too noisy: ") and lines[1] == "title"
    assert lines[-2] == "what to do"


@pytest.mark.parametrize("speeds", [(1.0,), (1.0, 1.1, 1.3)])
def test_a_summary_fits_on_a_screen_however_much_is_wrong(speeds: tuple[float, ...]) -> None:
    missing, doubts = ([f"{what}: {number}" for number in range(40)] for what in ("missing", "doubtful"))
    files = {**FILES, **{name: Path(name) for name in ("scaled_csv", "host_csv", "validation", "report")}}
    ending = Ending(["a", "b", "c", "d"], missing, outcome(speeds=speeds), ["noise", "clock"], doubts, files)
    lines = ending.lines()
    assert len(lines) == MOST_LINES <= 25
    counts = [int(line.split()[0]) for line in lines if line.endswith(" more: --verbose prints them")]
    shown = [line for line in lines if line in {*ending.warnings()} and not line.startswith("Too noisy")]
    framed = len(speeds) > 1
    assert len(counts) == 2 and sum(counts) + len(shown) == len(ending.warnings()) - framed
    assert {*missing, *doubts} <= {*ending.warnings()} and {*ending.warnings()} <= {*ending.lines(whole=True)}


# ---- the commands


def profile(folder: Path, *options: str) -> int:
    return run_profile.main([*OPTIONS, "--output-dir", str(folder), *options])


def test_json_is_all_that_stdout_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, TroubledBackend(out_of_memory_at=6))
    assert profile(tmp_path, "--json") == 3
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert said.out.count("\n") == 1 and "tiny-llama on FAKE: 9 points" in said.err
    assert (told["exit_code"], told["points"], told["points_measured"], told["validation"]) == (3, 9, 9, None)
    assert {(point["input"], point["kv_cache"]) for point in told["failed"]} == {(6, 0), (1, 5), (1, 6)}
    assert {point["reason"] for point in told["failed"]} == {"out of memory"}
    assert told["seconds"] > 0 and 0 < told["noise"] < 0.1
    assert told["warnings"][0].startswith("missing: 3 of 12 points")
    assert told["files"]["csv"] == str(tmp_path / CSV) and len(told["files"]) == 4
    assert all(Path(path).is_file() for path in told["files"].values())
    assert profile(tmp_path, "--json", "--quiet") == 3
    said = capsys.readouterr()
    again = json.loads(said.out)
    assert (again["points_measured"], again["seconds"], again["noise"]) == (3 - 3, None, told["noise"])
    assert "tiny-llama on" not in said.err and "missing: 3 of 12 points" in said.err


def test_quiet_says_nothing_but_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(tmp_path, "--quiet", "--verbose") == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err == "--device fake: times come from a formula, nothing is measured\n"
    assert profile(tmp_path, "--quiet", "--prefill-max", "9") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("run_profile.py: ") and "--append" in said.err


def test_a_validation_that_fails_leaves_the_summary_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "cpu", lambda request, source: TroubledBackend())
    monkeypatch.setattr(table_validation, "ProcessReality", Mock(side_effect=UsageError("no memory")))
    pairs = ["--scaling-input-min", "2", "--scaling-input-max", "3", "--scaling-input-step", "1"]
    options = ["--device", "cpu", *[option for option in OPTIONS[4:] if option != "--skip-scaling"], *pairs]
    assert run_profile.main([*OPTIONS[:2], *options, "--output-dir", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("tiny-llama on CPU: 12 points") and "table: " in said.out
    assert said.err.splitlines()[-1] == "run_profile.py: no memory"


@pytest.mark.parametrize("main", [run_profile.main, validation.main])
def test_mistakes_are_a_document_too(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--no-such-option"]) == 2
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["exit_code"] == 2 and said.err == f"{told['error']}\n"


def test_a_plan_is_a_document_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(tmp_path, "--plan") == 0
    lines = capsys.readouterr().out.splitlines()
    assert profile(tmp_path, "--plan", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"exit_code": 0, "plan": lines}


@pytest.fixture
def real_model(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """Stands in for the processes of the real model. Its only entry: how fast they are."""
    speeds = [(1.0, 1.0, 1.0)]

    def open_reality(_runtime: str, _profiled: Any, depth: int, *_access: Any, **_options: Any) -> FakeReality:
        return FakeReality(lambda point, depth: random.Random(str(point)).randrange(10**6), depth, 0.01)

    def open_noisy(*arguments: Any, **options: Any) -> FakeReality:
        reality = open_reality(*arguments, **options)
        reality.process_speeds = speeds[0]
        return reality

    monkeypatch.setattr(table_validation, "ProcessReality", open_noisy)
    return speeds


def test_validation_has_a_document(
    tmp_path: Path, real_model: list[tuple[float, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_table(tmp_path)
    assert validation.main(["--csv", str(source), *GRID, "--json", "--scaling-tolerance", "1"]) == 4
    said = capsys.readouterr()
    told = json.loads(said.out)
    written = json.loads(source.with_name("fake.validation.json").read_bytes())
    assert told["exit_code"] == 4 and told["validation"]["over_tolerance"] == written["over_tolerance"]
    assert told["validation"]["errors"] == written["scalings"]["curve"]["held_out_errors"]
    assert told["files"]["validation"] == str(source.with_name("fake.validation.json"))
    assert all(Path(path).is_file() for path in told["files"].values())
    assert any(line.startswith("Over tolerance (1.0 %): ") for line in said.err.splitlines())


def test_quiet_tells_a_noisy_machine(
    tmp_path: Path, real_model: list[tuple[float, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    real_model[0] = (1.0, 1.1, 1.3)
    assert validation.main(["--csv", str(write_table(tmp_path)), *GRID, "--quiet"]) == 4
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines()[-1].startswith("Too noisy: ")


def test_pairs_are_told_before_the_summary_and_only_if_asked(
    tmp_path: Path, real_model: list[tuple[float, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--csv", str(write_table(tmp_path)), *GRID, "--scaling-tolerance", "1000"]
    assert validation.main(command) == 0
    short = capsys.readouterr().out.splitlines()
    assert len(short) <= MOST_LINES and not any("Held-out pairs" in line for line in short)
    assert short[-1].startswith("a page with every pair: python3 run_profile.py report ")
    assert validation.main([*command, "--verbose"]) == 0
    long = capsys.readouterr().out.splitlines()
    assert any("Held-out pairs" in line for line in long)
    assert [line.split(":")[0] for line in long[-len(short) :]] == [line.split(":")[0] for line in short]
