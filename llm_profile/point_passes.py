"""A point under way: what its passes gave so far, which row each kernel belongs to, how many more to run.

Imports no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llm_profile.measurement import PointSample, RowSample
from llm_profile.sweep import SweepPoint
from llm_profile.trace import Kernel, LabelledPass, Labels, overlap

GRAPH_REPLAY, EAGER = "graph-replay", "eager"
"""How passes are timed."""

OVERLAP_MARK = 0.01
"""Share of a pass in which kernels ran side by side from which on a point is marked."""

MOST_UNMATCHED = 3
"""So many replays that do not match for each that does, and a point is timed eagerly."""


@dataclass
class PointPasses:
    """The passes of one point.

    wanted: how many more to run. passes: those that count. replays: kernels of passes that are waiting for labels.
    unmatched: how many replays were none, since their kernels are others.
    """

    point: SweepPoint
    wanted: int
    timed_by: str = GRAPH_REPLAY
    passes: list[LabelledPass] = field(default_factory=list)
    replays: list[list[Kernel]] = field(default_factory=list)
    unmatched: int = 0

    def pass_ns(self) -> tuple[int, ...]:
        """Device time of each pass that counts."""
        return tuple(one.duration_ns for one in self.passes)

    def add(self, labelled: Sequence[LabelledPass], replays: Sequence[list[Kernel]], labels: Labels) -> None:
        """Take in what a session recorded: labelled eager passes and replays. `labels` learn from the former.

        Raises RuntimeError where eager passes have no kernels.
        """
        labelled = [one for one in labelled if one.kernels]
        if self.timed_by == EAGER:
            if not labelled:
                raise RuntimeError(f"the profiler recorded no kernels at {self.point}")
            self.passes += labelled
            return
        for one in labelled:
            labels.learn(one)
        waiting, self.replays = [*self.replays, *replays], []
        matched = [found for replay in waiting if (found := labels.label(replay)) is not None]
        self.passes += matched
        if self.passes:  # now and then an event is lost or out of order: what does not match then is no pass
            self.unmatched += len(waiting) - len(matched)
        elif waiting and not labelled:
            self.replays = waiting
            return
        if not self.passes or self.unmatched > MOST_UNMATCHED * len(self.passes):
            # the graph runs other kernels than the model's code does: only eager passes are right
            self.timed_by, self.passes = EAGER, labelled

    def sample(self, blocks: Callable[[str], int], sm_clock_mhz: Callable[[int, int], float | None]) -> PointSample:
        """What is known of the point. blocks: how many blocks a row covers. sm_clock_mhz: from start to end, in ns."""
        times: dict[str, list[int]] = {}
        for number, labelled in enumerate(self.passes):
            for row, kernel in zip(labelled.rows, labelled.kernels, strict=True):
                row_times = times.setdefault(row, [0] * len(self.passes))
                row_times[number] += kernel.duration_ns
        first, last = self.passes[0], self.passes[-1].kernels[-1]
        names: dict[str, list[str]] = {row: [] for row in times}
        for row, kernel in zip(first.rows, first.kernels, strict=True):
            names[row].append(kernel.name)
        side_by_side = max(overlap(labelled.kernels) for labelled in self.passes)
        return PointSample(
            self.point,
            {
                row: RowSample(tuple(pass_ns), blocks(row), len(names[row]), tuple(dict.fromkeys(names[row])))
                for row, pass_ns in times.items()
            },
            self.pass_ns(),
            self.timed_by,
            sm_clock_mhz(first.kernels[0].start_ns, last.start_ns + last.duration_ns),
            side_by_side,
            ("kernels overlap",) if side_by_side > OVERLAP_MARK else (),
        )
