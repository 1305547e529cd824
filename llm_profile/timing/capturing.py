"""Capturing the passes of points in CUDA graphs, with the row of each node."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch

from llm_profile.passes.graphs import CaptureError, GraphPasses, fits
from llm_profile.points import SweepPoint
from llm_profile.timing.backends.base import GRAPHS
from llm_profile.timing.graph_nodes import GraphNodes
from llm_profile.timing.point_passes import PointPasses
from llm_profile.timing.replays import NodeRows


class GraphIds(Protocol):
    """Tells graphs apart, see ReplayRecorder."""

    def graph_id(self, graph: torch.cuda.CUDAGraph) -> int: ...


@dataclass
class PendingPoint(PointPasses):
    """A point that needs more passes.

    graphs: captures of its pass; empty if the point has to be timed by eager passes. graph_ids, rows: of each graph.
    outstanding: number of replays that are still to run or to be read. failed: the device's memory does not suffice for
    a pass of the point.
    """

    graphs: list[torch.cuda.CUDAGraph] = field(default_factory=list)
    graph_ids: list[int] = field(default_factory=list)
    rows: list[NodeRows] = field(default_factory=list)
    outstanding: int = 0
    failed: bool = False

    def free_graphs(self) -> None:
        """Free the memory of the graphs, and forget what was known of them."""
        for graph in self.graphs:
            graph.reset()
        self.graphs.clear()
        self.graph_ids.clear()
        self.rows.clear()


class PointCaptures:
    """Captures the passes of points, in up to GRAPHS graphs per point.

    Some passes launch other kernels when their length is first used: masks, tables that grow with the length. So a pass
    runs eagerly before it is captured, unless the second point of its kind has shown that this changes nothing.

    meanwhile: is called between captures, when the host could do something for the device. nodes: is the recorder of
    the open LayerRanges. notices: a list to which a line is added if captures fail or do not fit in memory. error: why
    passes of this model cannot be captured, None as long as no capture has failed.
    """

    def __init__(self, passes: GraphPasses, nodes: GraphNodes | None, notices: list[str]) -> None:
        self.meanwhile: Callable[[], None] = lambda: None
        self.error = None if nodes else "the driver does not tell which graph is captured"
        self._passes = passes
        self._nodes = nodes
        self._notices = notices
        self._most_graphs = GRAPHS
        self._first_pass: dict[str, bool | None] = {}  # kind -> whether it is needed; None: the next point tells

    def capture(self, pending: PendingPoint, ids: GraphIds) -> None:
        """Add graphs to a point: as many as fit in memory, none if the point has to be timed by eager passes."""
        if self.error:
            return
        kind = pending.point.kind
        with torch.cuda.stream(self._passes.stream):
            self._passes.runner.cache.restore()  # otherwise states that passes update in place would grow
        if self._first_pass.get(kind) is False and self._capture_directly(pending):
            self._finish(pending, ids)
            return
        direct = self._trial(pending.point) if self._first_pass.get(kind, True) is None else None
        pending.failed = not fits(partial(self._passes.eager, pending.point))
        if pending.failed:
            return
        self._capture_all(pending)
        self._learn(kind, direct, pending)
        self._finish(pending, ids)

    def _learn(self, kind: str, direct: NodeRows | None, pending: PendingPoint) -> None:
        """Decide after the second point of a kind whether later ones need a first pass."""
        if kind not in self._first_pass:
            own_cache = self._passes.runner.cache.kind != "in-place"  # such a cache runs the model to fill itself
            self._first_pass[kind] = True if own_cache else None
        elif self._first_pass[kind] is None:
            self._first_pass[kind] = not pending.rows or direct != pending.rows[0]

    def _capture_directly(self, pending: PendingPoint) -> bool:
        """Capture without a first pass. False if that fails; then all points of the kind have one from now on."""
        try:
            self._add_graphs(pending)
        except CaptureError:
            pending.free_graphs()
            self._first_pass[pending.point.kind] = True
            return False
        return bool(pending.graphs)

    def _trial(self, point: SweepPoint) -> NodeRows | None:
        """The rows of a pass that is captured without a first pass, None if it cannot be captured so."""
        found: list[NodeRows] = []
        try:
            if not fits(lambda: self._one(point, 0, found).reset()):
                return None
        except CaptureError:
            return None
        return found[0]

    def _capture_all(self, pending: PendingPoint) -> None:
        try:
            self._add_graphs(pending)
        except CaptureError as error:
            pending.free_graphs()
            self.error = str(error)
            self._notices.append(f"passes cannot be captured in CUDA graphs, timed eagerly instead: {error}")

    def _add_graphs(self, pending: PendingPoint) -> None:
        def capture() -> None:
            pending.graphs.append(self._one(pending.point, len(pending.graphs), pending.rows))

        while len(pending.graphs) < min(self._most_graphs, pending.wanted):
            self.meanwhile()
            if not fits(capture):
                self._take_fewer_graphs(len(pending.graphs))
                break

    def _one(self, point: SweepPoint, pool: int, found: list[NodeRows]) -> torch.cuda.CUDAGraph:
        assert self._nodes is not None
        return self._passes.capture(point, pool=pool, around=self._nodes.watching(found))

    @staticmethod
    def _finish(pending: PendingPoint, ids: GraphIds) -> None:
        pending.graph_ids = [ids.graph_id(graph) for graph in pending.graphs]

    def _take_fewer_graphs(self, fitted: int) -> None:
        """Capture only `fitted` graphs of each later point, since running out of memory at each would take time."""
        if 0 < fitted < self._most_graphs:
            self._most_graphs = fitted
            self._notices.append(
                f"memory suffices for {fitted} of {GRAPHS} captures of a pass: rows vary a little more from run to run"
            )
