"""run_profile.py as a whole: mostly on the fake device, which is fast, and in some tests on a real CPU."""

import csv
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest

import run_profile
from llm_profile.cli import table_validation
from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.request import Request, ScalingRequest
from llm_profile.store.files import CSV_HEADER, read_table
from llm_profile.store.writer import TableWriter
from llm_profile.sweep import Sweep
from llm_profile.timing.backends import BACKENDS
from llm_profile.timing.backends.fake import ROWS, row_ns
from llm_profile.validation.profiled import Profiled
from llm_profile.validation.real_steps import StepTimes
from tests import tiny
from tests.fake_command import CSV, OPTIONS, POINTS, TroubledBackend, opener, use

ROOT = Path(__file__).parent.parent
TOKEN = "hf_" + "Secret9" * 5
CPU = ["--model", "tiny-llama", "--device", "cpu", "--prefill-max", "4", "--decode-max", "4", "--repeat", "2"]
PAIRS = ["--scaling-input-min", "1", "--scaling-input-max", "2", "--scaling-input-step", "1", "--scaling-repeat", "1"]
LAX = ["--scaling-tolerance", "1e9"]
"""While other tests run beside, wall times are too noisy for any tolerance."""


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
    """Runs `main` with `--output-dir` set to the test's folder."""

    def run(*arguments: str) -> Outcome:
        code = run_profile.main(["--output-dir", str(tmp_path), *arguments])
        return Outcome(code, *capsys.readouterr())

    return run


def command(*arguments: str, module: Sequence[str] = ("run_profile.py",), **options: Any) -> Outcome:
    """Run the command in a process of its own."""
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


# ---- a sweep: measured, repeated, resumed


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
    table = read_table(tmp_path / CSV)
    (measured,) = table.meta["runs"]
    assert measured["points"] == POINTS and measured["seconds"] > 0
    assert table.meta["source"] == {"name": "tiny-llama", "origin": "table", "revision": None}
    for told in ("12 points, 19 rows each", "unnamed rows (_other): ", "noise: ", "timed by: fake 12", str(CSV)):
        assert told in done.out
    assert "points measured: 12" in done.err


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
    runs = read_table(tmp_path / CSV).meta["runs"]
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
    assert error.splitlines()[-1] == "run_profile.py: interrupted; the same command resumes from here"
    assert "Traceback" not in error
    assert not (tmp_path / CSV).exists()
    done = run(*OPTIONS)
    assert done.code == 0 and "going on: " in done.err
    run(*OPTIONS, "--hardware", "whole")
    assert (tmp_path / CSV).read_text() == (tmp_path / "whole" / CSV.name).read_text().replace("whole", "FAKE")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--hardware", ""], "--hardware '': cannot name"),
        (["--hardware", "", "--plan"], "--hardware '': cannot name"),
        (["--hardware", ".."], "--hardware '..': cannot name"),
        (["--hardware", "a" * 5000], "--hardware 'aaa"),
        (["--model-name", ""], "--model-name '': cannot name"),
        (["--model-name", "", "--plan"], "--model-name '': cannot name"),
        (["--model-name", "a//b"], "--model-name 'a//b': cannot name"),
        (["--model-name", "a" * 5000], "--model-name 'aaa"),
        (["--model-name", "/".join(["a" * 100] * 50)], "File name too long; choose another"),
        (["--output-dir", ""], "--output-dir: the name is empty"),
        (["--output-dir", "o" * 5000], "File name too long; choose another"),
        (["--scaling-output", ""], "--scaling-output: the name is empty"),
        (["--model", ""], "--model : "),
        (["--model", "m" * 5000], "File name too long; give a folder"),
        (["--model", "./" + "m" * 5000], "File name too long; give a folder"),
        (["--model", "org/" + "m" * 5000], "File name too long; give a folder"),
        (["--model", "~nobody-of-this-name/m"], "--model ~nobody-of-this-name/m: "),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_names_that_are_none_are_one_line_and_exit_2(
    run: Run, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    refused = run(*OPTIONS, *arguments)
    assert refused.code == 2
    assert complaint in refused.err and refused.err.count("\n") == 1 and len(refused.err) < 700
    assert files_in(tmp_path) == {}


def test_a_damaged_csv_is_not_called_complete(run: Run, tmp_path: Path) -> None:
    run(*OPTIONS)
    whole = (tmp_path / CSV).read_bytes()
    (tmp_path / CSV).write_bytes(whole[:1000])
    again = run(*OPTIONS)
    assert again.code == 0
    assert f"{tmp_path / CSV} is damaged: line " in again.err and "written anew" in again.err
    assert (tmp_path / CSV).read_bytes() == whole
    assert "damaged" not in run(*OPTIONS).err


def test_a_damaged_journal_is_told_and_its_points_are_measured_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*OPTIONS, "--hardware", "whole")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="an error of the device"):
        use(patch, TroubledBackend(crash_at=7))
        run(*OPTIONS)
    journal = (tmp_path / CSV).with_suffix(".journal.jsonl")
    content = bytearray(journal.read_bytes())
    at = content.index(b'"attn":[', content.index(b'{"point"')) + 10
    content[at] ^= 1
    journal.write_bytes(content)
    again = run(*OPTIONS)
    assert again.code == 0 and "1 lines are damaged" in again.err
    assert (tmp_path / CSV).read_text() == (tmp_path / "whole" / CSV.name).read_text().replace("whole", "FAKE")


