"""GPU kernel time by torch's profiler, many points in one session.

At each point: one eager pass with ranges on tells which kernel belongs to which row; then the same pass, captured in
a CUDA graph, is replayed, which costs the host almost nothing. A replay runs the kernels of the capture in order, so
they are matched one to one, by name, with those of the labelled pass. Where the two differ, or a pass cannot be
captured, the point is timed by labelled eager passes.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from llm_profile import trace
from llm_profile.backends.base import BlockKind
from llm_profile.errors import UsageError
from llm_profile.graphs import CaptureError, GraphPasses, fits
from llm_profile.hooks import LayerRanges
from llm_profile.measurement import PointFailure, PointSample, RowSample, StoppingRule
from llm_profile.provenance import device_conditions, device_facts
from llm_profile.subject import Subject
from llm_profile.sweep import SweepPoint
from llm_profile.telemetry import Telemetry, sharing_notice

SESSION_POINTS = 32
"""Points of one profiling session: enough to make starting it cheap, few enough for results to come often."""

GRAPHS = 4
"""Captures of each point that share its replays.

Short kernels differ by a few percent from one captured graph to the next, the same way in all replays of one (most
likely by where the graph lies in memory): over 2,048 decode points of a Llama-3.1-8B block on an H200, rows that do not
depend on the length varied by 1 to 6 % between graphs, three times of what replays of one graph explain.
"""

SETTLING_REPLAYS = 1
"""Replays of each graph before those that count, once a point's kernels have run eagerly twice: its own first use."""

REST = 1.0
"""Idle time before a point's replays over the time that the last point's took."""

OVERLAP_MARK = 0.01
"""Share of a pass in which kernels ran side by side from which on a point is marked."""


@dataclass
class _Pending:
    """A point under way: passes kept so far and how many more to run. failed: memory ran out."""

    point: SweepPoint
    wanted: int
    passes: list[trace.LabelledPass] = field(default_factory=list)
    timed_by: str = "graph-replay"
    failed: bool = False

    def pass_ns(self) -> list[int]:
        return [sum(k.kernel.duration_ns for k in p.kernels) for p in self.passes]


class _MutedRecorder(trace.RangeRecorder):
    """A recorder that can be told not to listen, while a pass is captured."""

    muted = False

    def enter(self, row: str) -> None:
        if not self.muted:
            super().enter(row)

    def leave(self) -> None:
        if not self.muted:
            super().leave()


