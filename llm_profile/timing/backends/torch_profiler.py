"""GPU kernel time by torch's profiler, many points in one session.

At each point the pass, captured in CUDA graphs, is replayed, which costs the host almost nothing. An eager pass with
ranges on tells which kernel belongs to which row. A replay runs the kernels of the capture in order, so they are
matched one to one with those of a labelled pass: the point's own, or another's that ran the very same ones.
Where a point's own runs other kernels, or a pass cannot be captured, the point is timed by labelled eager passes.
"""

import gc
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from llm_profile.block_kinds import BlockKind
from llm_profile.errors import UsageError
from llm_profile.layers.ranges import LayerRanges
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.passes.graphs import CaptureError, GraphPasses, fits
from llm_profile.passes.l2 import l2_flush
from llm_profile.passes.subject import Subject
from llm_profile.sweep import SweepPoint
from llm_profile.timing import session, trace
from llm_profile.timing.backends.base import GRAPHS
from llm_profile.timing.point_passes import EAGER, PointPasses
from llm_profile.timing.provenance import device_conditions, device_facts
from llm_profile.timing.telemetry import Telemetry, sharing_notice

SESSION_POINTS = 32
"""Most points of one profiling session: enough to make starting it cheap."""

FIRST_POINTS = 8
"""Points of the first session, when it is not known yet how long they take."""

SESSION_S = 2.0
"""How long a session is to last at most: what it measured is known when the next one has ended."""

FEW_TOKENS = 64
"""Passes of no more tokens than this wait for memory, and draw less power than the card may: they need no rest."""

REST = 1.0
"""Idle time after each pass of more tokens over the time that it took.

Back to back, such passes draw more power than the card may. Its clock then falls by a fifth (1,460 to 1,700 MHz on an
H200 that has 1,980), and that of the small kernels behind `lm_head` falls first. One card stayed at 1,965 and more with
a rest of half of each pass; another fell to 1,950 at times, with three tenths to 1,905 and with 0.15 to 1,770, where
rows took 3 % longer. With rests as long as the pass both stayed at 1,965 and more.
"""

SWITCH_S = 1e-4
"""How long the thread that reads events may keep the one that runs passes waiting."""


@dataclass
class _Pending(PointPasses):
    """A point on the device. graphs: of the session to come, none for eager passes. failed: memory ran out."""

    graphs: list[torch.cuda.CUDAGraph] = field(default_factory=list)
    failed: bool = False