def test_other_conditions_are_refused_by_name(run: Run, tmp_path: Path) -> None:
    run(*OPTIONS)
    before = files_in(tmp_path)
    for options in ([], ["--append"]):
        refused = run(*OPTIONS, "--num-layers", "2", *options)
        assert refused.code == 2
        assert "num_layers is 1 there and 2 now" in refused.err and "--overwrite" in refused.err
    assert files_in(tmp_path) == before


def test_an_edited_configuration_is_another_model(run: Run, tmp_path: Path) -> None:
    folder = Path(config_folder(tmp_path / "m", **tiny.CONFIGS["llama"]))
    options = [*OPTIONS[2:], "--model", str(folder)]
    assert run(*options).code == 0
    fields = tiny.CONFIGS["llama"] | {"intermediate_size": 32}
    (folder / "config.json").write_text(json.dumps(fields))
    for more in ([], ["--append", "--prefill-max", "9"]):
        refused = run(*options, *more)
        assert refused.code == 2
        assert "config.intermediate_size is" in refused.err and "there and 32 now" in refused.err


def test_points_that_no_run_asked_for_need_append(run: Run, tmp_path: Path) -> None:
    run(*OPTIONS)
    before = files_in(tmp_path)
    wider = [*OPTIONS, "--prefill-max", "9"]
    refused = run(*wider)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "--prefill-max 6" in refused.err and "--append" in refused.err and "--overwrite" in refused.err
    assert refused.err == run(*wider, "--plan").err
    assert files_in(tmp_path) == before
    assert run(*wider, "--append").code == 0
    for again in ([*wider, "--append"], wider, OPTIONS):
        assert "complete" in run(*again).err
    assert {int(row["input"]) for row in rows_of(tmp_path / CSV)} == set(range(1, 10))


@pytest.mark.parametrize(
    "options",
    [
        ["--prefill-max", "4"],
        ["--decode-step", "5"],
        ["--mode", "decode"],
        ["--mode", "prefill", "--decode-max", "99"],
        ["--grid", "adaptive"],
    ],
    ids=" ".join,
)
def test_points_that_are_there_are_complete_whatever_the_command_line(
    run: Run, tmp_path: Path, options: list[str]
) -> None:
    run(*OPTIONS)
    before = files_in(tmp_path)
    again = run(*OPTIONS, *options)
    assert again.code == 0 and "complete: " in again.err
    assert files_in(tmp_path) == before


def test_fewer_points_of_a_run_that_broke_off_go_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = TroubledBackend(crash_at=6), TroubledBackend(), TroubledBackend()
    use(monkeypatch, first)
    with pytest.raises(RuntimeError):
        run(*OPTIONS)
    use(monkeypatch, second)
    assert run(*OPTIONS, "--prefill-max", "3").code == 0
    asked = {*Sweep("both", 3, 6).points()}
    assert {*second.asked} == asked - {*first.asked[:-1]}
    use(monkeypatch, third)
    assert run(*OPTIONS).code == 0
    assert sorted([*first.asked[:-1], *second.asked, *third.asked]) == sorted(Sweep("both", 6, 6).points())


def test_overwrite_starts_anew_and_keeps_the_old_table(run: Run, tmp_path: Path) -> None:
    run(*OPTIONS)
    old = (tmp_path / CSV).read_bytes()
    assert run(*OPTIONS, "--num-layers", "2", "--prefill-max", "3", "--overwrite").code == 0
    assert (tmp_path / CSV).with_name("tiny-llama.csv.bak").read_bytes() == old
    table = read_table(tmp_path / CSV)
    assert table.meta["conditions"]["num_layers"] == 2 and len(table.records) == 9


def test_an_example_is_renamed_and_kept(run: Run, tmp_path: Path) -> None:
    run(*OPTIONS)
    meta = (tmp_path / CSV).with_suffix(".meta.json")
    meta.write_text(meta.read_text().replace('"origin": "measured"', '"origin": "example"'))
    assert ", 0 of them known" in run(*OPTIONS, "--plan").out
    done = run(*OPTIONS, "--prefill-max", "3")
    assert done.code == 0 and "points measured: 9" in done.err
    assert (tmp_path / CSV).with_name("tiny-llama.example.csv").exists()


