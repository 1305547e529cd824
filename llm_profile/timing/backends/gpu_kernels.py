"""GPU kernel time of layers: passes are captured in CUDA graphs, replayed, and recorded kernel by kernel.

A replay takes almost no time on the host. The row of each kernel is known from the capture, see timing/graph_nodes.py.
Passes that cannot be captured are timed eagerly, see timing/eager_passes.py.
"""

import gc
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import Any

from llm_profile.block_kinds import BlockKind
from llm_profile.layers.ranges import LayerRanges
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.passes.graphs import GraphPasses
from llm_profile.passes.l2 import l2_flush
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.timing.backends.base import GRAPHS
from llm_profile.timing.capturing import PendingPoint, PointCaptures
from llm_profile.timing.cuda_device import pci_bus_id
from llm_profile.timing.eager_passes import EagerPasses
from llm_profile.timing.graph_nodes import GraphNodes
from llm_profile.timing.launching import Launched, ReplayLauncher
from llm_profile.timing.provenance import device_conditions, device_facts
from llm_profile.timing.replays import ReplayRecorder
from llm_profile.timing.telemetry import Telemetry, sharing_notice
from llm_profile.timing.timers import checked_timer, open_recorder

BATCH_POINTS = 32
"""Points after which the records are read. So results arrive about twice a second."""

MOST_WAITING = 64
"""Most bursts of replays that may wait while records are read. For those beyond it the host waits, so that not too many
graphs take memory."""