class TorchProfilerBackend:
    """Times the kernels of each layer on a CUDA or ROCm device (`clock`: gpu-kernel)."""

    clock = "gpu-kernel"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.kinds: Sequence[BlockKind] = subject.layout.kinds
        self.block_rows = subject.layout.block_rows()
        self.learned_positions = subject.layout.learned_positions
        self.telemetry = Telemetry(pci_bus_id(subject.device))
        self.notices = list(subject.notices)
        if not self.telemetry.available:
            self.notices.append("no NVML on this machine: clocks and throttling are not recorded")
        self.notices += sharing_notice(self.telemetry)
        self._passes = GraphPasses(subject, GRAPHS)
        if not self._passes.weights:
            self.notices.append("memory does not suffice for copies of weights: rows vary more from run to run")
        self._capture_error: str | None = None
        self._most_graphs = GRAPHS
        self._flush = l2_flush(subject)
        if self._flush:
            self.notices.append(
                "one block's weights would stay in the GPU's L2 cache, the full model's would not: it is emptied "
                "before each pass"
            )
        self._labels = trace.Labels()
        self._unmatched = 0
        self._points = FIRST_POINTS
        self._rest_until = 0.0
        with session.record():
            pass  # graphs captured before the first session would show their copies as kernels of another name
        gc.collect()
        gc.freeze()  # torch and transformers hold millions of objects, and a session's events make collections frequent

    def conditions(self) -> Mapping[str, Any]:
        return {**device_conditions(self.subject.device), "driver": self.telemetry.driver, **self.subject.conditions()}

    def facts(self) -> Mapping[str, Any]:
        return {
            **device_facts(self.subject.device),
            **self.subject.facts(),
            "throttle_reasons": sorted(self.telemetry.reasons),
            "not_captured": self._capture_error,
            "l2_flushed": self._flush is not None,
            "unmatched_replays": self._unmatched,
            "weight_copies": len(self._passes.weights),
        }

    def sample(
        self, points: Sequence[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        """Measure points in sessions, in the given order; one that needs more passes comes again in the next."""
        queue = deque(_Pending(point, rule.first_passes) for point in points)
        with ThreadPoolExecutor(1, "read-events") as reader, switching_every(SWITCH_S):
            measured: tuple[session.Events, list[_Pending]] | None = None
            while queue or measured:
                batch = [queue.popleft() for _ in range(min(self._points, len(queue)))]
                started = time.monotonic()
                self._prepare(batch)
                # Read while the session waits for the device: preparing it needs the interpreter for itself.
                reading = reader.submit(self._read, *measured, rule) if measured else None
                measured = None
                if batch:
                    measured = self._measure(batch, warmup), batch
                    self._points = points_in_time(len(batch), time.monotonic() - started)
                for result in reading.result() if reading else ():
                    if isinstance(result, _Pending):
                        queue.appendleft(result)
                    else:
                        yield result

    def close(self) -> None:
        gc.unfreeze()
        self.telemetry.close()
        self.subject.close()

    def _measure(self, batch: list[_Pending], warmup: int) -> session.Events:
        """Run the wanted passes of each point in one profiling session; each has its place in `batch` as its index."""
        with session.record() as events, LayerRanges(self.subject.model, self.subject.layout, session.RangeRecorder()):
            for index, pending in enumerate(batch):
                if not pending.failed:
                    pending.failed = not fits(partial(self._run, index, pending, warmup))
        for pending in batch:
            for graph in pending.graphs:
                graph.reset()
            pending.graphs.clear()
        return events

    def _prepare(self, batch: list[_Pending]) -> None:
        """What happens outside the session: first use of each shape (plans, libraries, masks), and captures.

        Captured in a session, each graph would leave it 200 events, which cost more than capturing it.
        """
        runner = self.subject.runner
        runner.forget_masks()
        for pending in batch:
            with torch.cuda.stream(self._passes.stream):
                runner.cache.restore()  # states that passes change where they stand would grow from pass to pass
            pending.failed = not fits(partial(self._passes.eager, pending.point))
            if pending.failed:
                continue
            self._capture(pending)
            if pending.wanted and not pending.graphs:
                pending.timed_by = EAGER

    def _capture(self, pending: _Pending) -> None:
        """Give a point its graphs: fewer where memory does not suffice, none where it has to be timed eagerly."""
        if self._capture_error or pending.timed_by == EAGER:
            return

        def capture() -> None:
            pending.graphs.append(self._passes.capture(pending.point, pool=len(pending.graphs)))

        try:
            while len(pending.graphs) < min(self._most_graphs, pending.wanted):
                if not fits(capture):
                    self._take_fewer_graphs(len(pending.graphs))
                    break
        except CaptureError as error:
            self._capture_error = str(error)
            self.notices.append(f"passes cannot be captured in CUDA graphs, timed eagerly instead: {error}")

    def _take_fewer_graphs(self, fitted: int) -> None:
        """Running out of memory costs more than a point: once is enough."""
        if 0 < fitted < self._most_graphs:
            self._most_graphs = fitted
            self.notices.append(f"memory suffices for {fitted} of {GRAPHS} captures of a pass: rows vary a little more")

    def _run(self, index: int, pending: _Pending, warmup: int) -> None:
        """Replays, after a labelled eager pass where one is needed; eager passes where there is no graph."""
        needs_rest = pending.point.batch * pending.point.input_len > FEW_TOKENS
        label = bool(pending.replays) or not self._labels
        for _ in range(pending.wanted if pending.timed_by == EAGER else label):
            with self._paced(needs_rest):
                self._empty_l2()
                with session.pass_range(index):
                    self._passes.eager(pending.point)
        if not pending.graphs:
            return
        dealt = zip(pending.graphs, shares(pending.wanted, len(pending.graphs)), strict=True)
        replays = [graph for graph, times in dealt for _ in range(times)]
        for burst in [[graph] for graph in replays] if needs_rest else [replays]:
            with self._paced(needs_rest):
                self._replay(index, burst, settle=warmup > 0 and not needs_rest)

    def _replay(self, index: int, graphs: Sequence[torch.cuda.CUDAGraph], settle: bool) -> None:
        """Replay graphs back to back. settle: one replay more, which does not count, goes first."""
        with torch.cuda.stream(self._passes.stream):
            if settle:
                graphs[0].replay()  # from rest, the first pass is a little different
            with session.pass_range(index):
                for graph in graphs:
                    self._empty_l2()  # launched by itself, so it counts to no replay
                    graph.replay()

    def _empty_l2(self) -> None:
        if self._flush:
            with torch.cuda.stream(self._passes.stream):
                self._flush()

    @contextmanager
    def _paced(self, needs_rest: bool) -> Iterator[None]:
        """Around passes: the device is at rest before, as long as those before need it, and has run them after."""
        time.sleep(max(0.0, self._rest_until - time.monotonic()))
        started = time.monotonic()
        yield
        torch.cuda.synchronize()
        if needs_rest:
            ended = time.monotonic()
            self._rest_until = ended + REST * (ended - started)

    def _read(
        self, events: session.Events, batch: list[_Pending], rule: StoppingRule
    ) -> list[PointSample | PointFailure | _Pending]:
        """What a session gave, while the next one runs; a point that needs more passes is still pending."""
        recorded = events.read()
        labelled, replays = trace.labelled_passes(recorded), trace.graph_replays(recorded)
        results: list[PointSample | PointFailure | _Pending] = []
        for index, pending in enumerate(batch):
            if pending.failed:
                results.append(PointFailure(pending.point, "out of memory"))
                continue
            pending.add(labelled.get(index, []), replays.get(index, []), self._labels)
            pending.wanted = 0 if pending.replays else rule.passes_wanted(pending.pass_ns())
            results.append(pending if pending.replays or pending.wanted else self._sample(pending))
        return results

    def _sample(self, pending: _Pending) -> PointSample:
        self._unmatched += pending.unmatched
        return pending.sample(self.subject.layout.blocks, self.telemetry.sm_clock_mhz)


def points_in_time(points: int, seconds: float) -> int:
    """How many points the next session is to have, when so many took so long."""
    return max(1, min(SESSION_POINTS, int(points * SESSION_S / max(seconds, 1e-9))))


@contextmanager
def switching_every(seconds: float) -> Iterator[None]:
    """Let Python's threads take turns that short."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def shares(total: int, parts: int) -> list[int]:
    """`total` dealt out evenly: 10 to 4 parts is 3, 3, 2, 2."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def pci_bus_id(device: torch.device) -> str | None:
    """PCI address by which NVML knows a CUDA device; None on ROCm."""
    if torch.version.cuda is None:
        return None
    p: Any = torch.cuda.get_device_properties(device)
    return f"{p.pci_domain_id:08X}:{p.pci_bus_id:02X}:{p.pci_device_id:02X}.0"


def check_cuda(device: str) -> None:
    """Raises UsageError if torch cannot use the CUDA device of this name."""
    if not torch.cuda.is_available():
        build = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise UsageError(f"--device {device}: {build}; install a CUDA build of torch and a driver, or use --device cpu")
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        raise UsageError(f"--device {device}: there are {torch.cuda.device_count()} GPUs; use cuda:0 and up")
    torch.cuda.set_device(index)