class TorchProfilerBackend:
    """Times the kernels of each layer on a CUDA or ROCm device (`clock`: gpu-kernel)."""

    clock = "gpu-kernel"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.kinds: Sequence[BlockKind] = subject.layout.kinds
        self.block_rows = subject.layout.block_rows()
        self.learned_positions = subject.layout.learned_positions
        self.telemetry = Telemetry(pci_bus_id(subject.device))
        self.notices: list[str] = []
        if not self.telemetry.available:
            self.notices.append("no NVML on this machine: clocks and throttling are not recorded")
        self.notices += sharing_notice(self.telemetry)
        self._passes = GraphPasses(subject)
        self._capture_error: str | None = None
        self._rest_until = 0.0

    def conditions(self) -> Mapping[str, Any]:
        return {**device_conditions(self.subject.device), "driver": self.telemetry.driver, **self.subject.conditions()}

    def facts(self) -> Mapping[str, Any]:
        return {
            **device_facts(self.subject.device),
            "throttle_reasons": sorted(self.telemetry.reasons),
            "not_captured": self._capture_error,
        }

    def sample(
        self, points: Sequence[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        """Measure points in sessions, in the given order; a point that needs more passes comes again at the end."""
        queue = deque(_Pending(point, rule.first_passes) for point in points)
        while queue:
            batch = [queue.popleft() for _ in range(min(SESSION_POINTS, len(queue)))]
            self._session(batch, warmup)
            for pending in batch:
                if pending.failed:
                    yield PointFailure(pending.point, "out of memory")
                    continue
                pending.wanted = rule.passes_wanted(pending.pass_ns())
                if pending.wanted:
                    queue.append(pending)
                else:
                    yield self._sample(pending)

    def close(self) -> None:
        self.telemetry.close()
        self.subject.close()

    def _session(self, batch: list[_Pending], warmup: int) -> None:
        """Run the wanted passes of each point in one profiling session and add them to it."""
        self._warm(batch)
        alive = [pending for pending in batch if not pending.failed]
        recorder = _MutedRecorder()
        graphs: list[torch.cuda.CUDAGraph] = []  # kept until their replays are done
        with trace.record() as session, LayerRanges(self.subject.model, self.subject.layout, recorder):
            for index, pending in enumerate(alive):
                pending.failed = not fits(partial(self._run, index, pending, warmup, recorder, graphs))
        for graph in graphs:
            graph.reset()
        self._collect(session, alive)

    def _warm(self, batch: list[_Pending]) -> None:
        """First use of each shape, outside the session: plans are built, libraries loaded, masks made."""
        self.subject.runner.forget_masks()
        for pending in batch:
            pending.failed = not fits(partial(self._passes.eager, pending.point))
        torch.cuda.synchronize()

    def _run(
        self,
        index: int,
        pending: _Pending,
        warmup: int,
        recorder: _MutedRecorder,
        graphs: list[torch.cuda.CUDAGraph],
    ) -> None:
        with trace.pass_range(index):
            self._passes.eager(pending.point)
        captured = self._capture(pending, recorder)
        graphs += captured
        if not captured:
            pending.timed_by = "eager"
            for _ in range(pending.wanted - 1):
                with trace.pass_range(index):
                    self._passes.eager(pending.point)
            return
        self._rest()
        started = time.monotonic()
        with torch.cuda.stream(self._passes.stream):
            for graph, replays in zip(captured, shares(pending.wanted, len(captured)), strict=True):
                for _ in range(min(warmup, SETTLING_REPLAYS)):
                    graph.replay()
                with trace.pass_range(index):
                    for _ in range(replays):
                        graph.replay()
        torch.cuda.synchronize()
        ended = time.monotonic()
        self._rest_until = ended + REST * (ended - started)

    def _rest(self) -> None:
        """Let the GPU idle as long as the last point kept it busy.

        Back to back, points of long prompts draw more power than the card may, and its clock falls by a fifth: an H200
        ran prefill, and what came after it, at 1,600 instead of 1,980 MHz. Rested, prefill ran at about 1,870 and
        decode at 1,980.
        """
        time.sleep(max(0.0, self._rest_until - time.monotonic()))

    def _capture(self, pending: _Pending, recorder: _MutedRecorder) -> list[torch.cuda.CUDAGraph]:
        """Graphs of the point, at most one a wanted pass; none where passes have to be timed eagerly."""
        if self._capture_error or pending.timed_by != "graph-replay":
            return []
        captured: list[torch.cuda.CUDAGraph] = []
        recorder.muted = True
        try:
            while len(captured) < min(GRAPHS, pending.wanted):
                # a graph's memory comes on top of an eager pass's: where it does not fit, fewer graphs or none will do
                if not fits(lambda: captured.append(self._passes.capture(pending.point))):
                    break
        except CaptureError as error:
            self._capture_error = str(error)
            self.notices.append(f"passes cannot be captured in CUDA graphs, timed eagerly instead: {error}")
        finally:
            recorder.muted = False
        return captured

    def _collect(self, session: trace.Trace, alive: list[_Pending]) -> None:
        labelled = trace.labelled_passes(session)
        replays = trace.graph_replays(session)
        for index, pending in enumerate(alive):
            if pending.failed:
                continue
            eager = labelled.get(index, [])
            if not eager or not eager[0].kernels:
                raise RuntimeError(f"the profiler recorded no kernels at {pending.point}")
            if pending.timed_by == "eager":
                pending.passes += eager
                continue
            matched = [trace.label_replay(eager[0], replay) for replay in replays.get(index, [])]
            if len(matched) == pending.wanted and all(matched):
                pending.passes += [m for m in matched if m is not None]
            else:  # the graph runs other kernels than the model's code does: only eager passes are right
                pending.timed_by = "eager"
                pending.passes = list(eager)

    def _sample(self, pending: _Pending) -> PointSample:
        times: dict[str, list[int]] = {}
        names: dict[str, list[str]] = {}
        for number, one in enumerate(pending.passes):
            for labelled in one.kernels:
                row_times = times.setdefault(labelled.row, [0] * len(pending.passes))
                row_times[number] += labelled.kernel.duration_ns
        for labelled in pending.passes[0].kernels:
            names.setdefault(labelled.row, []).append(labelled.kernel.name)
        samples = {}
        for row, pass_ns in times.items():
            kernels = names.get(row, [])
            blocks = self.subject.layout.blocks(row)
            samples[row] = RowSample(tuple(pass_ns), blocks, len(kernels), tuple(dict.fromkeys(kernels)))
        every = [[k.kernel for k in p.kernels] for p in pending.passes]
        overlap = max(trace.overlap(kernels) for kernels in every)
        first, last = every[0][0], every[-1][-1]
        return PointSample(
            pending.point,
            samples,
            tuple(pending.pass_ns()),
            pending.timed_by,
            self.telemetry.sm_clock_mhz(first.start_ns, last.start_ns + last.duration_ns),
            overlap,
            ("kernels overlap",) if overlap > OVERLAP_MARK else (),
        )


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
