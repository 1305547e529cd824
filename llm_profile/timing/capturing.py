"""Capturing the passes of the points of the next profiling session in CUDA graphs."""

from dataclasses import dataclass, field

import torch

from llm_profile.passes.graphs import CaptureError, GraphPasses, fits
from llm_profile.timing.backends.base import GRAPHS
from llm_profile.timing.point_passes import EAGER, PointPasses


@dataclass
class PendingPoint(PointPasses):
    """A point that needs more passes.

    graphs: captures of its pass for the next session; empty if the point is timed by eager passes. failed: the
    device's memory does not suffice for a pass of the point.
    """

    graphs: list[torch.cuda.CUDAGraph] = field(default_factory=list)
    failed: bool = False

    def free_graphs(self) -> None:
        """Free the memory of the graphs."""
        for graph in self.graphs:
            graph.reset()
        self.graphs.clear()


class PointCaptures:
    """Captures the passes of points, in up to GRAPHS graphs per point.

    notices: a list to which a line is added if captures fail or do not fit in memory. error: why passes of this model
    cannot be captured, None as long as no capture has failed.
    """

    def __init__(self, passes: GraphPasses, notices: list[str]) -> None:
        self.error: str | None = None
        self._passes = passes
        self._notices = notices
        self._most_graphs = GRAPHS

    def capture(self, pending: PendingPoint) -> None:
        """Add graphs to a point: as many as fit in memory, none if the point has to be timed by eager passes."""
        if self.error or pending.timed_by == EAGER:
            return

        def capture() -> None:
            pending.graphs.append(self._passes.capture(pending.point, pool=len(pending.graphs)))

        try:
            while len(pending.graphs) < min(self._most_graphs, pending.wanted):
                if not fits(capture):
                    self._take_fewer_graphs(len(pending.graphs))
                    break
        except CaptureError as error:
            self.error = str(error)
            self._notices.append(f"passes cannot be captured in CUDA graphs, timed eagerly instead: {error}")

    def _take_fewer_graphs(self, fitted: int) -> None:
        """Capture only `fitted` graphs of each later point, since running out of memory at each would take time."""
        if 0 < fitted < self._most_graphs:
            self._most_graphs = fitted
            self._notices.append(
                f"memory suffices for {fitted} of {GRAPHS} captures of a pass: rows vary a little more from run to run"
            )
