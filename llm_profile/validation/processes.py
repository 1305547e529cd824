"""The real model in fresh processes. No torch.

A process that has swept a table is another than the one that users run: its profiler sessions, its memory, its hooks
make each call of torch a little slower. So real steps run in new interpreters, several of them, which take turns: each
round goes over all steps in one process, then in the next.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.sweep import SweepPoint
from llm_profile.validation.profiled import Profiled
from llm_profile.validation.steps import StepTimes
from llm_profile.validation.worker import serve

MEMORY_FACTOR = 1.5
"""What a process takes at most, to what its weights take: caches, logits, graphs. Processes that together need more
memory than there is run one after the other."""

PROCESSES = {"eager": 3, "cuda-graph": 1}
"""--scaling-processes by runtime. Replays of graphs hardly differ between processes; docs/validation.md has figures."""


class Process:
    """A fresh interpreter with a `Worker`. Closing it kills it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy this process, CUDA and all
        self._connection, others_end = context.Pipe()
        self._process = context.Process(target=serve, args=(others_end,), daemon=True)
        self._process.start()
        others_end.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def ask(self, method: str, *arguments: Any) -> None:
        """Have a method of the worker called; `answer` waits for it."""
        self._connection.send((method, arguments))

    def answer(self) -> Any:
        """What the method returned. Raises what it raised, and UsageError where the process is gone."""
        try:
            done, result = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise UsageError(
                f"--scaling-processes: a process of the real model ended with exit code {self._process.exitcode}; "
                "where that is -9 memory ran out: use fewer processes or --scaling-num-layers"
            ) from None
        if done:
            return result
        raise result

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


class ProcessReality:
    """A Reality whose steps run in `processes` fresh processes, side by side where their models fit in memory.

    tell: takes a line on what is being done. Raises UsageError where the machine is another than the table's.
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
        start: Callable[[], Any] = Process,
    ) -> None:
        self.runtime = runtime
        self.seconds: dict[str, float] = {}
        self._model = (runtime, profiled, depth, device, token, trust_remote_code)
        self._on_gpu = device.startswith("cuda")
        self._tell = tell
        self._start = start
        self._open: list[Any] = []  # those that hold a model
        try:
            with self._timed("start", f"{processes} process(es) start"):
                self._fresh = [start() for _ in range(processes)]
                ours = [os.getpid(), *(process.pid for process in self._fresh)]
                self.notices: list[str] = self._all(self._fresh, "check", profiled.meta["conditions"], device, ours)[0]
        except BaseException:
            self.close()
            raise

    def steps(self, input_lens: Sequence[int], windows: Sequence[Sequence[int]], repeat: int) -> Iterator[StepTimes]:
        """As in Reality. Processes whose models fit in memory together take turns by rounds; others, by all rounds."""
        number = 0
        while self._fresh:
            for process in self._open:  # those before, whose memory is needed
                process.close()
            group = self._load()
            with self._timed("prepare", f"{len(group)} process(es) run each length once"):
                at_once = [group] if self._on_gpu else [[process] for process in group]  # threads of a CPU's cores
                for some in at_once:
                    self._all(some, "prepare", input_lens, windows)
            timed: list[dict[SweepPoint, list[int]]] = [{} for _ in group]
            with self._timed("measure", f"{repeat} round(s) in each of {len(group)} process(es)"):
                for _ in range(repeat):
                    for process, times in zip(group, timed, strict=True):
                        for point, wall_ns in self._all([process], "round")[0]:
                            times.setdefault(point, []).append(wall_ns)
            for times in timed:
                whole = {point: tuple(walls) for point, walls in times.items() if len(walls) == repeat}
                yield from (StepTimes(point, walls, number) for point, walls in whole.items())
                number += 1

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        """As in Reality, in one process; the others are closed, as batches take memory."""
        while len(self._open) > 1:
            self._open.pop().close()
        if self._open:
            with self._timed("batched", "steps of several sequences"):
                (found,) = self._all(self._open, "batched", points, repeat)
            yield from (StepTimes(point, walls) for point, walls in found)

    def close(self) -> None:
        for process in (*self._open, *self._fresh):
            process.close()
        self._open, self._fresh = [], []

    def _load(self) -> list[Any]:
        """Load the model in one process, and in as many more as memory has room for, at once."""
        with self._timed("load", f"{self._model[2]} blocks are loaded"):
            self._open = [self._fresh.pop(0)]
            ((taken, free),) = self._all(self._open, "open", *self._model)
            needed = max(1, int(MEMORY_FACTOR * taken))
            more = min(len(self._fresh), max(0, (free - (needed - taken)) // needed))
            beside, self._fresh = self._fresh[:more], self._fresh[more:]
            self._open += beside
            self._all(beside, "open", *self._model)
        return self._open

    def _all(self, processes: Sequence[Any], method: str, *arguments: Any) -> list[Any]:
        """Ask each at once, and wait for all."""
        for process in processes:
            process.ask(method, *arguments)
        return [process.answer() for process in processes]

    @contextmanager
    def _timed(self, what: str, text: str) -> Iterator[None]:
        self._tell(f"real model, {self.runtime}: {text}")
        started = time.monotonic()
        yield
        self.seconds[what] = round(self.seconds.get(what, 0.0) + time.monotonic() - started, 1)