# ---- adaptive grids, and points that are missing


WIDE = [*OPTIONS[:-4], "--prefill-max", "256", "--decode-max", "256"]


def test_an_adaptive_grid_fills_the_table(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TroubledBackend()
    use(monkeypatch, backend)
    first = run(*WIDE, "--grid", "adaptive")
    assert first.code == 0, first.err
    measured, every = len(backend.asked), 2 * 256
    assert measured <= 0.15 * every + 1
    assert f"filled: {every - measured} of {every} points" in first.out
    assert "at the 99th percentile" in first.out
    table = read_table(tmp_path / CSV)
    assert len(table.records) == every and table.meta["runs"][-1]["points"] == measured
    assert sum(record.is_measured for record in table.records.values()) == measured
    q_proj = SweepPoint(200, 0)
    assert table.latency_ns("q_proj", q_proj) == pytest.approx(row_ns("q_proj", q_proj), rel=0.01)
    assert len((tmp_path / CSV).read_text().splitlines()) == 1 + every * len(ROWS)

    content = (tmp_path / CSV).read_bytes()
    assert run(*WIDE, "--grid", "adaptive").err.count("complete: ") == 1
    assert len(backend.asked) == measured and (tmp_path / CSV).read_bytes() == content

    assert "--append" in run(*WIDE).err, "the full grid is another request"
    assert run(*WIDE, "--append").code == 0
    assert len(backend.asked) == every, "what was measured is not measured again"
    assert all(record.is_measured for record in read_table(tmp_path / CSV).records.values())
    assert "complete: " in run(*WIDE).err and "complete: " in run(*WIDE, "--grid", "adaptive").err


def test_an_adaptive_grid_goes_on_where_it_broke_off(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = TroubledBackend(crash_at=129)
    use(monkeypatch, broken)
    with pytest.raises(RuntimeError, match="an error of the device"):
        run(*WIDE, "--grid", "adaptive")
    backend = TroubledBackend()
    use(monkeypatch, backend)
    assert run(*WIDE, "--grid", "adaptive").code == 0
    assert not {*broken.asked[:-1]} & {*backend.asked}
    assert len(read_table(tmp_path / CSV).records) == 512


def test_memory_that_ends_on_an_adaptive_grid(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, TroubledBackend(out_of_memory_at=201))
    told = run(*WIDE, "--grid", "adaptive")
    assert told.code == 3
    table = read_table(tmp_path / CSV)
    assert {point.total_len <= 200 for point in table.records} == {True} and len(table.records) == 200 + 199
    assert len(table.missing) == 512 - 399
    assert "out of memory at a shorter length" in told.out


def test_out_of_memory_is_told_and_tried_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, TroubledBackend(out_of_memory_at=6))
    done = run(*OPTIONS)
    assert done.code == 3
    assert "missing: 3 of 12 points: out of memory (first: input 6, kv_cache 0)" in done.out
    assert "points measured: 9" in done.err
    table = read_table(tmp_path / CSV)
    assert len(table.records) == 9 and set(table.missing.values()) == {"out of memory"}
    before = files_in(tmp_path)
    again = run(*OPTIONS)
    assert again.code == 3 and "going on: 9 of 12 points" in again.err
    assert files_in(tmp_path) == before, "no news"
    use(monkeypatch, TroubledBackend())
    assert run(*OPTIONS).code == 0
    assert not read_table(tmp_path / CSV).missing


def test_a_run_that_learns_nothing_leaves_the_records_of_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, TroubledBackend(out_of_memory_at=6))
    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, "finish", Mock(side_effect=KeyboardInterrupt))
        assert run(*OPTIONS).code == 130
    done = run(*OPTIONS)
    assert done.code == 3 and "points measured" not in done.err
    (only,) = read_table(tmp_path / CSV).meta["runs"]
    assert only["points"] == 9 and "seconds" not in only, "the seconds of the second run are none of the first"


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
    assert "missing: 3 of 12 points: beyond the model's 5 learned positions (first: input 6, kv_cache 0)" in done.out
    assert "--prefill-max 5 --decode-max 4 leaves them out" in done.out
    again = run(*OPTIONS)
    assert again.code == 3 and "complete: every point that can be measured" in again.err
    assert run(*OPTIONS, "--prefill-max", "5", "--decode-max", "4", "--overwrite").code == 0


