"""Steps captured in CUDA graphs, with the cache, routing and kernels of the profile."""

import time
from collections.abc import Iterator, Sequence

import torch

from llm_profile.errors import UsageError
from llm_profile.passes.graphs import CaptureError, GraphPasses, fits
from llm_profile.passes.runner import PassRunner
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.timing.pacing import REST
from llm_profile.validation.real_steps import Step

REPLAYS = 2
"""Back-to-back replays whose mean is one repeat."""


class GraphSteps:
    """Steps captured in CUDA graphs and replayed, timed with CUDA events.

    Replays hardly vary, so of a window of consecutive decode steps the first and the last stand for all.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._passes = GraphPasses(subject)
        self._graphs: dict[SweepPoint, torch.cuda.CUDAGraph] = {}

    def prepare(self, input_lens: Sequence[int], windows: Sequence[Sequence[int]]) -> None:
        """Captures each step; the graphs stay until `batched` or `close`."""
        self._passes.runner.forget_masks()  # those of these steps stay: graphs read them
        decode = [kv_len for window in windows for kv_len in sorted({window[0], window[-1]})]
        points = [*(SweepPoint(n, 0) for n in input_lens), *(SweepPoint(1, kv_len) for kv_len in decode)]
        self._graphs = {point: graph for point in points if (graph := self._capture(point)) is not None}

    def round(self) -> Iterator[Step]:
        """Replays of each step."""
        for point, graph in self._graphs.items():
            yield point, self._time(graph)

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[tuple[SweepPoint, tuple[int, ...]]]:
        """One pass each."""
        self._forget()
        own = self._subject.runner
        for point in points:
            with PassRunner(
                self._subject.model,
                point.kv_len,
                point.total_len,
                self._subject.options.model.seed,
                self._subject.routing,
                point.batch,
            ) as self._passes.runner:
                if (graph := self._capture(point)) is not None:
                    yield point, tuple(self._time(graph) for _ in range(repeat))
                    graph.reset()
        self._passes.runner = own

    def packed(self, repeat: int) -> Iterator[tuple[SweepPoint, tuple[int, ...]]]:
        """Each of the subject's packed points, by points: wall times in ns. Those without memory are left out."""
        packed = self._subject.runner.packed
        assert packed is not None and packed.most_cached is not None
        for point in sorted(packed.points):
            if point.cache_len <= packed.most_cached and (graph := self._capture(point)) is not None:
                yield point, tuple(self._time(graph) for _ in range(repeat))
                graph.reset()
            self._passes.runner.forget_masks(point)

    def close(self) -> None:
        self._forget()
        self._subject.close()

    def _forget(self) -> None:
        for graph in self._graphs.values():
            graph.reset()
        self._graphs = {}

    def _capture(self, point: SweepPoint) -> torch.cuda.CUDAGraph | None:
        captured: list[torch.cuda.CUDAGraph] = []

        def capture() -> None:
            self._passes.eager(point, last_token_only=True)  # a length's first use builds plans
            captured.append(self._passes.capture(point, last_token_only=True))

        try:
            return captured[0] if fits(capture) else None
        except CaptureError as error:
            raise UsageError(
                f"--scaling-runtime cuda-graph: {type(self._subject.model).__name__} cannot be captured "
                f"({error}); use --scaling-runtime eager"
            ) from error

    def _time(self, graph: torch.cuda.CUDAGraph) -> int:
        """Mean of REPLAYS back-to-back replays, after one that warms and a rest as the profile takes it."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began = time.monotonic()
        with torch.cuda.stream(self._passes.stream):
            graph.replay()
            start.record()
            for _ in range(REPLAYS):
                graph.replay()
            end.record()
        end.synchronize()
        time.sleep(REST * (time.monotonic() - began))
        return round(start.elapsed_time(end) * 1e6 / REPLAYS)
