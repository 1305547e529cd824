"""Wall time of each layer on a CPU: the time of its range without the time of the ranges inside it."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llm_profile.block_kinds import BlockKind
from llm_profile.errors import is_out_of_memory, one_line
from llm_profile.layers.ranges import LayerRanges
from llm_profile.measurement import PointFailure, PointSample, RowSample, StoppingRule
from llm_profile.models.model_errors import line_of_model_code
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.timing.provenance import device_conditions, device_facts

WARMUP_PASSES = 2
"""Most passes of a point before those that count. The first one allocates memory and chooses code paths; after the
second one the processor's caches are warm."""


class WallRecorder:
    """Adds up the wall time of each row in one pass: a `Recorder` of layers/ranges.py.

    Time counts for the innermost open range only. rows: row -> nanoseconds. launches: row -> number of its ranges.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.launches: dict[str, int] = {}
        self._open: list[str] = []
        self._since = 0

    def start(self) -> None:
        """Start a new pass with no time."""
        self.rows, self.launches = {}, {}

    def enter(self, row: str) -> None:
        now = time.perf_counter_ns()
        self._charge(now)
        self._open.append(row)
        self.launches[row] = self.launches.get(row, 0) + 1
        self._since = time.perf_counter_ns()

    def leave(self) -> None:
        self._charge(time.perf_counter_ns())
        self._open.pop()
        self._since = time.perf_counter_ns()

    def _charge(self, now: int) -> None:
        if self._open:
            row = self._open[-1]
            self.rows[row] = self.rows.get(row, 0) + now - self._since


class CpuWallBackend:
    """Times layers on a CPU (`clock`: cpu-wall).

    The time of a pass is the sum of its rows, so the recorder's own time is not in it.
    """

    clock = "cpu-wall"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.kinds: Sequence[BlockKind] = subject.layout.kinds
        self.block_rows = subject.layout.block_rows()
        self.learned_positions = subject.layout.learned_positions
        self.most_cached = subject.most_cached
        self.notices = ["profiling on a CPU: rows are wall time, not kernel time", *subject.notices]

    def conditions(self) -> Mapping[str, Any]:
        return {**device_conditions(self.subject.device), **self.subject.conditions()}

    def facts(self) -> Mapping[str, Any]:
        return {**device_facts(self.subject.device), **self.subject.facts()}

    def sample(
        self, points: Iterable[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        recorder = WallRecorder()
        runner = self.subject.runner
        with LayerRanges(self.subject.model, self.subject.layout, recorder):
            for point in points:
                runner.forget_masks()
                passes: list[dict[str, int]] = []
                try:
                    for _ in range(min(warmup, WARMUP_PASSES)):
                        runner.run(point)
                    while wanted := rule.passes_wanted([sum(p.values()) for p in passes]):
                        for _ in range(wanted):
                            runner.cache.restore()
                            recorder.start()
                            runner.run(point)
                            passes.append(recorder.rows)
                except Exception as error:
                    # The model's code may raise errors of any type, for example at a length beyond its positions.
                    yield PointFailure(point, self._reason(error))
                    continue
                yield self._sample(point, passes, recorder.launches)

    def close(self) -> None:
        self.subject.close()

    def _reason(self, error: Exception) -> str:
        """Why a point whose passes raised `error` is missing.

        Raises `error` itself unless memory ran out or the model's code raised it.
        """
        if is_out_of_memory(error):
            return "out of memory"
        if (where := line_of_model_code(error)) is None:
            raise error
        reason = f"the model fails with {type(error).__name__} ({where})"
        if not any(text.startswith(reason) for text in self.notices):
            self.notices.append(f"{reason}: {one_line(error)}")
        return reason

    def _sample(self, point: SweepPoint, passes: list[dict[str, int]], launches: dict[str, int]) -> PointSample:
        rows = {}
        for row in dict.fromkeys(name for p in passes for name in p):
            pass_ns = tuple(p.get(row, 0) for p in passes)
            rows[row] = RowSample(pass_ns, self.subject.layout.blocks(row), launches.get(row, 0))
        return PointSample(point, rows, tuple(sum(p.values()) for p in passes), "cpu-wall")