def test_a_model_with_learned_positions_on_the_cpu(run: Run, tmp_path: Path) -> None:
    folder = config_folder(tmp_path / "small-opt", **(tiny.CONFIGS["opt"] | {"max_position_embeddings": 4}))
    sweep = ["--model", folder, *CPU[2:], "--load-format", "dummy"]
    done = run(*sweep, "--skip-scaling")
    assert done.code == 3 and "missing: 1 of 8 points: beyond the model's 4 learned positions" in done.out
    table = read_table(tmp_path / "CPU" / "small-opt.csv")
    assert list(table.missing) == [SweepPoint(1, 4)]
    assert {"embedding", "q_proj", "attn", "act_fn", "post_layernorm", "lm_head"} <= set(table.row_names())
    plan = run(*sweep, "--skip-scaling", "--plan", "--append").out
    assert "points: 4 prefill, 4 decode, 7 of them known" in plan
    assert "1 of 8 points will be missing: beyond the model's 4 learned positions" in plan
    beyond = [*sweep, "--scaling-input-min", "3", "--scaling-input-max", "3", "--overwrite"]
    refused = run(*beyond)
    assert refused.code == 2 and refused.err == run(*beyond, "--plan").err
    assert "(input 3, output 3) needs input 1, kv_cache 4, which is missing (beyond the model's 4" in refused.err


