"""Launching the passes of a point in a profiling session: labelled eager passes and replays of its CUDA graphs.

A labelled pass runs eagerly with a profiler range around each layer, which says the row of each kernel.
"""

from collections.abc import Callable, Sequence

import torch

from llm_profile.passes.graphs import GraphPasses
from llm_profile.timing import session
from llm_profile.timing.capturing import PendingPoint
from llm_profile.timing.pacing import Pacer, needs_rest
from llm_profile.timing.point_passes import EAGER
from llm_profile.timing.trace import Labels


class PassLauncher:
    """Launches passes in the open profiling session, in ranges named after the index of their point in the session.

    labels: the labelled passes known so far. flush: empties the L2 cache before each pass, None if that is not needed.
    """

    def __init__(self, passes: GraphPasses, labels: Labels, flush: Callable[[], None] | None) -> None:
        self.flush = flush
        self._passes = passes
        self._labels = labels
        self._pacer = Pacer()

    def run(self, index: int, pending: PendingPoint, warmup: int) -> None:
        """Run the wanted passes of a point: replays of its graphs, or eager passes if it is timed eagerly.

        A labelled pass comes first if the rows of the point's replays are not known, or no labelled pass is known yet.
        warmup: 0 leaves out the uncounted replay before the others. Long passes rest after each one and have none.
        """
        rests = needs_rest(pending.point)
        label = bool(pending.replays) or not self._labels
        for _ in range(pending.wanted if pending.timed_by == EAGER else label):
            with self._pacer.around(rests):
                self._empty_l2()
                with session.pass_range(index):
                    self._passes.eager(pending.point)
        if not pending.graphs:
            return
        shares = split_evenly(pending.wanted, len(pending.graphs))
        replays = [graph for graph, times in zip(pending.graphs, shares, strict=True) for _ in range(times)]
        for burst in [[graph] for graph in replays] if rests else [replays]:
            with self._pacer.around(rests):
                self._replay(index, burst, settle=warmup > 0 and not rests)

    def _replay(self, index: int, graphs: Sequence[torch.cuda.CUDAGraph], settle: bool) -> None:
        """Replay graphs back to back. settle: run one more replay first, which does not count."""
        with torch.cuda.stream(self._passes.stream):
            if settle:
                graphs[0].replay()  # the first pass after an idle time takes a little longer or shorter than others
            with session.pass_range(index):
                for graph in graphs:
                    self._empty_l2()  # its kernel is not part of the graph, so its time is in no replay
                    graph.replay()

    def _empty_l2(self) -> None:
        if self.flush:
            with torch.cuda.stream(self._passes.stream):
                self.flush()


def split_evenly(total: int, parts: int) -> list[int]:
    """`total` as a sum of `parts` whole numbers that differ by at most one: 10 in 4 parts is 3, 3, 2, 2."""
    return [total // parts + (part < total % parts) for part in range(parts)]
