"""The real model in fresh processes. Imports no torch.

A process that has swept a table is slower than a user's own: once torch's profiler has run, CUPTI stays attached and
every launch takes longer. So real steps run in new interpreters. They run one after the other, since CUDA graphs of one
process replay without the usual gaps between kernels while another process has graphs on the same GPU; the next
interpreter starts, without a CUDA context, while the one before runs each length for the first time. docs/validation.md
has the figures.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.validation.profiled import Profiled
from llm_profile.validation.real_steps import StepTimes

PROCESSES = {"eager": 3, "cuda-graph": 1}
"""--scaling-processes by runtime. Replays of graphs hardly differ between processes."""


CHILD = """
import sys
sys.path[:] = sys.argv[2:]
from llm_profile.validation.worker import serve
serve(int(sys.argv[1]))
"""
"""What the new interpreter runs. One of multiprocessing's would also run the script that this process runs."""


class Process:
    """A fresh interpreter with a `Worker`. Closing it kills it, and it ends by itself where this process ends."""

    def __init__(self) -> None:
        self._connection, others_end = Pipe()
        with others_end:
            handle = others_end.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(handle), *sys.path],
                stdin=subprocess.DEVNULL,
                pass_fds=[handle],
                start_new_session=True,  # Ctrl-C is for the process that validates, which then closes this one
            )

    def ask(self, method: str, *arguments: Any) -> None:
        """Have a method of the worker called; `answer` waits for it."""
        with suppress(ConnectionError):  # the process is gone: `answer` says so
            self._connection.send((method, arguments))

    def answer(self) -> Any:
        """What the method returned. Raises what it raised, and UsageError where the process is gone."""
        try:
            done, result = self._connection.recv()
        except (EOFError, ConnectionError):
            raise UsageError(
                f"the process of the real model ended with exit code {self._process.wait()}; where that is -9, memory "
                "ran out: lower --scaling-num-layers"
            ) from None
        if done:
            return result
        raise result

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()


class ProcessReality:
    """A Reality whose steps run in so many fresh processes, one after the other.

    tell: takes a line on what is being done. tick: takes what was done: `open`, `prepare`, `round` or `batched`. start:
    starts a process. Raises UsageError, when it runs, where the machine is another than the table's.
    """

    def __init__(
        self,
        runtime: str,
        profiled: Profiled,
        depth: int,
        device: str,
        token: str | None = None,
        trust_remote_code: bool = False,
        *,
        processes: int = 1,
        tell: Callable[[str], None] = lambda _line: None,
        tick: Callable[[str], None] = lambda _part: None,
        start: Callable[[], Any] = Process,
    ) -> None:
        self.runtime = runtime
        self.notices: list[str] = []
        self.seconds: dict[str, float] = {}
        self._model = (runtime, profiled, depth, device, token, trust_remote_code)
        self._count = processes
        self._tell = tell
        self._tick = tick
        self._start = start
        self._processes: list[Any] = []  # the last may be starting still

    def steps(self, input_lens: Sequence[int], windows: Sequence[Sequence[int]], repeat: int) -> Iterator[StepTimes]:
        """As in Reality. The last process stays, for `batched`."""
        self._add_process()
        for number in range(self._count):
            process = self._processes[-1]
            self._tell(f"real model, {self.runtime}: process {number + 1} of {self._count}, {self._model[2]} blocks")
            self._open(process)
            self._tick("open")
            process.ask("prepare", input_lens, windows)
            more = number + 1 < self._count
            if more:  # meanwhile, as nothing is timed now
                self._add_process()
            self._answer("prepare", process)
            if more:
                self._answer("start", self._processes[-1])
            self._tick("prepare")
            times: dict[SweepPoint, list[int]] = {}
            for _ in range(repeat):
                process.ask("round")
                for point, wall_ns in self._answer("measure", process):
                    times.setdefault(point, []).append(wall_ns)
                self._tick("round")
            whole = {point: tuple(walls) for point, walls in times.items() if len(walls) == repeat}
            yield from (StepTimes(point, walls, number) for point, walls in whole.items())
            if more:
                process.close()
                self._processes.remove(process)

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        """As in Reality, in one process."""
        (process,) = self._processes
        process.ask("batched", points, repeat)
        timed = self._answer("batched", process)
        self._tick("batched")
        yield from (StepTimes(point, walls) for point, walls in timed)

    def close(self) -> None:
        for process in self._processes:
            process.close()
        self._processes = []

    def _add_process(self) -> None:
        first = not self._processes
        self._processes.append(self._start())
        self._processes[-1].ask("start")
        if first:
            self._answer("start", self._processes[0])

    def _open(self, process: Any) -> None:
        runtime, profiled, depth, device, *options = self._model
        process.ask("check", profiled.conditions, device, os.getpid())
        found = self._answer("load", process)
        self.notices += [notice for notice in found if notice not in self.notices]
        process.ask("open", runtime, profiled, depth, device, *options)
        self._answer("load", process)

    def _answer(self, what: str, process: Any) -> Any:
        """Wait for an answer; the time goes to this part of the work."""
        with self._timed(what):
            return process.answer()

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[what] = round(self.seconds.get(what, 0.0) + time.monotonic() - started, 1)
