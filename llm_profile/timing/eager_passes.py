"""Timing points by eager passes, with a range of torch's profiler around each layer.

For passes that cannot be captured in graphs. It takes a session for a few points, and far more time on the host.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

import torch

from llm_profile.errors import UsageError
from llm_profile.layers.ranges import LayerRanges
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.passes.graphs import GraphPasses, fits
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.timing import session, trace
from llm_profile.timing.pacing import Pacer, needs_rest
from llm_profile.timing.point_passes import EAGER, PointPasses

SESSION_POINTS = 8
"""Points of one session: starting and ending one takes as long as a few passes, and its events take memory."""

NO_EVENTS = (
    "the profiler recorded no kernels at {at}: most likely another profiler receives the GPU's events, and only one "
    "can; end nsys, ncu, a DCGM monitor or another torch profiler (on AMD rocprof), then run the same command again"
)
"""Error if eager passes have no kernels."""


class EagerPasses:
    """Times points of a model by eager passes. flush: empties the L2 cache before each pass, None if not needed."""

    def __init__(self, subject: Subject, passes: GraphPasses, flush: Callable[[], None] | None) -> None:
        self._subject = subject
        self._passes = passes
        self._flush = flush
        self._pacer = Pacer()

    def sample(
        self,
        points: Iterable[SweepPoint],
        rule: StoppingRule,
        sm_clock_mhz: Callable[[int, int], float | None],
    ) -> Iterator[PointSample | PointFailure]:
        """Measure points, some in each session. Raises UsageError if no kernels are recorded."""
        left = iter(points)
        while session_points := list(islice(left, SESSION_POINTS)):
            waiting = [PointPasses(point, rule.first_passes, EAGER) for point in session_points]
            while waiting:
                failed = self._run(waiting)
                yield from (PointFailure(point, "out of memory") for point in failed)
                waiting = [passes for passes in waiting if passes.point not in failed]
                for passes in waiting:
                    passes.wanted = rule.passes_wanted(passes.pass_ns())
                yield from (p.sample(self._subject.layout.blocks, sm_clock_mhz) for p in waiting if not p.wanted)
                waiting = [passes for passes in waiting if passes.wanted]

    def _run(self, waiting: Sequence[PointPasses]) -> list[SweepPoint]:
        """Run the wanted passes of points in one session. Returns those that memory does not suffice for."""
        failed = []
        runner = self._subject.runner
        runner.forget_masks()
        for passes in waiting:
            with torch.cuda.stream(self._passes.stream):
                runner.cache.restore()  # otherwise states that passes update in place would grow from pass to pass
            if not fits(partial(self._passes.eager, passes.point)):  # the first use of a length builds plans and masks
                failed.append(passes.point)
        with (
            session.record() as events,
            LayerRanges(self._subject.model, self._subject.layout, session.RangeRecorder()),
        ):
            for index, passes in enumerate(waiting):
                if passes.point not in failed and not fits(partial(self._run_point, index, passes)):
                    failed.append(passes.point)
        labelled = trace.labelled_passes(events.read())
        for index, passes in enumerate(waiting):
            if passes.point in failed:
                continue
            if index not in labelled:
                raise UsageError(NO_EVENTS.format(at=passes.point))
            passes.passes += labelled[index]
        return failed

    def _run_point(self, index: int, passes: PointPasses) -> None:
        rests = needs_rest(passes.point)
        for _ in range(passes.wanted):
            with self._pacer.around(rests):
                if self._flush:
                    with torch.cuda.stream(self._passes.stream):
                        self._flush()
                with session.pass_range(index):
                    self._passes.eager(passes.point)
