"""The processes of the real model: who runs when, what comes back, and that none outlives its use."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import run_profile
from llm_profile import versions
from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.validation.processes import Process, ProcessReality
from llm_profile.validation.profiled import Profiled
from llm_profile.validation.real_steps import StepTimes
from llm_profile.validation.reality import REALITIES
from llm_profile.validation.validate import validate_over_depths
from llm_profile.validation.worker import Worker
from tests.fake_reality import make_table, true_kernels_ns
from tests.worker_here import WorkerHere

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 100
TABLE = make_table()
PROFILED = Profiled(TABLE.meta, TABLE.conditions, longest=1, allow_slow_path=False)
PAIRS = [(i, o) for i in (32, 64, 96) for o in (16, 32)]


# ---- processes that are made up


@dataclass
class Host:
    """A machine whose processes only note what they are asked. log: (number of the process, what happened) each.

    speeds: how much longer steps take in each process. fails: (process, point) -> in how many rounds it is timed.
    breaks: (process, method) -> what it raises. notices: of each process.
    """

    speeds: Sequence[float] = (1.0,)
    fails: dict[tuple[int, SweepPoint], int] = field(default_factory=dict)
    breaks: dict[tuple[int, str], BaseException] = field(default_factory=dict)
    notices: Sequence[list[str]] = ([],)
    log: list[tuple[int, str]] = field(default_factory=list)
    started: list["MadeUpProcess"] = field(default_factory=list)

    def start(self) -> "MadeUpProcess":
        self.started.append(MadeUpProcess(self, len(self.started)))
        return self.started[-1]

    def reality(self, processes: int, depth: int = 6, **options: Any) -> ProcessReality:
        return ProcessReality("eager", PROFILED, depth, "cpu", processes=processes, start=self.start, **options)


class MadeUpProcess:
    def __init__(self, host: Host, number: int) -> None:
        self.host, self.number = host, number
        self.points: list[SweepPoint] = []
        self.rounds = 0
        self.depth = 0
        self.pending: list[tuple[str, tuple[Any, ...]]] = []
        self.closed = 0

    def ask(self, method: str, *arguments: Any) -> None:
        assert not self.closed
        assert callable(getattr(Worker, method)), "a Worker has such a method"
        self.host.log.append((self.number, f"ask {method}"))
        self.pending.append((method, arguments))

    def answer(self) -> Any:
        assert not self.closed
        method, arguments = self.pending.pop(0)
        self.host.log.append((self.number, f"answer {method}"))
        if error := self.host.breaks.get((self.number, method)):
            raise error
        return getattr(self, f"_{method}", lambda *_: None)(*arguments)

    def close(self) -> None:
        self.closed += 1
        self.host.log.append((self.number, "close"))

    def _check(self, *_arguments: Any) -> list[str]:
        return self.host.notices[self.number % len(self.host.notices)]

    def _open(self, _runtime: str, _profiled: Profiled, depth: int, *_options: Any) -> None:
        self.depth = depth

    def _prepare(self, input_lens: Sequence[int], windows: Sequence[Sequence[int]]) -> None:
        self.points = [SweepPoint(n, 0) for n in input_lens]
        self.points += [SweepPoint(1, kv_len) for window in windows for kv_len in window]

    def _round(self) -> list[tuple[SweepPoint, int]]:
        self.rounds += 1
        lasts = {point: self.host.fails.get((self.number, point), self.rounds) for point in self.points}
        timed = [point for point in self.points if self.rounds <= lasts[point]]
        speed = self.host.speeds[self.number % len(self.host.speeds)]
        return [(point, round(speed * true_kernels_ns(point, self.depth)) + self.rounds) for point in timed]

    def _batched(self, points: Sequence[SweepPoint], repeat: int) -> list[tuple[SweepPoint, tuple[int, ...]]]:
        return [(point, (7,) * repeat) for point in points]


def both(number: int, method: str) -> list[tuple[int, str]]:
    """Something is asked and waited for."""
    return [(number, f"ask {method}"), (number, f"answer {method}")]


def test_the_next_process_starts_while_the_one_before_prepares() -> None:
    host, told = Host(), []
    reality = host.reality(2, tell=told.append)
    list(reality.steps([3], [(4, 5)], repeat=2))
    opened = {number: [*both(number, "check"), *both(number, "open"), (number, "ask prepare")] for number in (0, 1)}
    rounds = {number: 2 * both(number, "round") for number in (0, 1)}
    first = [*both(0, "start"), *opened[0], (1, "ask start"), (0, "answer prepare"), (1, "answer start"), *rounds[0]]
    assert host.log == [*first, (0, "close"), *opened[1], (1, "answer prepare"), *rounds[1]]
    assert told == [f"real model, eager: process {n} of 2, 6 blocks" for n in (1, 2)]
    steps = list(reality.batched([SweepPoint(1, 9, 4)], 3))
    assert host.log[-2:] == both(1, "batched"), "in the last process, which is still there"
    assert steps == [StepTimes(SweepPoint(1, 9, 4), (7, 7, 7))]
    reality.close()
    assert [process.closed for process in host.started] == [1, 1]


@given(st.integers(1, 5), st.integers(1, 4))
def test_one_process_at_a_time_holds_a_model_and_nothing_starts_while_one_times(count: int, repeat: int) -> None:
    host = Host()
    reality = host.reality(count)
    times = list(reality.steps([3, 8], [(4, 5)], repeat))
    reality.close()
    expected = [(process, repeat) for process in range(count) for _step in range(4)]
    assert [(step.process, len(step.wall_ns)) for step in times] == expected
    holds, starting, most = set(), set(), 0
    for number, event in host.log:
        change = {"ask open": holds.add, "close": holds.discard, "ask start": starting.add}
        change.get(event, lambda _number: None)(number)
        if event == "answer start":
            starting.discard(number)
        if event == "ask round":
            assert holds == {number} and not starting
        most = max(most, len(holds))
    assert most == 1 and not holds and len(host.started) == count
    assert all(process.closed == 1 for process in host.started)


def test_times_are_by_round_and_process() -> None:
    host = Host(speeds=(1.0, 2.0))
    reality = host.reality(2)
    kernels = true_kernels_ns(SweepPoint(3, 0), 6)
    assert list(reality.steps([3], [], repeat=2)) == [
        StepTimes(SweepPoint(3, 0), (kernels + 1, kernels + 2), 0),
        StepTimes(SweepPoint(3, 0), (2 * kernels + 1, 2 * kernels + 2), 1),
    ]


def test_what_is_doubtful_in_any_process_is_told_once() -> None:
    host = Host(notices=(["shared"], [], ["shared", "hot"]))
    reality = host.reality(3)
    list(reality.steps([3], [], repeat=1))
    assert reality.notices == ["shared", "hot"]


def test_the_parts_of_the_work_have_their_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    reality = Host().reality(2)
    list(reality.steps([3], [], repeat=3))
    list(reality.batched([], 1))
    assert reality.seconds == {"start": 2, "load": 4, "prepare": 2, "measure": 6, "batched": 1}


def test_a_step_that_fails_in_one_process_is_left_out_of_all() -> None:
    lost, late = SweepPoint(1, 100), SweepPoint(128, 0)
    host = Host(fails={(0, lost): 0, (2, late): 1})
    report = validate_over_depths(TABLE, lambda depth: host.reality(3, depth), PAIRS, repeat=2)
    timed = {step.point for step in report.steps}
    assert lost not in timed and late not in timed
    assert SweepPoint(1, 99) in timed and SweepPoint(32, 0) in timed
    assert {len(step.wall_ns) for step in report.steps} == {6}


def test_where_nothing_fits_that_is_told() -> None:
    host = Host()
    reality = host.reality(3)
    points = [SweepPoint(3, 0), SweepPoint(1, 4)]
    host.fails = {(number, point): 0 for number in range(3) for point in points}
    assert list(reality.steps([3], [(4,)], 2)) == []
    everywhere = Host(fails={(n, point): 0 for n in range(3) for point in TABLE.records})
    with pytest.raises(UsageError, match="completed no step at all: lower --scaling-num-layers"):
        validate_over_depths(TABLE, lambda depth: everywhere.reality(3, depth), PAIRS)
    assert [process.closed for process in everywhere.started] == [1, 1, 1]


def test_a_process_in_which_nothing_fits_leaves_the_others() -> None:
    """No step ran in all of them then, but each ran where it could."""
    host = Host(fails={(1, point): 0 for point in TABLE.records})
    report = validate_over_depths(TABLE, lambda depth: host.reality(3, depth), PAIRS)
    assert report.processes == 2 and {len(step.wall_ns) for step in report.steps} == {6}


@pytest.mark.parametrize("error", [UsageError("refused"), RuntimeError("a bug"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("method", ["start", "check", "open", "prepare", "round", "batched"])
@pytest.mark.parametrize("number", [0, 2])
def test_every_process_is_closed_when_one_fails(number: int, method: str, error: BaseException) -> None:
    host = Host(breaks={(2 if method == "batched" else number, method): error})
    with pytest.raises(type(error)):
        validate_over_depths(TABLE, lambda depth: host.reality(3, depth), PAIRS)
    assert host.started and all(process.closed == 1 for process in host.started)


def test_every_process_is_closed_when_the_next_cannot_start() -> None:
    host = Host()

    def start() -> MadeUpProcess:
        if len(host.started) == 1:
            raise OSError("too many processes")
        return host.start()

    reality = ProcessReality("eager", PROFILED, 6, "cpu", processes=3, start=start)
    with pytest.raises(OSError, match="too many"):
        validate_over_depths(TABLE, lambda _depth: reality, PAIRS)
    assert [process.closed for process in host.started] == [1]


def test_each_depth_has_its_processes_and_the_spread_is_that_of_the_last() -> None:
    host = Host(speeds=(1.0, 1.0, 1.0, 1.0, 1.2, 1.1))
    report = validate_over_depths(TABLE, lambda depth: host.reality(3, depth), PAIRS, depth=4)
    assert [process.depth for process in host.started] == [2, 2, 2, 4, 4, 4]
    assert report.spread_between["total"] == pytest.approx(0.2 / 1.1, rel=1e-4) and report.processes == 3
    assert all(process.closed == 1 for process in host.started)


# ---- what a worker answers


def test_a_refusal_is_told_with_its_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that of a release newer than tested as a possible cause, which only the traceback over there shows."""

    def refuse(*_options: Any) -> None:
        raise UsageError(f"not on {torch.device('cpu')}")

    monkeypatch.setattr(versions, "newer_than_tested", lambda: "transformers 9.9")
    monkeypatch.setitem(REALITIES, "eager", refuse)
    process = WorkerHere()
    process.ask("open", "eager", PROFILED, 1, "cpu", None, False)
    with pytest.raises(UsageError) as refused:
        process.answer()
    assert str(refused.value) == "not on cpu"
    (cause,) = refused.value.__notes__
    assert cause.startswith("possible cause: newer than tested: transformers 9.9")


