"""Made-up measurements and writers for the tests of tables."""

import random
from pathlib import Path
from typing import Any

from llm_profile.block_kinds import BlockKind
from llm_profile.exporters.flat_csv import flat_csv
from llm_profile.measurement import PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.store.files import write_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable
from llm_profile.store.writer import TableHeader, TableRun, TableWriter

ROWS = ("embedding", "q_proj", "attn", "o_proj", "lm_head")
CONFIG = {"model_type": "llama", "hidden_size": 64, "dtype": "bfloat16", "rope_parameters": {"rope_theta": 1e4}}
CONDITIONS = {"dtype": "bfloat16", "torch": "2.13.0", "num_layers": 1, "seed": 0}
KINDS = (BlockKind("block", 32, tuple(range(32)), (0,)),)

NOT_FLAT = (
    SweepPoint(8, 16),
    SweepPoint(1, 16, 4),
    SweepPoint(8, 0, 2),
    SweepPoint(8, 16, 2),
    SweepPoint.of([(1, 16), (1, 9), (1, 9)]),
    SweepPoint.of([(8, 0), (1, 16)]),
)
"""A chunk, batches of decodes, prompts and chunks, and compositions: no prefill and no decode of one sequence."""


def sample(point: SweepPoint, rows: tuple[str, ...] = ROWS, passes: int = 11) -> PointSample:
    """A sample that depends on the point alone."""
    random_ns = random.Random(hash(point.groups[0] if len(point.groups) == 1 else point.groups))
    made = {
        name: RowSample(
            pass_ns=tuple(random_ns.randrange(1_000, 90_000) for _ in range(passes)),
            blocks=3 if name in ("q_proj", "attn", "o_proj") else 1,
            launches=1 + index,
            kernels=(f"gemm_{point.total_len % 5}", f"{name}_kernel"),
        )
        for index, name in enumerate(rows)
    }
    pass_ns = tuple(sum(column) for column in zip(*(row.pass_ns for row in made.values()), strict=True))
    clock = None if point.history % 2 else 1980.5
    return PointSample(point, made, pass_ns, "fake", clock, 0.25, ("a note",) if point.tokens == 2 else ())


def sweep_points(prefill: int, decode: int) -> list[SweepPoint]:
    return [SweepPoint(n, 0) for n in range(1, prefill + 1)] + [SweepPoint(1, k) for k in range(1, decode + 1)]


def paths_in(folder: Path) -> TablePaths:
    return TablePaths.of(folder, "H200", "org/model-1.5")


def writer(folder: Path, points: list[SweepPoint], **changes: Any) -> TableWriter:
    """changes: of what the header or the run of all these tests has; `run` is the run's record."""
    header: dict[str, Any] = {
        "hardware": "H200",
        "model": "org/model-1.5",
        "clock": "gpu-kernel",
        "conditions": CONDITIONS,
        "kinds": KINDS,
        "source": {"name": "org/model-1.5", "origin": "hub", "revision": None},
        "config": CONFIG,
    }
    header |= {name: value for name, value in changes.items() if name in header}
    record = changes.get("run", {"repeat": 100})
    of_run = {name: value for name, value in changes.items() if name not in {*header, "run"}}
    return TableWriter(paths_in(folder), TableHeader(**header), TableRun(points, record, **of_run), flat_csv)


def write(table: LatencyTable, paths: TablePaths) -> None:
    """A table's files, the CSV among them."""
    write_table(table, paths, flat_csv(table))


def measure(folder: Path, points: list[SweepPoint], **changes: Any) -> TablePaths:
    """A run from start to end; it measures what is not done."""
    with writer(folder, points, **changes) as table:
        for point in points:
            if point not in table.done():
                table.add(sample(point))
        table.finish()
    return paths_in(folder)
