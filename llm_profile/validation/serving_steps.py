"""Serving steps of the real model: packed passes at full depth, captured in CUDA graphs, at any compositions."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.json_text import parse_json
from llm_profile.points import SweepPoint, point_of_record, record_of
from llm_profile.store.storage import storage_errors, write_json
from llm_profile.validation.graph_steps import GraphSteps
from llm_profile.validation.opening import profiled_subject
from llm_profile.validation.profiled import Profiled

SERVING_ENDING = ".serving.json"
"""Of the file beside a table that holds the steps."""


def serving_steps(
    profiled: Profiled,
    depth: int,
    points: Sequence[SweepPoint],
    repeat: int,
    device: str = "cuda",
    token: str | None = None,
    trust_remote_code: bool = False,
) -> Iterator[tuple[SweepPoint, tuple[int, ...]]]:
    """Each composition as a step of the model with `depth` blocks: wall time of a replay in ns, `repeat` times.

    The kernels, and whatever else the table's conditions say, are those of the table. One sequence is packed too.
    Compositions that memory does not suffice for are left out. Raises UsageError for a device without CUDA graphs, and
    for a model that cannot be opened, packed or captured.
    """
    if not device.startswith("cuda"):
        raise UsageError(f"--scaling-runtime serving: {device} has no CUDA graphs; use --scaling-runtime eager")
    steps = GraphSteps(profiled_subject(profiled, depth, device, token, trust_remote_code, points))
    try:
        yield from steps.packed(repeat)
    finally:
        steps.close()


def write_serving(csv: Path, depth: int, steps: Mapping[SweepPoint, Sequence[int]]) -> Path:
    """Write steps beside a table, a line each; returns the path. csv: of the table."""
    path = csv.with_name(csv.name.removesuffix(".csv") + SERVING_ENDING)
    lines = [
        {**record_of(point), "kind": point.kind, "wall_ns": list(walls), "median_ns": statistics.median(walls)}
        for point, walls in sorted(steps.items())
    ]
    write_json(path, {"num_layers": depth, "steps": lines})
    return path


def read_serving(path: Path) -> dict[SweepPoint, tuple[int, ...]]:
    """The steps of a file that `write_serving` wrote. Raises UsageError where it is damaged or not there."""
    try:
        with storage_errors("read", path):
            told: Any = parse_json(path.read_text(encoding="utf-8"))
        return {point_of_record(line): tuple(line["wall_ns"]) for line in told["steps"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: no file of serving steps ({type(error).__name__}); measure them again") from error