def test_positions_that_only_the_model_tells_of(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If only the loaded model says how many positions it has, pairs are refused before anything is measured."""
    backend = TroubledBackend(learned_positions=4)
    monkeypatch.setitem(BACKENDS, "cpu", lambda request, source: backend)
    refused = run(*CPU, "--scaling-input-min", "3", "--scaling-input-max", "3")
    assert refused.code == 2 and "(input 3, output 3) needs input 1, kv_cache 4" in refused.err
    assert backend.asked == [] and files_in(tmp_path) == {}


def test_rotary_models_run_on_with_one_warning(run: Run, tmp_path: Path) -> None:
    folder = config_folder(tmp_path / "m", **(tiny.CONFIGS["llama"] | {"max_position_embeddings": 5}))
    done = run(*OPTIONS[2:], "--model", folder)
    assert done.code == 0
    assert done.err.count("3 of 12 points go beyond the model's 5 positions") == 1
    assert "3 of 12 points go beyond the model's 5 positions" in run(*OPTIONS[2:], "--model", folder, "--plan").out


# ---- validation


class MadeUpReality:
    """A real model whose steps take random times, the same ones in each repeat, so that no scaling fits them."""

    runtime = "eager"

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.seconds: dict[str, float] = {}

    def steps(self, input_lens: Sequence[int], windows: Sequence[Sequence[int]], repeat: int) -> Iterator[StepTimes]:
        decode = [SweepPoint(1, k) for window in windows for k in window]
        return self.batched([*(SweepPoint(n, 0) for n in input_lens), *decode], repeat)

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        for point in points:
            yield StepTimes(point, (random.Random(f"{point}").randrange(10**6, 10**7),) * repeat)

    def close(self) -> None:
        pass


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """`--device cpu` is a fake device with a MadeUpReality. The depths at which real models were opened so far."""
    depths: list[int] = []

    def open_reality(_runtime: str, _profiled: Profiled, depth: int, *_access: Any, **_options: Any) -> MadeUpReality:
        depths.append(depth)
        return MadeUpReality()

    monkeypatch.setitem(BACKENDS, "cpu", opener({}))
    monkeypatch.setattr(table_validation, "ProcessReality", open_reality)
    return depths


JUDGED = [*CPU, "--prefill-max", "8", "--decode-max", "10"]
JUDGED += ["--scaling-input-min", "2", "--scaling-input-max", "6", "--scaling-input-step", "2"]


def test_an_error_above_the_tolerance_is_exit_code_4(run: Run, opened: list[int]) -> None:
    done = run(*JUDGED, "--scaling-tolerance", "0")
    assert done.code == 4 and opened == [4]
    assert "Over tolerance (0.0 %)" in done.out
    assert run(*JUDGED, *LAX, "--overwrite").code == 0


def test_other_depths_are_timed_as_well(run: Run, tmp_path: Path, opened: list[int]) -> None:
    assert run(*JUDGED, *LAX, "--scaling-other-depths", "1", "2").code == 0
    assert opened == [1, 2, 4]
    told = json.loads((tmp_path / "CPU" / "tiny-llama.validation.json").read_text())
    assert told["depth_extrapolation"]["total"]["n"] > 0
    assert told["provenance"]["request"]["other_depths"] == [1, 2]
    assert run(*JUDGED, *LAX, "--scaling-other-depths", "1", "2").code == 0
    assert opened == [1, 2, 4], "done before with the same options"


def test_a_validation_is_not_repeated_without_need(run: Run, tmp_path: Path, opened: list[int]) -> None:
    strict = [*JUDGED, "--scaling-tolerance", "0"]
    assert run(*strict).code == 4
    before = files_in(tmp_path)
    again = run(*strict)
    assert again.code == 4, "the error is still above the tolerance"
    assert "complete: " in again.err and "validated against the real model before" in again.err
    assert opened == [4] and files_in(tmp_path) == before
    assert run(*JUDGED, *LAX).code == 0
    assert opened == [4, 4], "other options"
    assert run(*JUDGED, *LAX).code == 0
    assert opened == [4, 4]
    (tmp_path / "CPU" / "tiny-llama-scaled.csv").unlink()
    run(*JUDGED, *LAX)
    assert opened == [4, 4, 4], "its scaled table was gone"
    wider = [*JUDGED, *LAX, "--decode-max", "11", "--append"]
    run(*wider)
    assert opened == [4, 4, 4, 4], "the table has new points"
    run(*wider)
    assert opened == [4, 4, 4, 4]
    (tmp_path / "CPU" / "tiny-llama.validation.json").write_text("[]")
    run(*wider)
    assert opened == [4, 4, 4, 4, 4]


def test_pairs_that_ran_out_of_memory_are_told(
    run: Run, opened: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(BACKENDS, "cpu", opener({"out_of_memory_at": 3}))
    done = run(*CPU, *PAIRS)
    assert done.code == 3 and opened == []
    assert "not validated against the real model: (input 2, output 2) needs input 1, kv_cache 2" in done.err
    assert "missing: 5 of 8 points: out of memory" in done.out
    assert (tmp_path / "CPU" / "tiny-llama.csv").exists()


def test_pairs_may_be_of_the_table_that_is_added_to(run: Run, opened: list[int]) -> None:
    run(*CPU, "--skip-scaling")
    assert run(*CPU, *PAIRS, *LAX, "--prefill-max", "6", "--mode", "prefill", "--append").code == 0
    assert opened == [4]


def test_the_cpu_for_real(run: Run, tmp_path: Path) -> None:
    """From the model to the scaled table without any fakes."""
    done = run(*CPU, *PAIRS, *LAX)
    assert done.code == 0, done.err
    folder = tmp_path / "CPU"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"tiny-llama{ending}"
        for ending in (
            *(".csv", ".meta.json", ".rows.parquet", ".validation.json"),
            *("-scaled.csv", "-scaled.meta.json", "-scaled.rows.parquet", ".host.csv", ".report.html"),
        )
    )
    table = read_table(folder / "tiny-llama.csv")
    assert table.meta["clock"] == "cpu-wall" and table.meta["conditions"]["weights"] == "dummy"
    names = "embedding input_layernorm q_proj k_proj v_proj rope attn o_proj post_layernorm gate_proj up_proj act_fn"
    names += " down_proj final_layernorm lm_head attn_other mlp_other block_other model_other"
    assert set(table.row_names()) == set(names.split())
    assert all(int(row["latency(ns)"]) > 0 for row in rows_of(folder / "tiny-llama.csv"))
    told = json.loads((folder / "tiny-llama.validation.json").read_bytes())
    asked = {(pair["input"], pair["output"]) for pair in told["pairs"] if not pair["held_out"]}
    assert asked == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert told["provenance"]["conditions"] == table.meta["conditions"]
    assert json.loads((folder / "tiny-llama-scaled.meta.json").read_bytes())["scaling"]["source"] == "tiny-llama.csv"
    assert "validated against the real model before" in run(*CPU, *PAIRS, *LAX).err


def test_real_weights_of_a_local_folder(run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from llm_profile.models.building import make_config

    folder = tmp_path / "saved"
    AutoModelForCausalLM.from_config(make_config(tiny.CONFIGS["llama"])).save_pretrained(folder)
    arguments = ["--model", str(folder), "--model-name", "org/mine", *CPU[2:], *PAIRS, *LAX, "--scaling-processes", "1"]
    done = run(*arguments)
    assert done.code == 0 and "real weights" in done.err
    table = read_table(tmp_path / "CPU" / "org" / "mine.csv")
    assert (table.model, table.meta["conditions"]["weights"]) == ("org/mine", "folder saved")
    refused = run(*arguments, "--load-format", "dummy")
    assert refused.code == 2 and 'weights is "folder saved" there and "dummy" now' in refused.err


def test_the_function_is_what_the_command_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = Request("tiny-llama", Sweep("prefill", 3), device="fake", output_dir=tmp_path)
    result = run_profile.run_profile(request)
    assert (result.csv, result.missing, result.exit_code) == (tmp_path / CSV, {}, 0)
    with pytest.raises(UsageError, match="--skip-scaling"):
        Request("tiny-llama", device="fake", scaling=ScalingRequest(pairs=((1, 1),)))


# ---- mistakes


FAKE = OPTIONS[2:]
MISTAKES = {
    "no model": ([], "--model"),
    "unknown option": ([*OPTIONS, "--prefil-max", "3"], "--prefil-max"),
    "near name": (["--model", "tiny-lama", *FAKE], "did you mean tiny-llama"),
    "near names": (["--model", "Llama-3.1-9B", *FAKE], "did you mean meta-llama/Llama-3.1-8B or "),
    "no folder": (["--model", "./nowhere", *FAKE], "--model ./nowhere: is no folder"),
    "no revision of the table": ([*OPTIONS, "--revision", "v1"], "--revision"),
    "more blocks": ([*OPTIONS, "--num-layers", "5"], "--num-layers 5: the model has 4 blocks; use 1 to 4"),
    "more blocks to validate": (
        [*CPU, *PAIRS, "--scaling-num-layers", "5"],
        "--scaling-num-layers 5: the model has 4 blocks; use 1 to 4",
    ),
    "other depths": (
        [*CPU, *PAIRS, "--scaling-other-depths", "2", "5"],
        "--scaling-other-depths 5: the model has 4 blocks; use 1 to 4",
    ),
    "other depth of zero": (
        [*CPU, *PAIRS, "--scaling-other-depths", "0"],
        "--scaling-other-depths 0: must be a whole number of at least 1",
    ),
    "device": ([*OPTIONS, "--device", "cudda"], "--device cudda"),
    "device number": ([*OPTIONS, "--device", "cuda:x"], "--device cuda:x"),
    "nothing real to validate": ([*OPTIONS[:4]], "--skip-scaling"),
    "graphs on a CPU": ([*CPU, *PAIRS, "--scaling-runtime", "cuda-graph"], "--scaling-runtime"),
    "append and overwrite": ([*OPTIONS, "--append", "--overwrite"], "--append"),
    "mode": ([*OPTIONS, "--mode", "all"], "--mode"),
    "precision": ([*OPTIONS, "--precision", "nan"], "--precision nan"),
    "tolerance of a validation that is skipped": ([*OPTIONS, "--scaling-tolerance", "nan"], "--scaling-tolerance nan"),
    "tolerance below 0": ([*OPTIONS, "--scaling-tolerance", "-1"], "--scaling-tolerance -1"),
    "precision of 100 %": ([*OPTIONS, "--precision", "100"], "--precision 100"),
    "warmup": ([*OPTIONS, "--warmup", "-1"], "--warmup -1"),
    "seed": ([*OPTIONS, "--seed", str(2**63)], "--seed 9223372036854775808"),
    "a whole number": ([*OPTIONS, "--prefill-max", "1e3"], "--prefill-max"),
    "far too many points": ([*OPTIONS, "--decode-max", "10" * 9], "--decode-max 1010"),
    "far too many pairs": ([*CPU, "--scaling-input-max", "10" * 9], "--scaling-input-max"),
    "no finite tolerance": ([*CPU, *PAIRS, "--scaling-tolerance", "inf"], "--scaling-tolerance"),
    "prompts beyond the table": (
        [*CPU, "--scaling-input-min", "5", "--scaling-input-max", "5"],
        "(input 5, output 5) needs a prefill pass of 5 tokens",
    ),
    "steps beyond the table": (
        [*CPU, "--scaling-input-min", "4", "--scaling-input-max", "4"],
        "(input 4, output 4) needs a decode step at kv_cache 6",
    ),
    "steps without decode": ([*CPU, *PAIRS, "--mode", "prefill"], "--mode both"),
    "prompts without prefill": ([*CPU, *PAIRS, "--mode", "decode"], "--mode both"),
    "scaled into no table": ([*CPU, *PAIRS, "--scaling-output", "scaled.txt"], "scaled.txt"),
    **{
        f"{option} {value}": ([*OPTIONS, option, value], f"{option} {value}")
        for option in ("--prefill-max", "--decode-max", "--prefill-step", "--decode-step", "--num-layers", "--repeat")
        for value in ("0", "-1")
    },
    **{
        f"{option} {value}": ([*CPU, *PAIRS, option, value], f"{option} {value}")
        for option in (
            *(f"--scaling-{what}-{bound}" for what in ("input", "output") for bound in ("min", "max", "step")),
            *("--scaling-num-layers", "--scaling-repeat", "--scaling-processes"),
        )
        for value in ("0", "-1")
    },
    **{
        f"scaling {what}s turned round": (
            [*CPU, *PAIRS, f"--scaling-{what}-min", "3", f"--scaling-{what}-max", "2"],
            f"--scaling-{what}-min 3: is above --scaling-{what}-max 2",
        )
        for what in ("input", "output")
    },
    **{
        f"{option} {name!r}": ([*OPTIONS, option, name], option)
        for option in ("--hardware", "--model-name")
        for name in ("../up", "/etc/x", "..", "a/../../b", "a\\b", "~root", "new\nline", "x" * 300)
    },
    "hardware with folders": ([*OPTIONS, "--hardware", "a/b"], "--hardware"),
    "a file where the folder should be": ([*OPTIONS, "--output-dir", str(Path(__file__) / "x")], "test_run_profile.py"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_touch_nothing(run: Run, tmp_path: Path, mistake: str) -> None:
    arguments, named = MISTAKES[mistake]
    refused = run(*arguments)
    assert refused.code == 2
    assert refused.err.count("\n") == 1 and refused.err.startswith("run_profile.py: "), refused.err
    assert named in refused.err
    assert refused.out == "" and list(tmp_path.iterdir()) == []
    assert run(*arguments, "--plan") == refused, "the plan is refused as the run is"


def test_names_of_model_folders_cannot_leave_either(run: Run, tmp_path: Path) -> None:
    folder = config_folder(tmp_path / "a\\b", **tiny.CONFIGS["llama"])
    refused = run(*OPTIONS[2:], "--model", folder)
    assert refused.code == 2 and "--model-name" in refused.err
    assert run(*OPTIONS[2:], "--model", folder, "--model-name", "fine").code == 0
    assert (tmp_path / "FAKE" / "fine.csv").exists()


@pytest.mark.parametrize("hardware", [[], ["--hardware", "H200"]])
def test_no_gpu_is_told_before_weights_are_fetched(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(run_profile, "with_weights", lambda request, source: pytest.fail("weights are fetched"))
    refused = run("--model", "tiny-llama", *hardware)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "--device cuda: " in refused.err and "--device cpu" in refused.err
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_is_refused_and_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "FAKE").mkdir()
    (tmp_path / CSV).write_text("my,own,numbers\n1,2,3\n")
    backend = TroubledBackend()
    use(monkeypatch, backend)
    refused = run(*OPTIONS)
    assert refused.code == 2 and "not a table of LLM-Profile" in refused.err and refused.err.count("\n") == 1
    assert run(*OPTIONS, "--plan") == refused
    assert backend.asked == [] and files_in(tmp_path) == {str(CSV): b"my,own,numbers\n1,2,3\n"}
    assert run(*OPTIONS, "--overwrite").code == 0
    assert (tmp_path / CSV).with_name("tiny-llama.csv.bak").read_text().startswith("my,own")


@pytest.mark.parametrize("file", ["tiny-llama.meta.json", "tiny-llama.rows.parquet"])
def test_damage_is_refused(run: Run, tmp_path: Path, file: str) -> None:
    run(*OPTIONS)
    (tmp_path / "FAKE" / file).write_bytes(b"{")
    for arguments in (OPTIONS, [*OPTIONS, "--plan"]):
        refused = run(*arguments)
        assert refused.code == 2 and file in refused.err and refused.err.count("\n") == 1


def test_a_scaled_table_never_takes_the_place_of_another(run: Run, tmp_path: Path, opened: list[int]) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("mine")
    for target in (mine, tmp_path / "CPU" / "tiny-llama.csv"):
        refused = run(*CPU, *PAIRS, "--scaling-output", str(target))
        assert refused.code == 2 and "--scaling-output" in refused.err
    assert files_in(tmp_path) == {"mine.csv": b"mine"} and opened == []


def test_a_folder_that_takes_no_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))  # root may write anywhere
    refused = run(*OPTIONS)
    assert refused.code == 2 and refused.err.count("\n") == 1 and f"{tmp_path} is no folder" in refused.err
    assert run(*OPTIONS, "--plan") == refused


# ---- the token


@pytest.mark.parametrize("token", [TOKEN, "no-usual-token-0123456789"])
def test_the_token_is_nowhere(tmp_path: Path, token: str) -> None:
    crash = ("-m", "tests.fake_command", '{"crash_at": 4}')
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_TOKEN": token}
    told = []
    for module, by_option, code in ((crash, True, 1), (crash, False, 1), (("run_profile.py",), True, 0)):
        arguments = [
            *OPTIONS,
            "--verbose",
            "--output-dir",
            str(tmp_path),
            *(["--hf-token", token] if by_option else []),
        ]
        done = command(*arguments, module=module, env=environment)
        assert done.code == code, done.err
        told += [done.out, done.err]
    assert "Traceback" in told[1]
    assert not any(token in text for text in told)
    assert not [name for name, data in files_in(tmp_path).items() if token.encode() in data]
    assert token not in repr(Request("tiny-llama", hf_token=token))


def test_a_token_in_the_wrong_place_is_not_repeated(run: Run) -> None:
    for arguments in ([*OPTIONS, "--token", TOKEN], ["--model", TOKEN, *FAKE], [*OPTIONS, f"--hf_token={TOKEN}"]):
        refused = run(*arguments)
        assert refused.code == 2 and TOKEN not in refused.err + refused.out


# ---- what is printed


def test_verbose_tells_conditions_and_rows_before_the_summary(run: Run) -> None:
    plain, verbose = run(*OPTIONS, "--hardware", "a"), run(*OPTIONS, "--hardware", "b", "--verbose")
    assert "conditions: gpu fake, num_layers 1" in verbose.err
    shares = [line.split() for line in verbose.out.splitlines() if line.startswith("  ")]
    assert [name for name, *_ in shares] == list(ROWS)
    for phase in (1, 2):
        assert sum(float(share[phase].rstrip("%")) for share in shares) == pytest.approx(100, abs=1)
    assert [line.split(":")[0] for line in plain.err.splitlines()] == ["--device fake", "points measured"]
    heads = ["tiny-llama on a", "timed by", "noise", "table", "report"]
    assert [line.split(":")[0] for line in plain.out.splitlines()] == heads
    last = [line.split(":")[0] for line in verbose.out.splitlines()[-len(heads) :]]
    assert last == ["tiny-llama on b", *heads[1:]], "the summary comes last"


def without_warning(err: str) -> list[str]:
    """The lines of stderr without the warning about releases that are newer than the tested ones."""
    return [line for line in err.splitlines() if not line.startswith("newer than tested: ")]


def test_a_terminal_gets_a_bar_and_a_file_does_not(tmp_path: Path) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}
    slow = ("-m", "tests.fake_command", '{"delay_s": 0.15, "out_of_memory_at": 6}')
    piped = command(*OPTIONS, "--output-dir", str(tmp_path / "a"), module=slow, env=environment)
    assert piped.code == 3 and "\x1b" not in piped.err and len(without_warning(piped.err)) == 2
    leader, follower = pty.openpty()
    arguments = [sys.executable, *slow, *OPTIONS, "--output-dir", str(tmp_path / "b")]
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=follower)
    os.close(follower)
    drawn = b""
    try:
        while data := os.read(leader, 65536):
            drawn += data
    except OSError:  # Linux raises EIO when the other side of a pty is closed
        pass
    os.close(leader)
    assert process.wait() == 3
    text = drawn.decode()
    assert "of 12 points, " in text and " left, input 1, kv_cache " in text
    assert "input 6, kv_cache 0: out of memory" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_log_that_takes_no_more_stops_no_run(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        arguments = [sys.executable, "run_profile.py", *OPTIONS, "--output-dir", str(tmp_path)]
        done = subprocess.run(arguments, cwd=ROOT, stdout=full, stderr=full)
    assert done.returncode == 0 and len(read_table(tmp_path / CSV).records) == POINTS


def test_a_reader_that_has_enough_is_no_error() -> None:
    arguments = [sys.executable, "run_profile.py", "--model", "tiny-llama", "--plan"]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert not without_warning(process.stderr.read().decode()) and process.wait() == 0
    process.stderr.close()


def test_names_are_not_markup(run: Run, tmp_path: Path, opened: list[int]) -> None:
    names = ["--output-dir", str(tmp_path / "[/b]"), "--hardware", "[red]", "--model-name", "[x]y"]
    done = run(*CPU, *PAIRS, *LAX, *names, "--verbose")
    assert done.code == 0 and opened == [4]
    assert "[x]y on [red] against the real model" in done.out
    assert f"scaled table: {tmp_path}/[/b]/[red]/[x]y-scaled.csv" in done.out


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_numbers_that_json_has_not_do_not_keep_a_table_from_being_written_and_resumed(
    run: Run, tmp_path: Path, number: str
) -> None:
    folder = Path(config_folder(tmp_path / "m", **tiny.CONFIGS["llama"]))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(f'{text[:-1]}, "limits": [0.0, {number}], "nested": {{"x": {number}}}}}')
    options = [*OPTIONS[2:], "--model", str(folder)]
    assert run(*options).code == 0
    before = files_in(tmp_path / "FAKE")
    assert run(*options).code == 0
    assert files_in(tmp_path / "FAKE") == before
    (meta,) = [json.loads(data) for name, data in before.items() if name.endswith(".meta.json")]
    name = "Infinity" if number == "1e999" else number
    assert meta["config"]["limits"] == [0.0, {"__float__": name}]
    assert meta["config"]["nested"] == {"x": {"__float__": name}}
