"""The whole command: on the fake device for its logic, on the CPU for its truth."""

import csv
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

import run_profile
from llm_profile import catalog
from llm_profile.errors import UsageError
from llm_profile.request import Request, Scaling
from llm_profile.sweep import Sweep, SweepPoint
from llm_profile.table import CSV_HEADER, LatencyTable
from tests import tiny
from tests.fake_command import CSV, OPTIONS, POINTS, TroubledBackend, use
from tests.fake_reality import FakeReality

ROOT = Path(__file__).parent.parent
TOKEN = "hf_" + "Secret9" * 5
CPU = ["--model", "tiny-llama", "--device", "cpu", "--prefill-max", "4", "--decode-max", "4", "--repeat", "2"]
PAIRS = ["--scaling-input-min", "1", "--scaling-input-max", "2", "--scaling-input-step", "1", "--scaling-repeat", "1"]
LAX = ["--scaling-tolerance", "1e9"]
"""A machine that runs other tests as well is too noisy to be judged."""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """main(), with the output folder set."""

    def run(*arguments: str) -> Outcome:
        code = run_profile.main(["--output-dir", str(tmp_path), *arguments])
        return Outcome(code, *capsys.readouterr())

    return run


def command(*arguments: str, module: Sequence[str] = ("run_profile.py",), **options: Any) -> Outcome:
    """The command in a process of its own."""
    done = subprocess.run([sys.executable, *module, *arguments], cwd=ROOT, capture_output=True, text=True, **options)
    return Outcome(done.returncode, done.stdout, done.stderr)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def config_folder(folder: Path, **fields: Any) -> str:
    """A local model without weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


# ---- a sweep, again, and on


def test_a_sweep_ends_with_a_whole_table(run: Run, tmp_path: Path) -> None:
    done = run(*OPTIONS)
    assert done.code == 0
    rows = rows_of(tmp_path / CSV)
    assert tuple(rows[0]) == CSV_HEADER
    keys = [(row["layer_name"], int(row["input"]), int(row["kv_cache"])) for row in rows]
    assert len(set(keys)) == len(keys) == len(ROWS) * POINTS
    assert {key[1:] for key in keys} == {(n, 0) for n in range(1, 7)} | {(1, k) for k in range(7)}
    for (name, input_len, kv_len), row in zip(keys, rows, strict=True):
        assert int(row["latency(ns)"]) == pytest.approx(row_ns(name, SweepPoint(input_len, kv_len)), rel=0.01)
        assert (row["hardware"], row["model"]) == ("FAKE", "tiny-llama")
    table = LatencyTable.read(tmp_path / CSV)
    (measured,) = table.meta["runs"]
    assert measured["points"] == POINTS and measured["seconds"] > 0
    assert table.meta["source"] == {"name": "tiny-llama", "origin": "table", "revision": None}
    for told in ("12 points, 19 rows each", "unnamed rows (_other): ", "noise: ", "timed by: fake 12", str(CSV)):
        assert told in done.out
    assert "measured 12 points" in done.err


def test_the_same_command_again_is_complete(run: Run, tmp_path: Path) -> None:
    run(*OPTIONS)
    before = files_in(tmp_path)
    again = run(*OPTIONS)
    assert again.code == 0
    assert "complete: every point that can be measured is in the table already" in again.err
    assert files_in(tmp_path) == before


def test_a_run_that_broke_off_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*OPTIONS, "--hardware", "whole")
    first, second = TroubledBackend(crash_at=6), TroubledBackend()
    use(monkeypatch, first)
    with pytest.raises(RuntimeError):
        run(*OPTIONS)
    use(monkeypatch, second)
    done = run(*OPTIONS)
    assert done.code == 0 and f"going on: {len(first.asked) - 1} of 12 points are there already" in done.err
    assert sorted(first.asked[:-1] + second.asked) == sorted(Sweep("both", 6, 6).points())
    whole = (tmp_path / "whole" / CSV.name).read_text().replace("whole", "FAKE")
    assert (tmp_path / CSV).read_text() == whole
    runs = LatencyTable.read(tmp_path / CSV).meta["runs"]
    assert [run["points"] for run in runs] == [len(first.asked) - 1, len(second.asked)]
    assert "seconds" not in runs[0], "it never came to its end"


def test_20_kills_of_the_command_lose_nothing(tmp_path: Path) -> None:
    done = command(str(tmp_path), module=("-m", "tests.killed_commands"))
    assert done.code == 0, done.err
    assert done.out.startswith("20 kills")


def test_ctrl_c_is_a_clean_stop_and_one_writes_at_a_time(run: Run, tmp_path: Path) -> None:
    slow = [sys.executable, "-m", "tests.fake_command", '{"delay_s": 0.2}', *OPTIONS, "--output-dir", str(tmp_path)]
    process = subprocess.Popen(slow, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    journal = (tmp_path / CSV).with_suffix(".journal.jsonl")
    while not (journal.exists() and journal.read_bytes().count(b'"point"') >= 2):
        time.sleep(0.02)
        assert process.poll() is None
    second = run(*OPTIONS)
    assert second.code == 2 and f"is being written by another process (id {process.pid})" in second.err
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert error.splitlines()[-1] == "run_profile.py: interrupted; the same command goes on from here"
    assert "Traceback" not in error
    assert not (tmp_path / CSV).exists()
    done = run(*OPTIONS)
    assert done.code == 0 and "going on: " in done.err
    run(*OPTIONS, "--hardware", "whole")
    assert (tmp_path / CSV).read_text() == (tmp_path / "whole" / CSV.name).read_text().replace("whole", "FAKE")


def test_other_conditions_are_refused_by_name(run: Run, tmp_path: Path) -> None:
    run(*OPTIONS)
    before = files_in(tmp_path)
    for options in ([], ["--append"]):
        refused = run(*OPTIONS, "--num-layers", "2", *options)
        assert refused.code == 2
        assert "num_layers is 1 there and 2 now" in refused.err and "--overwrite" in refused.err
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("prefill_max", ["9", "4"])
def test_other_ranges_need_append(run: Run, tmp_path: Path, prefill_max: str) -> None:
    run(*OPTIONS)
    before = files_in(tmp_path)
    wider = [*OPTIONS, "--prefill-max", prefill_max]
    refused = run(*wider)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "--prefill-max 6" in refused.err and "--append" in refused.err and "--overwrite" in refused.err
    assert refused.err == run(*wider, "--plan").err
    assert files_in(tmp_path) == before
    assert run(*wider, "--append").code == 0
    assert "complete" in run(*wider, "--append").err
    inputs = {int(row["input"]) for row in rows_of(tmp_path / CSV)}
    assert inputs == set(range(1, max(6, int(prefill_max)) + 1))


def test_overwrite_starts_anew_and_keeps_the_old_table(run: Run, tmp_path: Path) -> None:
    run(*OPTIONS)
    old = (tmp_path / CSV).read_bytes()
    assert run(*OPTIONS, "--num-layers", "2", "--prefill-max", "3", "--overwrite").code == 0
    assert (tmp_path / CSV).with_name("tiny-llama.csv.bak").read_bytes() == old
    table = LatencyTable.read(tmp_path / CSV)
    assert table.meta["conditions"]["num_layers"] == 2 and len(table.records) == 9


def test_an_example_gives_way_and_is_kept(run: Run, tmp_path: Path) -> None:
    run(*OPTIONS)
    meta = (tmp_path / CSV).with_suffix(".meta.json")
    meta.write_text(meta.read_text().replace('"origin": "measured"', '"origin": "example"'))
    assert ", 0 of them known" in run(*OPTIONS, "--plan").out
    done = run(*OPTIONS, "--prefill-max", "3")
    assert done.code == 0 and "measured 9 points" in done.err
    assert (tmp_path / CSV).with_name("tiny-llama.example.csv").exists()


# ---- points that are missing


def test_out_of_memory_is_told_and_tried_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, TroubledBackend(out_of_memory_at=6))
    done = run(*OPTIONS)
    assert done.code == 3
    assert "missing: 3 points: out of memory (first: input 6, kv_cache 0)" in done.out
    assert "measured 9 points" in done.err
    table = LatencyTable.read(tmp_path / CSV)
    assert len(table.records) == 9 and set(table.missing.values()) == {"out of memory"}
    before = files_in(tmp_path)
    again = run(*OPTIONS)
    assert again.code == 3 and "going on: 9 of 12 points" in again.err
    assert files_in(tmp_path) == before, "no news"
    use(monkeypatch, TroubledBackend())
    assert run(*OPTIONS).code == 0
    assert not LatencyTable.read(tmp_path / CSV).missing


def test_memory_for_nothing_at_all(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, TroubledBackend(out_of_memory_at=1))
    assert run(*OPTIONS).code == 3
    assert run(*OPTIONS, "--verbose").code == 3
    assert rows_of(tmp_path / CSV) == []


def test_learned_positions_end(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TroubledBackend(learned_positions=5)
    use(monkeypatch, backend)
    done = run(*OPTIONS)
    assert done.code == 3
    assert max(point.total_len for point in backend.asked) == 5
    assert "missing: 3 points: beyond the model's 5 learned positions (first: input 6, kv_cache 0)" in done.out
    assert "--prefill-max 5 --decode-max 4 leaves them out" in done.out
    again = run(*OPTIONS)
    assert again.code == 3 and "complete: every point that can be measured" in again.err
    assert run(*OPTIONS, "--prefill-max", "5", "--decode-max", "4", "--overwrite").code == 0


def test_a_model_with_learned_positions_on_the_cpu(run: Run, tmp_path: Path) -> None:
    folder = config_folder(tmp_path / "small-opt", **(tiny.CONFIGS["opt"] | {"max_position_embeddings": 4}))
    sweep = ["--model", folder, *CPU[2:], "--load-format", "dummy"]
    done = run(*sweep, "--skip-scaling")
    assert done.code == 3 and "missing: 1 points: beyond the model's 4 learned positions" in done.out
    table = LatencyTable.read(tmp_path / "CPU" / "small-opt.csv")
    assert list(table.missing) == [SweepPoint(1, 4)]
    assert {"embedding", "q_proj", "attn", "act_fn", "post_layernorm", "lm_head"} <= set(table.row_names())
    plan = run(*sweep, "--skip-scaling", "--plan", "--append").out
    assert "points: 4 prefill, 4 decode, 7 of them known" in plan
    assert "1 will be missing: beyond the model's 4 learned positions" in plan
    beyond = [*sweep, "--scaling-input-min", "3", "--scaling-input-max", "3", "--overwrite"]
    refused = run(*beyond)
    assert refused.code == 2 and refused.err == run(*beyond, "--plan").err
    assert "(input 3, output 3) needs input 1, kv_cache 4, which is missing (beyond the model's 4" in refused.err


def test_positions_that_only_the_model_tells_of(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs are refused after loading, and still before anything is measured."""
    backend = TroubledBackend(learned_positions=4)
    monkeypatch.setitem(BACKENDS, "cpu", lambda request, source: backend)
    refused = run(*CPU, "--scaling-input-min", "3", "--scaling-input-max", "3")
    assert refused.code == 2 and "(input 3, output 3) needs input 1, kv_cache 4" in refused.err
    assert backend.asked == [] and files_in(tmp_path) == {}


def test_rotary_models_run_on_with_one_warning(run: Run, tmp_path: Path) -> None:
    folder = config_folder(tmp_path / "m", **(tiny.CONFIGS["llama"] | {"max_position_embeddings": 5}))
    done = run(*OPTIONS, "--model", folder)
    assert done.code == 0
    assert done.err.count("3 points are longer than the 5 positions") == 1
    assert "3 points are longer than the 5 positions" in run(*OPTIONS, "--model", folder, "--plan").out


# ---- validation


class MadeUpReality:
    """Steps whose times nothing can predict, the same in each repeat."""

    runtime = "eager"

    def prefill(self, input_lens: Sequence[int], repeat: int) -> Iterator[StepTimes]:
        return self._steps([SweepPoint(n, 0) for n in input_lens], repeat)

    def decode(self, kv_lens: Sequence[int], repeat: int) -> Iterator[StepTimes]:
        return self._steps([SweepPoint(1, k) for k in kv_lens], repeat)

    def decode_batches(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        return self._steps(points, repeat)

    def other_processes(self) -> list[int]:
        return []

    def close(self) -> None:
        pass

    def _steps(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        for point in points:
            yield StepTimes(point, (random.Random(f"{point}").randrange(10**6, 10**7),) * repeat)