def test_a_bug_is_told_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_worker: Worker) -> None:
        raise LookupError("no such thing")

    monkeypatch.setattr(Worker, "start", fail)
    process = WorkerHere()
    process.ask("start")
    with pytest.raises(RuntimeError, match=r"Traceback[\s\S]*in fail[\s\S]*LookupError: no such thing"):
        process.answer()


# ---- real processes


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of tiny-llama, measured on this CPU."""
    folder = tmp_path_factory.mktemp("tables")
    few = ["--prefill-max", "8", "--decode-max", "10", "--repeat", "1", "--warmup", "1", "--skip-scaling"]
    model = ["--model", "tiny-llama", "--load-format", "dummy", "--device", "cpu"]
    assert run_profile.main([*model, *few, "--output-dir", str(folder)]) == 0
    return folder / "CPU" / "tiny-llama.csv"


@pytest.fixture
def process() -> Iterator[Process]:
    one = Process()
    yield one
    one.close()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def ends(pid: int) -> bool:
    """Whether a process ends soon."""
    before = time.monotonic()
    while time.monotonic() - before < TIMEOUT_S:
        if not is_running(pid):
            return True
        time.sleep(0.01)
    return False


def test_real_steps_run_in_fresh_processes(csv: Path) -> None:
    started: list[Process] = []

    def start() -> Process:
        started.append(Process())
        return started[-1]

    reality = ProcessReality("eager", Profiled.of(read_table(csv)), 4, "cpu", processes=2, start=start)
    times: dict[tuple[SweepPoint, int], tuple[int, ...]] = {}
    for step in reality.steps([3, 8], [(4, 5)], repeat=2):
        if not times:
            pids = [process._process.pid for process in started]
            assert len({*pids, os.getpid()}) == 3
            assert {os.getsid(pid) for pid in pids} == {*pids}, "Ctrl-C in a terminal does not reach them"
        times[step.point, step.process] = step.wall_ns
    points = [SweepPoint(3, 0), SweepPoint(8, 0), SweepPoint(1, 4), SweepPoint(1, 5)]
    assert sorted(times) == sorted((point, number) for point in points for number in (0, 1))
    assert all(len(walls) == 2 and 1e5 < min(walls) < 1e10 for walls in times.values()), "nanoseconds"
    ((point, walls, _),) = [(s.point, s.wall_ns, s) for s in reality.batched([SweepPoint(1, 6, 4)], 3)]
    assert point.batch == 4 and len(walls) == 3
    assert {*reality.seconds} == {"start", "load", "prepare", "measure", "batched"}
    reality.close()
    assert not any(is_running(pid) for pid in pids)


def test_a_process_that_was_killed_is_one_line(process: Process) -> None:
    process.ask("start")
    process.answer()
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    process.ask("round")
    with pytest.raises(UsageError) as told:
        process.answer()
    text = "the process of the real model ended with exit code -9; where that is -9, memory ran out"
    assert str(told.value) == f"{text}: lower --scaling-num-layers"
    process.close()


def test_a_process_that_is_killed_at_work_is_the_same_line(csv: Path) -> None:
    started: list[Process] = []

    def start() -> Process:
        started.append(Process())
        return started[-1]

    def kill(line: str) -> None:
        if "process 2" in line:
            os.kill(started[-1]._process.pid, signal.SIGKILL)

    def open_at(depth: int) -> ProcessReality:
        return ProcessReality("eager", Profiled.of(table), depth, "cpu", processes=2, tell=kill, start=start)

    table = read_table(csv)
    with pytest.raises(UsageError, match="ended with exit code -9; where that is -9, memory ran out: lower --scaling"):
        validate_over_depths(table, open_at, [(2, 2), (4, 2)], repeat=1)
    assert len(started) == 2 and not any(is_running(one._process.pid) for one in started)


def test_refusals_and_bugs_come_through_a_real_process(process: Process, csv: Path) -> None:
    conditions = read_table(csv).conditions
    process.ask("check", conditions | {"torch": "1.0"}, "cpu", os.getpid())
    with pytest.raises(UsageError, match='^--csv: the table was measured under other conditions: torch is "1.0" there'):
        process.answer()
    process.ask("round")
    with pytest.raises(RuntimeError, match=r"Traceback[\s\S]*worker\.py[\s\S]*AttributeError"):
        process.answer()
    process.ask("check", conditions, "cpu", os.getpid())
    assert process.answer() == [], "and it goes on"


FOREVER = "import os, sys; from llm_profile.validation.processes import Process; p = Process(); p.ask('start'); "
FOREVER += "print(p._process.pid, flush=True); "


@pytest.mark.parametrize("at_work", [True, False])
def test_a_process_ends_with_the_one_that_started_it(at_work: bool) -> None:
    """Though that one was killed and could close nothing."""
    code = FOREVER + ("" if at_work else "p.answer(); ") + "os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == -signal.SIGKILL
    assert ends(int(done.stdout)) and done.stderr == ""


SCRIPT = """
import sys
import validation

