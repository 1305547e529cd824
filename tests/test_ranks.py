"""Ranks of real torchruns on a CPU: they share points, and one that dies, hangs, differs or disagrees costs nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_profile.errors import UsageError
from llm_profile.measurement import PointFailure, PointSample, RowSample, StoppingRule
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.timing.backends.fake import FakeBackend
from llm_profile.timing.ranks.agreement import disagreeing, sentinels, unlike
from llm_profile.timing.ranks.messages import received_result, result_message
from llm_profile.timing.ranks.torchrun import Rank

pytestmark = pytest.mark.timeout(400)  # a torchrun on a busy machine is slow

ROOT = Path(__file__).parent.parent
SWEEP = [
    "--model",
    "tiny-llama",
    "--device",
    "fake",
    "--skip-scaling",
    "--no-report",
    "--prefill-max",
    "40",
    "--decode-max",
    "40",
]
POINTS = 80
CSV = Path("FAKE", "tiny-llama.csv")

Troubles = dict[str, Any]


def command(folder: Path, troubles: Troubles, ranks: int, options: Sequence[str], words: Sequence[str]) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options]
    return [*launcher, "-m", "tests.rank_command", json.dumps(troubles), *words, "--output-dir", str(folder)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(
    folder: Path,
    troubles: Troubles,
    ranks: int = 2,
    options: Sequence[str] = (),
    words: Sequence[str] = SWEEP,
) -> subprocess.CompletedProcess[str]:
    """A torchrun on fake devices, to its end."""
    line = command(folder, troubles, ranks, options, words)
    return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The CSV of the same sweep in one process."""
    folder = tmp_path_factory.mktemp("alone")
    line = [sys.executable, "run_profile.py", *SWEEP, "--output-dir", str(folder)]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    return (folder / CSV).read_bytes()


def of_ranks(folder: Path) -> list[dict[str, Any]]:
    """What the last run recorded of its ranks."""
    ranks: list[dict[str, Any]] = read_table(folder / CSV).meta["runs"][-1]["ranks"]
    return ranks


def test_four_ranks_make_the_table_of_one(tmp_path: Path, alone: bytes) -> None:
    done = run(tmp_path, {"all": {"delay_s": 0.05}}, ranks=4)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / CSV).read_bytes() == alone
    assert "4 of 4 ranks share the points" in done.stderr
    points = [rank["points"] for rank in of_ranks(tmp_path)]
    assert len(points) == 4 and min(points) > POINTS / 4 / 3  # each did its part
    assert not list((tmp_path / "FAKE").glob("*.journal*"))


def test_the_others_finish_for_a_rank_that_dies(tmp_path: Path, alone: bytes) -> None:
    done = run(tmp_path, {"all": {"delay_s": 0.02}, "1": {"die_at": 15}})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / CSV).read_bytes() == alone
    named = [line for line in done.stderr.splitlines() if "died" in line]
    assert len(named) == 1 and re.search(r"rank 1 \(.*\) died: signal 9 \(SIGKILL\)", named[0])
    assert "Traceback" not in done.stderr
    assert [bool(rank["left"]) for rank in of_ranks(tmp_path)] == [False, True]


def test_the_process_that_measures_for_rank_0_may_die(tmp_path: Path, alone: bytes) -> None:
    done = run(tmp_path, {"all": {"delay_s": 0.02}, "0": {"die_at": 15}})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / CSV).read_bytes() == alone and "rank 0 (" in done.stderr


def test_the_others_finish_for_a_rank_that_hangs(tmp_path: Path, alone: bytes) -> None:
    done = run(tmp_path, {"hang_s": 10.0, "all": {"delay_s": 0.02}, "1": {"delay_s": 0.02, "hang_at": 15}})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / CSV).read_bytes() == alone
    (named,) = (line for line in done.stderr.splitlines() if "hangs" in line)
    assert "rank 1 (" in named and "nothing came from it for 10 s" in named


def test_ranks_that_differ_or_disagree_are_named_and_left_out(tmp_path: Path, alone: bytes) -> None:
    done = run(tmp_path, {"1": {"gpu": "other"}, "2": {"slower": 1.04}, "3": {"slower": 1.01}}, ranks=4)
    assert done.returncode == 0, done.stderr
    refused, disagrees = (line for line in done.stderr.splitlines() if line.startswith("rank "))
    assert re.match(r'rank 1 \(.*\) is refused: gpu is "other", that of other ranks "fake"', refused)
    assert re.match(r"rank 2 \(.*\) disagrees: its passes are 3\.0% slower .* more than 2%", disagrees)
    left = [rank["rank"] for rank in of_ranks(tmp_path) if rank["left"]]
    assert left == [1, 2] or left == [2]  # one that is refused measured nothing


def test_no_rank_left_is_one_line_and_keeps_what_was_measured(tmp_path: Path, alone: bytes) -> None:
    died = run(tmp_path, {"all": {"delay_s": 0.02, "die_at": 30}})
    assert died.returncode != 0
    known = len(read_table(tmp_path / CSV).records)
    assert 0 < known < POINTS
    resumed = run(tmp_path, {})
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / CSV).read_bytes() == alone
    assert sum(rank["points"] for rank in of_ranks(tmp_path)) < POINTS


