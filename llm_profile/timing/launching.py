"""Launches replays without waiting for them, and lets the GPU rest after long passes.

While the GPU works through what was launched, the host captures the passes of the next points.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llm_profile.timing.capturing import PendingPoint
from llm_profile.timing.pacing import REST, needs_rest
from llm_profile.timing.replays import NodeRows

MOMENT_S = 1e-4

AHEAD = 2
"""Most bursts that are launched and not finished: one runs, and the next one is ready when it ends."""


@dataclass
class Launched:
    """A launch of a graph. pending: the point that its replay counts for, with the rows of its nodes; else None."""

    graph_id: int
    pending: tuple[PendingPoint, NodeRows] | None


@dataclass
class Burst:
    """Replays that are launched back to back. rests: a rest follows. uncounted: number of replays before them."""

    pending: PendingPoint
    graphs: Sequence[int]
    rests: bool
    uncounted: int


@dataclass
class Running:
    """A burst on the device. launched_at: time.monotonic."""

    begin: torch.cuda.Event
    end: torch.cuda.Event
    rests: bool
    launched_at: float


class ReplayLauncher:
    """Launches bursts of replays: those that need rests one at a time, others in these rests.

    stream: where graphs run. flush: empties the L2 cache before each pass, None if that is not needed.
    """

    def __init__(self, stream: torch.cuda.Stream, flush: Callable[[], None] | None) -> None:
        self._flush = flush
        self._stream = stream
        self._waiting: dict[bool, deque[Burst]] = {True: deque(), False: deque()}  # by whether they rest
        self._running: deque[Running] = deque()
        self._launched: list[Launched] = []
        self._idle_from = 0.0  # time.monotonic at which the latest finished burst ended
        self._rest_until = 0.0
        self._cold = True

    def add(self, pending: PendingPoint, warmup: int) -> None:
        """Queue the wanted passes of a point, shared out evenly among its graphs.

        warmup: most uncounted replays before a burst. The first burst of all has so many, since the GPU's clock was low
        before, others have one. Passes that need rests are bursts of their own, without.
        """
        pending.outstanding = pending.wanted
        rests = needs_rest(pending.point)
        shares = split_evenly(pending.wanted, len(pending.graphs))
        order = [graph for graph, times in enumerate(shares) for _ in range(times)]
        for graphs in [[graph] for graph in order] if rests else [order]:
            uncounted = warmup if self._cold else min(warmup, 0 if rests else 1)
            self._cold = False
            self._waiting[rests].append(Burst(pending, graphs, rests, uncounted))

    def pump(self) -> None:
        """Launch what may run now. Waits for nothing."""
        while self._running and self._running[0].end.query():
            self._retire()
        while len(self._running) < AHEAD and (burst := self._next()) is not None:
            self._launch(burst)

    def work_off(self, most_waiting: int = 0) -> None:
        """Launch bursts until so many are left, and wait until the device has run what was launched."""
        while sum(map(len, self._waiting.values())) > most_waiting:
            self.pump()
            if len(self._running) == AHEAD or not self._waiting[True]:
                self._running[0].end.synchronize()
            else:
                time.sleep(max(MOMENT_S, self._rest_until - time.monotonic()))
        while self._running:
            self._running[0].end.synchronize()
            self._retire()

    def take_launched(self) -> list[Launched]:
        """The launches since the last call, in order."""
        taken, self._launched = self._launched, []
        return taken

    def _next(self) -> Burst | None:
        rested = not any(one.rests for one in self._running) and time.monotonic() >= self._rest_until
        if rested and self._waiting[True]:
            return self._waiting[True].popleft()
        return self._waiting[False].popleft() if self._waiting[False] else None

    def _launch(self, burst: Burst) -> None:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pending = burst.pending
        with torch.cuda.stream(self._stream):
            launched_at = time.monotonic()
            begin.record()
            for _ in range(burst.uncounted):  # the first pass after an idle time takes a little longer or shorter
                self._launched.append(Launched(pending.graph_ids[burst.graphs[0]], None))
                pending.graphs[burst.graphs[0]].replay()
            for graph in burst.graphs:
                if self._flush:
                    self._flush()  # its kernel is not part of the graph, so its time is in no replay
                self._launched.append(Launched(pending.graph_ids[graph], (pending, pending.rows[graph])))
                pending.graphs[graph].replay()
            end.record()
        self._running.append(Running(begin, end, burst.rests, launched_at))

    def _retire(self) -> None:
        """Note when the first running burst ended, and how long a rest it needs: REST times as long as it took."""
        done = self._running.popleft()
        took = done.begin.elapsed_time(done.end) / 1e3
        self._idle_from = max(self._idle_from, done.launched_at) + took
        if done.rests:
            self._rest_until = self._idle_from + REST * took


def split_evenly(total: int, parts: int) -> list[int]:
    """`total` as a sum of `parts` whole numbers that differ by at most one: 10 in 4 parts is 3, 3, 2, 2."""
    return [total // parts + (part < total % parts) for part in range(parts)]