print("the script begins")
code = validation.main(sys.argv[1:])
print("and ends with", code)
"""

WAYS: dict[str, Callable[[Path], tuple[list[str], str | None]]] = {
    "a file without a guard": lambda path: ([str(path)], None),
    "-c": lambda _path: (["-c", SCRIPT], None),
    "stdin": lambda _path: (["-"], SCRIPT),
    "-m": lambda path: (["-m", path.stem], None),
}


def short_validation(csv: Path, *options: str) -> list[str]:
    grid = ["--scaling-input-min", "2", "--scaling-input-max", "4", "--scaling-input-step", "1"]
    return ["--csv", str(csv), *grid, "--scaling-repeat", "1", "--scaling-tolerance", "1e9", *options]


@pytest.mark.parametrize("way", WAYS)
def test_scripts_of_users_run_once(csv: Path, tmp_path: Path, way: str) -> None:
    """A new process of multiprocessing would run them again, up to where they start one."""
    (scripts := tmp_path / "scripts").mkdir()
    path = scripts / "my_script.py"
    path.write_text(SCRIPT)
    arguments, given_in = WAYS[way](path)
    if "file" in way:  # the others import from the folder that they run in
        (tmp_path / "random.py").write_text("raise SystemExit('it has the name of a module')")
    options = [*short_validation(csv, "--scaling-processes", "1"), "--scaling-output", str(tmp_path / "scaled.csv")]
    done = subprocess.run(
        [sys.executable, *arguments, *options],
        cwd=tmp_path,
        input=given_in,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{scripts}"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("the script begins", "and ends with 0")
    assert done.stdout.count("begins") == 1 and "Traceback" not in done.stderr


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("moment", ["as the first process starts", "process 1 of 2", "process 2 of 2"])
def test_ctrl_c_ends_all_without_a_traceback(csv: Path, tmp_path: Path, moment: str) -> None:
    """As a terminal sends it: to the whole group of the command."""
    options = short_validation(csv, "--scaling-processes", "2", "--scaling-output", str(tmp_path / "scaled.csv"))
    command = [sys.executable, "validation.py", *options]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    ) as running:
        assert running.stderr is not None
        seen = ""
        while moment.startswith("process") and moment not in seen:
            seen += (line := running.stderr.readline())
            assert line, seen
        while not (children := children_of(running.pid)):
            assert running.poll() is None
        time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        error = running.communicate(timeout=TIMEOUT_S)[1]
    assert running.returncode == 130, error
    assert error.splitlines()[-1] == "validation.py: interrupted; nothing was written"
    assert "Traceback" not in error and not list(tmp_path.iterdir())
    assert all(ends(child) for child in children)