class GpuKernelBackend:
    """Times the kernels of each layer on a CUDA or ROCm device (`clock`: gpu-kernel). timer: one of request.TIMERS.

    Raises UsageError if the timer cannot be used here.
    """

    clock = "gpu-kernel"

    def __init__(self, subject: Subject, timer: str = "auto") -> None:
        self.subject = subject
        self.kinds: Sequence[BlockKind] = subject.layout.kinds
        self.block_rows = subject.layout.block_rows()
        self.learned_positions = subject.layout.learned_positions
        self.most_cached = subject.most_cached
        self.telemetry = Telemetry(pci_bus_id(subject.device))
        self.notices = list(subject.notices)
        if not self.telemetry.available:
            self.notices.append("no NVML on this machine: clocks and throttling are not recorded")
        self.notices += sharing_notice(self.telemetry)
        self._passes = GraphPasses(subject, GRAPHS)
        if not self._passes.weights:
            self.notices.append("memory does not suffice for copies of weights: rows vary more from run to run")
        self._nodes: GraphNodes | None = None
        try:
            self._nodes = GraphNodes(self._passes.stream)
        except OSError:  # ROCm has another driver
            self.notices.append("this driver does not tell the nodes of a graph, so all passes are timed eagerly")
        self._captures = PointCaptures(self._passes, self._nodes, self.notices)
        self._flush = l2_flush(subject)
        self._eager = EagerPasses(subject, self._passes, self._flush)
        if self._flush:
            self.notices.append(
                "the profiled weights would stay in the GPU's L2 cache, those of the full model would not: the cache "
                "is emptied before each pass"
            )
        self._lost = 0
        self._timer = checked_timer(timer, self._passes, self.notices)
        gc.collect()
        gc.freeze()  # collections need not visit the objects of torch and transformers

    def conditions(self) -> Mapping[str, Any]:
        return {
            **device_conditions(self.subject.device),
            "driver": self.telemetry.driver,
            "timer": self._timer,
            **self.subject.conditions(),
        }

    def facts(self) -> Mapping[str, Any]:
        return {
            **device_facts(self.subject.device),
            **self.subject.facts(),
            "gpu_limits": self.telemetry.limits(),
            "throttle_reasons": sorted(self.telemetry.reasons),
            "not_captured": self._captures.error,
            "l2_flushed": self._flush is not None,
            "lost_replays": self._lost,
            "weight_copies": len(self._passes.weights),
        }

    def sample(
        self, points: Iterable[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        """Measure points, about in the given order: replays first, then those that have to be timed eagerly."""
        left = iter(points)
        eager: list[SweepPoint] = []
        if self._nodes and not self._captures.error:
            recorder = open_recorder(self._timer)
            with closing(recorder), LayerRanges(self.subject.model, self.subject.layout, self._nodes):
                yield from self._replayed(recorder, left, rule, warmup, eager)
        yield from self._eager.sample(chain(eager, left), rule, self.telemetry.sm_clock_mhz)

    def close(self) -> None:
        gc.unfreeze()
        self.telemetry.close()
        self.subject.close()

    def _replayed(
        self,
        recorder: ReplayRecorder,
        points: Iterator[SweepPoint],
        rule: StoppingRule,
        warmup: int,
        eager: list[SweepPoint],
    ) -> Iterator[PointSample | PointFailure]:
        """Measure points by replays. Those that have to be timed eagerly are added to `eager`, or left in `points`.

        While the GPU runs the replays of some points, the host captures those of the next ones, and makes the results
        of earlier ones.
        """
        launcher = ReplayLauncher(self._passes.stream, self._flush)
        pump = launcher.pump if recorder.concurrent else _wait_for_more
        self._captures.meanwhile = pump
        queue: deque[PendingPoint] = deque()
        running: list[PendingPoint] = []
        measured: deque[PendingPoint] = deque()
        self._refill(queue, points, rule)
        while queue or running or measured:
            for pending in [queue.popleft() for _ in range(min(BATCH_POINTS, len(queue)))]:
                running.append(pending)
                if not pending.graphs:
                    self._captures.capture(pending, recorder)
                if pending.graphs:
                    launcher.add(pending, warmup)
                pump()
                if measured:
                    yield self._result(measured.popleft())
                    pump()
            yield from map(self._result, measured)
            measured.clear()
            self._refill(queue, points, rule)
            with recorder.recording():
                launcher.work_off(MOST_WAITING if queue and recorder.concurrent else 0)
            self._read(recorder, launcher.take_launched())
            ended = [pending for pending in running if not pending.outstanding]
            running = [pending for pending in running if pending.outstanding]
            yield from self._settle(ended, rule, eager, queue, measured)

    def _refill(self, queue: deque[PendingPoint], points: Iterator[SweepPoint], rule: StoppingRule) -> None:
        """Take points for a batch. None are taken once passes cannot be captured."""
        if self._captures.error is None:
            wanted = max(0, BATCH_POINTS - len(queue))
            queue.extend(PendingPoint(point, rule.first_passes) for point in islice(points, wanted))

    @staticmethod
    def _read(recorder: ReplayRecorder, launched: Sequence[Launched]) -> None:
        """Count the replays since the last call as passes of their points."""
        for launch, replay in zip(launched, recorder.read([one.graph_id for one in launched]), strict=True):
            if launch.pending is not None:
                pending, rows = launch.pending
                pending.outstanding -= 1
                pending.add(replay, rows)

    def _settle(
        self,
        ended: Sequence[PendingPoint],
        rule: StoppingRule,
        eager: list[SweepPoint],
        queue: deque[PendingPoint],
        measured: deque[PendingPoint],
    ) -> Iterator[PointFailure]:
        """Sort points whose replays have been read: failed, timed eagerly, replayed again, or measured."""
        for pending in ended:
            pending.wanted = rule.passes_wanted(pending.pass_ns())
            if pending.failed:
                yield PointFailure(pending.point, "out of memory")
            elif not pending.graphs or pending.hopeless:
                eager.append(pending.point)
            elif pending.wanted:
                queue.appendleft(pending)
                continue
            else:
                measured.append(pending)
            self._lost += pending.lost
            pending.free_graphs()
            self.subject.runner.forget_masks(pending.point)

    def _result(self, pending: PendingPoint) -> PointSample:
        return pending.sample(self.subject.layout.blocks, self.telemetry.sm_clock_mhz)


def _wait_for_more() -> None:
    """Launch nothing yet: this recorder starts when all captures of a batch are made."""
