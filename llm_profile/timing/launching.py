"""The passes of a point in a profiling session: labelled eager ones and replays of its graphs."""

from collections.abc import Callable, Sequence

import torch

from llm_profile.passes.graphs import GraphPasses
from llm_profile.timing import session
from llm_profile.timing.capturing import PendingPoint
from llm_profile.timing.pacing import Pacer, needs_rest
from llm_profile.timing.point_passes import EAGER
from llm_profile.timing.trace import Labels


class PassLauncher:
    """Launches passes in the open profiling session, each under the index of its point.

    labels: the labelled passes known so far. flush: empties the L2 cache before each pass, None where there is no need.
    """

    def __init__(self, passes: GraphPasses, labels: Labels, flush: Callable[[], None] | None) -> None:
        self.flush = flush
        self._passes = passes
        self._labels = labels
        self._pacer = Pacer()

    def run(self, index: int, pending: PendingPoint, warmup: int) -> None:
        """Replays, after a labelled eager pass where one is needed; eager passes where there is no graph."""
        rests = needs_rest(pending.point)
        label = bool(pending.replays) or not self._labels
        for _ in range(pending.wanted if pending.timed_by == EAGER else label):
            with self._pacer.around(rests):
                self._empty_l2()
                with session.pass_range(index):
                    self._passes.eager(pending.point)
        if not pending.graphs:
            return
        dealt = zip(pending.graphs, shares(pending.wanted, len(pending.graphs)), strict=True)
        replays = [graph for graph, times in dealt for _ in range(times)]
        for burst in [[graph] for graph in replays] if rests else [replays]:
            with self._pacer.around(rests):
                self._replay(index, burst, settle=warmup > 0 and not rests)

    def _replay(self, index: int, graphs: Sequence[torch.cuda.CUDAGraph], settle: bool) -> None:
        """Replay graphs back to back. settle: one replay more, which does not count, goes first."""
        with torch.cuda.stream(self._passes.stream):
            if settle:
                graphs[0].replay()  # after an idle time, the first pass takes a little longer or shorter
            with session.pass_range(index):
                for graph in graphs:
                    self._empty_l2()  # a launch of its own: its time counts to no replay
                    graph.replay()

    def _empty_l2(self) -> None:
        if self.flush:
            with torch.cuda.stream(self._passes.stream):
                self.flush()


def shares(total: int, parts: int) -> list[int]:
    """`total` dealt out evenly: 10 to 4 parts is 3, 3, 2, 2."""
    return [total // parts + (part < total % parts) for part in range(parts)]
