"""The passes of one point while it is measured: their times so far, the row of each kernel, how many more to run.

Imports no torch.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from llm_profile.errors import UsageError
from llm_profile.measurement import PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.timing.trace import Kernel, LabelledPass, Labels, kinds, overlap

GRAPH_REPLAY, EAGER = "graph-replay", "eager"
"""How passes are timed."""

OVERLAP_MARK = 0.01
"""A point is marked if its kernels run side by side for more than this share of their time."""

MOST_UNMATCHED = 3
"""Most replays that do not match the labelled pass, per replay that does. With more, the point is timed eagerly."""

NO_EVENTS = (
    "the profiler recorded no kernels{at}: most likely another one holds the GPU's events, which go to one at a time; "
    "end nsys, ncu, a DCGM monitor or another torch profiler (on AMD rocprof), then run the same command again"
)
"""Said where a session ends without events. at: where in the sweep."""


@dataclass
class PointPasses:
    """The passes of one point.

    wanted: how many more to run. passes: those that count. replays: kernels of replays whose rows are not known yet.
    unmatched: replays that do not count, since their kernels are not those of the labelled pass. sequence: the labelled
    pass whose kernels, in the same order, all replays that count ran.
    """

    point: SweepPoint
    wanted: int
    timed_by: str = GRAPH_REPLAY
    passes: list[LabelledPass] = field(default_factory=list)
    replays: list[list[Kernel]] = field(default_factory=list)
    unmatched: int = 0
    sequence: LabelledPass | None = None

    def pass_ns(self) -> tuple[int, ...]:
        """Device time of each pass that counts."""
        return tuple(one.duration_ns for one in self.passes)

    def add(self, labelled: Sequence[LabelledPass], replays: Sequence[list[Kernel]], labels: Labels) -> None:
        """Take in what a session recorded: labelled eager passes and replays. `labels` learn from the former.

        Raises UsageError where eager passes have no kernels.
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
        if self.passes:  # now and then the profiler loses an event: such a replay does not count
            self.unmatched += len(waiting) - len(matched)
        elif waiting and not labelled:
            self.replays = waiting
            return
        if not self.passes or self.unmatched > MOST_UNMATCHED * len(self.passes):
            # the graph runs other kernels than the model's code does: only eager passes are right
            self.timed_by, self.passes, self.sequence = EAGER, labelled, None

    def _matched(
        self, replays: Sequence[list[Kernel]], labelled: Sequence[LabelledPass], labels: Labels
    ) -> list[LabelledPass]:
        """Replays that ran the kernels of one and the same labelled pass: the point's own, or another's.

        Another point's is taken if one replay has exactly its kernel names; the others have to match in `kinds` only.
        """
        known = [self.sequence] if self.sequence else chain(labelled, filter(None, map(labels.label, replays)))
        for sequence in known:
            ran = kinds(sequence.kernels)
            matched = [LabelledPass(sequence.rows, tuple(replay)) for replay in replays if kinds(replay) == ran]
            if matched:
                self.sequence = sequence
                return matched
        return []

    def sample(self, blocks: Callable[[str], int], sm_clock_mhz: Callable[[int, int], float | None]) -> PointSample:
        """What is known of the point. blocks: how many blocks a row covers. sm_clock_mhz: from start to end, in ns."""
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
