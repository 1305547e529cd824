"""The passes of one point while it is measured: those that count so far, and how many more are to run.

Imports no torch.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from llm_profile.measurement import PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.timing.replays import LabelledPass, NodeRows, Replay

GRAPH_REPLAY, EAGER = "graph-replay", "eager"
"""How the passes of a point are timed: as replays of CUDA graphs, or as eager passes with a range around each layer."""

OVERLAP_MARK = 0.01
"""A point gets a note if its kernels overlap for more than this share of their summed time in some pass."""

MOST_LOST = 3
"""Most lost replays per pass that a point wants. A point with more is timed by eager passes instead."""


@dataclass
class PointPasses:
    """The passes of one point.

    wanted: how many more to run. timed_by: GRAPH_REPLAY or EAGER. passes: those that count. lost: number of replays of
    which records were missing.
    """

    point: SweepPoint
    wanted: int
    timed_by: str = GRAPH_REPLAY
    passes: list[LabelledPass] = field(default_factory=list)
    lost: int = 0

    def pass_ns(self) -> tuple[int, ...]:
        """Device time of each pass that counts, in nanoseconds."""
        return tuple(one.total_ns for one in self.passes)

    def add(self, replay: Replay | None, rows: NodeRows) -> None:
        """Count a replay as a pass. None, or a replay whose nodes are not those of its graph, is lost."""
        if replay is not None and rows.fit(replay):
            self.passes.append(rows.of(replay))
        else:
            self.lost += 1

    @property
    def hopeless(self) -> bool:
        """Whether so many replays were lost that more of them are no use."""
        return self.lost > MOST_LOST * max(len(self.passes), 2)

    def sample(self, blocks: Callable[[str], int], sm_clock_mhz: Callable[[int, int], float | None]) -> PointSample:
        """The result of the point, from the passes that count.

        blocks: number of profiled blocks that a row covers. sm_clock_mhz: SM clock between two times in ns.
        """
        of_passes = [one.row_ns() for one in self.passes]
        kernels = self.passes[0].row_kernels()
        rows = {
            row: RowSample(
                tuple(of_pass.get(row, 0) for of_pass in of_passes),
                blocks(row),
                len(kernels.get(row, ())),
                tuple(dict.fromkeys(kernels.get(row, ()))),
            )
            for row in dict.fromkeys(row for of_pass in of_passes for row in of_pass)
        }
        clocks = [sm_clock_mhz(int(one.start_ns[0]), one.end_ns) for one in self.passes]
        known = [clock for clock in clocks if clock is not None]
        side_by_side = max(one.overlap for one in self.passes)
        return PointSample(
            self.point,
            rows,
            self.pass_ns(),
            self.timed_by,
            statistics.median(known) if known else None,
            side_by_side,
            ("kernels overlap",) if side_by_side > OVERLAP_MARK else (),
        )
