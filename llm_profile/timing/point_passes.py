"""The passes of one point while it is measured: their kernels and rows so far, and how many more are to run.

Imports no torch.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from llm_profile.errors import UsageError
from llm_profile.measurement import PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.timing.trace import Kernel, LabelledPass, Labels, kernel_kinds, overlap

GRAPH_REPLAY, EAGER = "graph-replay", "eager"
"""How the passes of a point are timed: as replays of CUDA graphs, or as eager passes with a range around each layer."""

OVERLAP_MARK = 0.01
"""A point gets a note if its kernels overlap for more than this share of their summed time in some pass."""

MOST_UNMATCHED = 3
"""Most unmatched replays per replay that counts. A point with more is timed by eager passes instead."""

NO_EVENTS = (
    "the profiler recorded no kernels{at}: most likely another profiler receives the GPU's events, and only one can; "
    "end nsys, ncu, a DCGM monitor or another torch profiler (on AMD rocprof), then run the same command again"
)
"""Error if eager passes have no kernels. at: the point, as ` at input 1, kv_cache 5`."""


@dataclass
class PointPasses:
    """The passes of one point.

    wanted: how many more to run. timed_by: GRAPH_REPLAY or EAGER. passes: those that count. replays: the kernels of
    replays whose rows are not known yet. unmatched: number of replays that do not count, since their kernels are not
    those of the labelled pass. sequence: the labelled pass whose sequence of kernels all replays that count have.
    """

    point: SweepPoint
    wanted: int
    timed_by: str = GRAPH_REPLAY
    passes: list[LabelledPass] = field(default_factory=list)
    replays: list[list[Kernel]] = field(default_factory=list)
    unmatched: int = 0
    sequence: LabelledPass | None = None

    def pass_ns(self) -> tuple[int, ...]:
        """Device time of each pass that counts, in nanoseconds."""
        return tuple(one.duration_ns for one in self.passes)

    def add(self, labelled: Sequence[LabelledPass], replays: Sequence[list[Kernel]], labels: Labels) -> None:
        """Add the labelled eager passes and the replays of this point that a session recorded.

        labels: learns the rows of the labelled passes, for all points. Raises UsageError if the point is timed by eager
        passes and none of them has kernels.
        """
        labelled = [one for one in labelled if one.kernels]
        if self.timed_by == EAGER:
            if not labelled:
                raise UsageError(NO_EVENTS.format(at=f" at {self.point}"))
            self.passes += labelled
            return
        for one in labelled:
            labels.learn(one)
        waiting, self.replays = [*self.replays, *replays], []
        matched = self._matched(waiting, labelled, labels)
        self.passes += matched
        if self.passes:  # the profiler sometimes loses an event; the replay with the gap does not match, nor count
            self.unmatched += len(waiting) - len(matched)
        elif waiting and not labelled:
            self.replays = waiting  # until the next session brings a labelled pass of this point
            return
        if not self.passes or self.unmatched > MOST_UNMATCHED * len(self.passes):
            # The graph runs other kernels than eager passes do, so only eager passes tell the row of each kernel.
            self.timed_by, self.passes, self.sequence = EAGER, labelled, None

    def _matched(
        self, replays: Sequence[list[Kernel]], labelled: Sequence[LabelledPass], labels: Labels
    ) -> list[LabelledPass]:
        """The replays that ran the kernels of one labelled pass, in the same order, with its rows.

        It is a labelled pass of this point, or of another point if one replay has exactly its kernel names. The other
        replays only have to match it in `kernel_kinds`.
        """
        known = [self.sequence] if self.sequence else chain(labelled, filter(None, map(labels.label, replays)))
        for sequence in known:
            wanted = kernel_kinds(sequence.kernels)
            matched = [
                LabelledPass(sequence.rows, tuple(replay)) for replay in replays if kernel_kinds(replay) == wanted
            ]
            if matched:
                self.sequence = sequence
                return matched
        return []

    def sample(self, blocks: Callable[[str], int], sm_clock_mhz: Callable[[int, int], float | None]) -> PointSample:
        """The result of the point, from the passes that count.

        blocks: number of profiled blocks that a row covers. sm_clock_mhz: SM clock between two times in ns.
        """
        times: dict[str, list[int]] = {}
        for number, labelled in enumerate(self.passes):
            for row, kernel in zip(labelled.rows, labelled.kernels, strict=True):
                row_times = times.setdefault(row, [0] * len(self.passes))
                row_times[number] += kernel.duration_ns
        sequence = self.sequence or self.passes[0]
        names: dict[str, list[str]] = {row: [] for row in times}
        for row, kernel in zip(sequence.rows, sequence.kernels, strict=True):
            names[row].append(kernel.name)
        clocks = [sm_clock_mhz(one.kernels[0].start_ns, one.end_ns) for one in self.passes]
        known = [clock for clock in clocks if clock is not None]
        side_by_side = max(overlap(labelled.kernels) for labelled in self.passes)
        return PointSample(
            self.point,
            {
                row: RowSample(tuple(pass_ns), blocks(row), len(names[row]), tuple(dict.fromkeys(names[row])))
                for row, pass_ns in times.items()
            },
            self.pass_ns(),
            self.timed_by,
            statistics.median(known) if known else None,
            side_by_side,
            ("kernels overlap",) if side_by_side > OVERLAP_MARK else (),
        )
