"""A table with known kernel times and a real model whose overhead over them is known: for tests of validation only."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_profile.block_kinds import BlockKind
from llm_profile.measurement import PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.records import ROW_SCHEMA, PointRecord
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Sweep
from llm_profile.validation.real_steps import StepTimes
from tests.table_samples import write

KINDS = (
    BlockKind("full", 3, (1, 3, 5), (1,)),
    BlockKind("sliding", 3, (0, 2, 4), (0,)),
)
"""Two kinds of blocks by turns, six blocks in all."""

BLOCK_ROWS = {f"{kind.name}.{row}": kind.name for kind in KINDS for row in ("q_proj", "rope", "attn", "block_other")}


def row_ns(row: str, point: SweepPoint) -> int:
    """Kernel time of one row of one block; whole numbers, so that a table holds it exactly."""
    tokens, total = point.input_len, point.total_len
    of = {
        "embedding": 2_000 + tokens,
        "full.q_proj": 30_000 + 40 * tokens,
        "full.rope": 1_500 + tokens,
        "full.attn": 9_000 + 5 * tokens + 2 * total,
        "full.block_other": 2_000 + 3 * tokens,
        "sliding.q_proj": 31_000 + 41 * tokens,
        "sliding.rope": 1_400 + tokens,
        "sliding.attn": 8_000 + 5 * tokens + total // 2,
        "sliding.block_other": 2_100 + 3 * tokens,
        "lm_head": 50_000 + 60 * tokens,
    }
    return of[row]


ROWS = ("embedding", *BLOCK_ROWS, "lm_head")


SWEEP = Sweep(prefill_max=256, decode_max=320)


def make_table(sweep: Sweep = SWEEP, missing: Sequence[SweepPoint] = ()) -> LatencyTable:
    """A table of `sweep` with the rows above, in the form that a run leaves."""
    meta: dict[str, Any] = {
        "row_schema": ROW_SCHEMA,
        "hardware": "Fake1",
        "model": "org/fake",
        "origin": "measured",
        "clock": "gpu-kernel",
        "conditions": {"dtype": "float16"},
        "kinds": [{**asdict(kind), "layers": list(kind.layers), "profiled": list(kind.profiled)} for kind in KINDS],
        "block_rows": dict(BLOCK_ROWS),
        "runs": [{"index": 0}],
    }
    table = LatencyTable("Fake1", "org/fake", meta)
    for point in sweep.points():
        if point in missing:
            table.missing[point] = "out of memory"
            continue
        rows = {row: RowSample((row_ns(row, point),), launches=1) for row in ROWS}
        whole = sum(sample.pass_ns[0] for sample in rows.values())
        table.records[point] = PointRecord.of(PointSample(point, rows, (whole,), "fake"), run=0)
    return table


def hand_table(points: Sequence[SweepPoint]) -> LatencyTable:
    """Two blocks. A pass of n tokens on k in the cache: 100 n outside the blocks, 10 n + k each, 7 n of the head."""
    kind = {"name": "block", "count": 2, "layers": [0, 1], "profiled": [0]}
    table = make_table(Sweep(prefill_max=1, decode_max=1))
    table.meta |= {"kinds": [kind], "block_rows": {"attn": "block"}}
    table.records.clear()
    for point in points:
        n, k = point.input_len, point.kv_len
        times = {"embedding": 100 * n, "attn": 10 * n + k, "lm_head": 7 * n}
        rows = {name: RowSample((ns,)) for name, ns in times.items()}
        table.records[point] = PointRecord.of(PointSample(point, rows, (sum(times.values()),), "fake"), run=0)
    return table


def write_table(folder: Path, table: LatencyTable | None = None) -> Path:
    """The files of a table in `folder`; returns the CSV's path."""
    paths = TablePaths.of(folder, "Fake1", "org/fake")
    write(table or make_table(), paths)
    return paths.csv


def true_kernels_ns(point: SweepPoint, depth: int) -> int:
    """Sum of a step's kernels in a model of the first `depth` blocks, `lm_head` of the last token only."""
    total = row_ns("embedding", point) + row_ns("lm_head", SweepPoint(1, 0))
    for kind in KINDS:
        blocks = len([layer for layer in kind.layers if layer < depth])
        total += blocks * sum(row_ns(row, point) for row in BLOCK_ROWS if BLOCK_ROWS[row] == kind.name)
    return total


@dataclass
class FakeReality:
    """A clock that says kernels plus `overhead_ns(point, depth)`, times a noise that is the same for a given seed.

    asked: the points of every call, in order. noise: largest relative deviation. process_speeds: how much longer all
    steps take in each process. fails: points that run out of memory.
    """

    overhead_ns: Callable[[SweepPoint, int], float]
    depth: int = 6
    noise: float = 0.0
    slower_per_repeat: float = 0.0
    fails: frozenset[SweepPoint] = frozenset()
    runtime: str = "fake"
    process_speeds: tuple[float, ...] = (1.0,)
    seconds: dict[str, float] = field(default_factory=dict)
    asked: list[list[SweepPoint]] = field(default_factory=list)
    closed: bool = False
    seed: int = 0
    notices: list[str] = field(default_factory=list)

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        """Sequences share everything but attention, which costs what it costs alone."""
        for point in points:
            alone = SweepPoint(point.input_len, point.kv_len)
            dense = true_kernels_ns(SweepPoint(point.batch, 0), self.depth)
            yield StepTimes(point, (round(dense + point.batch * true_kernels_ns(alone, self.depth) * 0.1),) * repeat)

    def steps(self, input_lens: Sequence[int], windows: Sequence[Sequence[int]], repeat: int) -> Iterator[StepTimes]:
        points = [SweepPoint(input_len, 0) for input_len in input_lens]
        points += [SweepPoint(1, kv_len) for window in windows for kv_len in window]
        for process, speed in enumerate(self.process_speeds):
            yield from self._times(points, repeat, process, speed)

    def close(self) -> None:
        self.closed = True

    def _times(self, points: list[SweepPoint], repeat: int, process: int, speed: float) -> Iterator[StepTimes]:
        assert not self.closed
        self.asked.append(points)
        noise = random.Random(self.seed + len(self.asked))
        for point in points:
            if point in self.fails:
                continue
            true_ns = true_kernels_ns(point, self.depth) + self.overhead_ns(point, self.depth)
            yield StepTimes(
                point,
                tuple(
                    round(
                        true_ns
                        * speed
                        * (1 + noise.uniform(-self.noise, self.noise))
                        * (1 + self.slower_per_repeat * run)
                    )
                    for run in range(repeat)
                ),
                process,
            )
