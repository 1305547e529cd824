"""How far a run has come, while it runs: a bar on a terminal, else a line now and then. Imports no torch.

A run has stages, one after the other; each has a bar of its own in the same place.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Protocol

from llm_profile.cli.messages import notice
from llm_profile.cli.sweep_time_left import SweepTimeLeft
from llm_profile.cli.validation_time_left import Part, ValidationTimeLeft
from llm_profile.measurement import PointFailure
from llm_profile.points import SweepPoint
from llm_profile.timing.loop import Progress

LINE_EVERY_S = 30.0
"""Seconds between two lines where there is no terminal to draw on."""

DRAWN_PER_SECOND = 2
"""How often a bar is drawn: each time takes some of the processor from what is measured."""


class TimeLeft(Protocol):
    """An estimate of the seconds left, None while there is none. now_s: of the clock of time.monotonic."""

    def left_s(self, now_s: float) -> float | None: ...


@dataclass
class Stage:
    """Where a stage stands. unit: of `done` and `total`; without a total there is nothing to count.

    number: of `count` stages. at: what is being done.
    """

    name: str
    started_s: float
    unit: str = ""
    total: int | None = None
    time_left: TimeLeft | None = None
    number: int = 1
    count: int = 1
    done: int = 0
    at: str = ""

    def line(self, now_s: float) -> str:
        """The stage in words: how much is done, and the time left, or where that is not known the time so far."""
        parts = [] if self.total is None else [f"{self.done:,} of {self.total:,} {self.unit}"]
        left_s = None if self.time_left is None else self.time_left.left_s(now_s)
        if left_s is None:
            parts.append(f"{duration_text(now_s - self.started_s)} so far")
        else:
            parts.append(f"{duration_text(left_s)} left")
        return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute:02} min"
    return f"{minutes} min {second:02} s" if minutes else f"{second} s"


@dataclass(frozen=True)
class Stages:
    """Shows the stages of a run. names: in their order. quiet: show nothing."""

    names: Sequence[str] = ("load", "sweep", "validation")
    quiet: bool = False

    @contextmanager
    def load(self) -> Iterator[None]:
        """While a model is loaded."""
        with self._shown(self._stage("load")):
            yield

    @contextmanager
    def sweep(self, asked: Sequence[SweepPoint], most: int) -> Iterator[Callable[[Progress], None]]:
        """While points are measured; takes what the measuring loop tells. asked, most: as in SweepTimeLeft."""
        started_s = time.monotonic()
        time_left = SweepTimeLeft(asked, most, started_s)
        stage = self._stage("sweep", started_s, "points", most, time_left)

        def tell(seen: Progress) -> None:
            time_left.result(seen.result.point, time.monotonic())
            stage.done, stage.total = seen.done, max(most, seen.total)
            stage.at = str(seen.result.point)
            if isinstance(seen.result, PointFailure) and self._draws:
                notice(f"{seen.result.point}: {seen.result.reason}")

        with self._shown(stage):
            yield tell

    @contextmanager
    def validation(self, parts: Sequence[Part]) -> Iterator[Callable[[str], None]]:
        """While the real model runs; takes the sort of each part that is done."""
        started_s = time.monotonic()
        time_left = ValidationTimeLeft(parts, started_s)
        stage = self._stage("validation", started_s, "steps", time_left.total_steps, time_left)

        def tick(sort: str) -> None:
            time_left.part_done(sort, time.monotonic())
            stage.done = time_left.done_steps

        with self._shown(stage):
            yield tick

    def _stage(
        self,
        name: str,
        started_s: float | None = None,
        unit: str = "",
        total: int | None = None,
        time_left: TimeLeft | None = None,
    ) -> Stage:
        started_s = time.monotonic() if started_s is None else started_s
        return Stage(name, started_s, unit, total, time_left, self.names.index(name) + 1, len(self.names))

    @property
    def _draws(self) -> bool:
        return not self.quiet and sys.stderr is not None and sys.stderr.isatty()

    @contextmanager
    def _shown(self, stage: Stage) -> Iterator[None]:
        if self.quiet or sys.stderr is None:
            yield
            return
        with bar(stage) if self._draws else lines(stage):
            yield


QUIET = Stages(quiet=True)
"""Shows nothing."""


def bar(stage: Stage) -> AbstractContextManager[object]:
    """A bar on the terminal while the context is open; lines on stderr go above it."""
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as Bar
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    class Done(BarColumn):
        def render(self, task: Task) -> ProgressBar:
            task.total, task.completed = stage.total, stage.done
            return super().render(task)

    class Words(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(", ".join(filter(None, (stage.line(time.monotonic()), stage.at))), no_wrap=True)

    title = f"{stage.number}/{stage.count} {stage.name}" if stage.count > 1 else stage.name
    shown = Bar(
        *(TextColumn(title), Done(bar_width=20), Words()),
        console=Console(stderr=True),
        refresh_per_second=DRAWN_PER_SECOND,
        transient=True,
        redirect_stdout=False,  # it would write to stderr what programs read from stdout
    )
    shown.add_task(stage.name, total=stage.total)
    return shown


@contextmanager
def lines(stage: Stage, wait: Callable[[Event], bool] = lambda ended: ended.wait(LINE_EVERY_S)) -> Iterator[None]:
    """A line on stderr every LINE_EVERY_S seconds while the context is open.

    wait: waits for that long, and returns whether the context has ended.
    """
    ended = Event()

    def say() -> None:
        while not wait(ended):
            notice(f"{stage.name}: {stage.line(time.monotonic())}")

    thread = Thread(target=say, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
