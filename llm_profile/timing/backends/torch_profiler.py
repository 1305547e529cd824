"""GPU kernel time by torch's profiler, with many points in one profiling session.

The pass of a point is captured in CUDA graphs and replayed, which takes almost no time on the host. The row of each
kernel is known from a labelled pass: an eager one with a profiler range around each layer. A replay runs the captured
kernels in their order, so they are matched one to one with the kernels of a labelled pass, which may be one of another
point that ran the same kernels. A point is timed by labelled passes instead of replays if its own labelled pass runs
other kernels than its replays, or if its pass cannot be captured.
"""

import gc
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from llm_profile.block_kinds import BlockKind
from llm_profile.layers.ranges import LayerRanges
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.passes.graphs import GraphPasses, fits
from llm_profile.passes.l2 import l2_flush
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.timing import session, trace
from llm_profile.timing.backends.base import GRAPHS
from llm_profile.timing.capturing import PendingPoint, PointCaptures
from llm_profile.timing.cuda_device import pci_bus_id
from llm_profile.timing.launching import PassLauncher
from llm_profile.timing.point_passes import EAGER
from llm_profile.timing.provenance import device_conditions, device_facts
from llm_profile.timing.reader_thread import reader_thread
from llm_profile.timing.session_size import FIRST_POINTS, next_session_points
from llm_profile.timing.telemetry import Telemetry, sharing_notice


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
        self._captures = PointCaptures(self._passes, self.notices)
        self._labels = trace.Labels()
        self._launcher = PassLauncher(self._passes, self._labels, l2_flush(subject))
        if self._launcher.flush:
            self.notices.append(
                "the profiled weights would stay in the GPU's L2 cache, those of the full model would not: the cache "
                "is emptied before each pass"
            )
        self._unmatched = 0
        self._points = FIRST_POINTS
        with session.record():
            pass  # copies in graphs captured before the first session would be recorded as kernels of another name
        gc.collect()
        # A session's events make collections frequent; they need not visit the objects of torch and transformers.
        gc.freeze()

    def conditions(self) -> Mapping[str, Any]:
        return {**device_conditions(self.subject.device), "driver": self.telemetry.driver, **self.subject.conditions()}

    def facts(self) -> Mapping[str, Any]:
        return {
            **device_facts(self.subject.device),
            **self.subject.facts(),
            "throttle_reasons": sorted(self.telemetry.reasons),
            "not_captured": self._captures.error,
            "l2_flushed": self._launcher.flush is not None,
            "unmatched_replays": self._unmatched,
            "weight_copies": len(self._passes.weights),
        }

    def sample(
        self, points: Sequence[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        """Measure points in profiling sessions, in the given order. Points that need more passes come first again.

        While a session runs, another thread reads the events of the session before it.
        """
        queue = deque(PendingPoint(point, rule.first_passes) for point in points)
        with reader_thread() as reader:
            measured: tuple[session.Events, list[PendingPoint]] | None = None
            while queue or measured:
                batch = [queue.popleft() for _ in range(min(self._points, len(queue)))]
                started = time.monotonic()
                self._prepare(batch)
                # Reading starts only after the captures, which are slower while another thread runs Python. In the
                # session itself, this thread mostly waits for the device.
                reading = reader.submit(self._read, *measured, rule) if measured else None
                measured = None
                if batch:
                    measured = self._measure(batch, warmup), batch
                    self._points = next_session_points(len(batch), time.monotonic() - started)
                for result in reading.result() if reading else ():
                    if isinstance(result, PendingPoint):
                        queue.appendleft(result)
                    else:
                        yield result

    def close(self) -> None:
        gc.unfreeze()
        self.telemetry.close()
        self.subject.close()

    def _measure(self, batch: list[PendingPoint], warmup: int) -> session.Events:
        """Run the wanted passes of each point in one session. The index of a point there is its place in `batch`."""
        with session.record() as events, LayerRanges(self.subject.model, self.subject.layout, session.RangeRecorder()):
            for index, pending in enumerate(batch):
                if not pending.failed:
                    pending.failed = not fits(partial(self._launcher.run, index, pending, warmup))
        for pending in batch:
            pending.free_graphs()
        return events

    def _prepare(self, batch: list[PendingPoint]) -> None:
        """Run each point once and capture it, before the session.

        The first pass of a shape does work that must not be timed, such as plans of libraries and masks. A capture
        inside a session would add about 200 events to it, and reading them takes longer than the capture.
        """
        runner = self.subject.runner
        runner.forget_masks()
        for pending in batch:
            with torch.cuda.stream(self._passes.stream):
                runner.cache.restore()  # otherwise states that passes update in place would grow from pass to pass
            pending.failed = not fits(partial(self._passes.eager, pending.point))
            if pending.failed:
                continue
            self._captures.capture(pending)
            if pending.wanted and not pending.graphs:
                pending.timed_by = EAGER

    def _read(
        self, events: session.Events, batch: list[PendingPoint], rule: StoppingRule
    ) -> list[PointSample | PointFailure | PendingPoint]:
        """The result of each point of a session: a sample or a failure, or the pending point if it needs more passes.

        The reading thread runs this.
        """
        recorded = events.read()
        labelled, replays = trace.labelled_passes(recorded), trace.graph_replays(recorded)
        results: list[PointSample | PointFailure | PendingPoint] = []
        for index, pending in enumerate(batch):
            if pending.failed:
                results.append(PointFailure(pending.point, "out of memory"))
                continue
            pending.add(labelled.get(index, []), replays.get(index, []), self._labels)
            pending.wanted = 0 if pending.replays else rule.passes_wanted(pending.pass_ns())
            results.append(pending if pending.replays or pending.wanted else self._sample(pending))
        return results

    def _sample(self, pending: PendingPoint) -> PointSample:
        self._unmatched += pending.unmatched
        return pending.sample(self.subject.layout.blocks, self.telemetry.sm_clock_mhz)
