"""What is shown while a run goes on."""

from contextlib import AbstractContextManager
from threading import Event, Semaphore

import pytest

from llm_profile.cli import progress
from llm_profile.cli.progress import Stage, Stages, duration_text
from llm_profile.cli.validation_time_left import Part
from llm_profile.measurement import PointFailure
from llm_profile.points import SweepPoint
from llm_profile.timing.loop import Progress


class Left:
    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds

    def left_s(self, now_s: float) -> float | None:
        return self.seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_line_has_what_is_known() -> None:
    assert Stage("load", 100.0).line(112.0) == "12 s so far"
    stage = Stage("sweep", 100.0, "points", 4096, Left(None), done=1234)
    assert stage.line(103.0) == "1,234 of 4,096 points, 3 s so far"
    stage.time_left = Left(75.0)
    assert stage.line(103.0) == "1,234 of 4,096 points, 1 min 15 s left"


class Clock:
    """Stands in for the 30 s between two lines: they pass when a test says so."""

    def __init__(self) -> None:
        self.stages = 0
        self._waits, self._passes = Semaphore(0), Semaphore(0)

    def wait(self, ended: Event) -> bool:
        self._waits.release()
        while not ended.is_set():
            if self._passes.acquire(timeout=0.01):
                return False
        return True

    def tick(self) -> None:
        """Returns when a line was said."""
        self._waits.acquire()
        self._passes.release()
        self._waits.acquire()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, whole = Clock(), progress.lines

    def lines(stage: Stage) -> AbstractContextManager[None]:
        clock.stages += 1
        return whole(stage, clock.wait)

    monkeypatch.setattr(progress, "lines", lines)
    return clock


def test_a_line_while_a_model_is_loaded(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Stages().load():
        clock.tick()
    assert capsys.readouterr().err == "load: 0 s so far\n"


def test_a_line_while_points_are_measured(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    points = [SweepPoint(1, kv_len) for kv_len in (1, 2, 3)]
    with Stages().sweep(points, 3) as tell:
        for done in (1, 2):
            tell(Progress(done, 3, PointFailure(points[done - 1], "[out] of memory")))
        clock.tick()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sweep: 2 of 3 points, ")


def test_a_line_while_the_real_model_runs(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Stages().validation([Part("open", 0, 4), Part("prepare", 7, 28), Part("round", 7, 28)]) as tick:
        tick("open")
        tick("prepare")
        clock.tick()
    assert capsys.readouterr().err == "validation: 7 of 14 steps, 0 s left\n"


def test_quiet_stages_say_and_start_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    stages, point = Stages(quiet=True), SweepPoint(1, 1)
    with stages.load(), stages.sweep([point], 1) as tell:
        tell(Progress(1, 1, PointFailure(point, "out of memory")))
    assert clock.stages == 0 and capsys.readouterr().err == ""