def test_a_killed_process_of_torchrun_is_restarted_and_the_run_resumes(tmp_path: Path, alone: bytes) -> None:
    """torchrun ends all ranks then; the new ones go on from the journal."""
    line = command(tmp_path, {"all": {"delay_s": 0.1}}, 2, ["--max-restarts=1"], SWEEP)
    journal = (tmp_path / CSV).with_suffix(".journal.jsonl")
    with subprocess.Popen(line, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as torchrun:
        while torchrun.poll() is None and not (journal.exists() and len(journal.read_bytes().splitlines()) > 40):
            time.sleep(0.02)
        started = subprocess.run(["pgrep", "-P", str(torchrun.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(max(started, key=int)), signal.SIGKILL)
        told = torchrun.communicate(timeout=300)[1]
    assert torchrun.returncode == 0, told
    assert (tmp_path / CSV).read_bytes() == alone
    assert len(read_table(tmp_path / CSV).meta["runs"]) == 2


def test_models_in_turn_each_on_all_ranks(tmp_path: Path, alone: bytes) -> None:
    models = ["--model", "facebook/opt-125m", "--load-format", "dummy"]
    done = run(tmp_path, {"all": {"delay_s": 0.01}}, words=[*SWEEP, *models])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / CSV).read_bytes() == alone
    assert (tmp_path / "FAKE/facebook/opt-125m.csv").exists()


def test_ranks_share_compositions_that_are_cut_to_the_positions_of_the_model(tmp_path: Path) -> None:
    words = [*SWEEP, "--axes", "per-sequence"]
    done = run(tmp_path, {}, words=words)
    assert done.returncode == 0, done.stderr
    batches = {point.batch for point in read_table(tmp_path / CSV).records}
    assert {2, 256} <= batches


def test_what_is_wrong_with_the_command_is_said_once(tmp_path: Path) -> None:
    done = run(tmp_path, {}, words=["--model", "tiny-llama", "--device", "fake"])
    assert done.returncode != 0
    assert done.stderr.count("there is no real model to validate against") == 1


def test_a_cpu_measures_on_two_ranks(tmp_path: Path) -> None:
    words = "--model tiny-llama --device cpu --skip-scaling --no-report --prefill-max 6 --decode-max 6 --repeat 3"
    done = run(tmp_path, {}, words=words.split())
    assert done.returncode == 0, done.stderr
    assert len(read_table(tmp_path / "CPU/tiny-llama.csv").records) == 12


def test_results_travel_whole() -> None:
    sample = PointSample(
        SweepPoint.of([(1, 5), (7, 0)]),
        {"q_proj": RowSample((10, 12), 2, 3, ("gemm", "copy")), "lm_head": RowSample((1, 1))},
        (11, 13),
        "graph-replay",
        1980.5,
        0.25,
        ("lost replays",),
    )
    failure = PointFailure(SweepPoint(3, 0), "out of memory")
    for result in (sample, failure):
        assert received_result(json.loads(json.dumps(result_message(result)))) == result


def test_the_rank_that_differs_is_the_one_that_most_do_not_resemble() -> None:
    like, other = {"gpu": "H100", "driver": "1"}, {"gpu": "H100", "driver": "2"}
    assert [*unlike({0: other, 1: like, 2: like})] == [0]
    assert [*unlike({0: like, 1: other})] == [1]
    assert unlike({0: like, 1: like}) == {}


def test_a_rank_is_judged_at_points_that_all_measured() -> None:
    a, b, c = (SweepPoint(n, 0) for n in (1, 2, 3))
    times_ns = {0: {a: 100.0, b: 1000.0}, 1: {a: 101.0, b: 1001.0}, 2: {a: 103.0, b: 1030.0, c: 1.0}}
    assert [*disagreeing(times_ns, 0.02)] == [2]
    assert disagreeing({0: {a: 1.0}, 1: {b: 5.0}}, 0.02) == {}
    # one noisy point is not a slow GPU
    assert disagreeing({0: {a: 1.0, b: 1.0, c: 1.0}, 1: {a: 1.5, b: 1.0, c: 1.0}}, 0.02) == {}


def test_sentinels_are_the_longest_and_the_middle_of_each_phase() -> None:
    points = [*(SweepPoint(n, 0) for n in range(1, 10)), *(SweepPoint(1, k) for k in range(1, 10))]
    assert set(sentinels(points)) == {SweepPoint(9, 0), SweepPoint(5, 0), SweepPoint(1, 9), SweepPoint(1, 5)}
    assert sentinels([]) == []


def test_only_torchrun_makes_ranks() -> None:
    of_torchrun = {
        "TORCHELASTIC_RUN_ID": "x",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "host",
        "MASTER_PORT": "29500",
    }
    rank = Rank.of_environment(of_torchrun)
    assert rank is not None and (rank.number, rank.device("cuda"), rank.device("cpu")) == (3, "cuda:1", "cpu")
    with pytest.raises(UsageError, match="--device cuda:0: torchrun gives each rank a GPU of its own"):
        rank.device("cuda:0")
    assert Rank.of_environment(of_torchrun | {"WORLD_SIZE": "1"}) is None
    assert Rank.of_environment({"RANK": "3", "WORLD_SIZE": "4"}) is None


def test_a_backend_takes_points_as_it_goes() -> None:
    """Others may take from the same points meanwhile."""
    points = iter([SweepPoint(1, 0), SweepPoint(2, 0)])
    results = FakeBackend().sample(points, StoppingRule(), 0)
    next(results)
    assert next(points) == SweepPoint(2, 0)
