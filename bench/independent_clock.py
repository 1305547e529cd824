#!/usr/bin/env python3
"""Compare the profiler's rows with another clock: CUDA events.

The passes that the profiler times are replayed again without a profiler, and timed with CUDA events. Their time
includes the gaps between kernels, of up to a microsecond each. So a pass should take 0.98 to 1.2 times the sum of its
rows. Passes that are shorter than their own launch (of a tiny model) take longer.

    python3 bench/independent_clock.py --model meta-llama/Llama-3.1-8B
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, wherever this is run from

import torch

from bench.loading import add_model_arguments, longest_of, open_profiler
from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, UsageError
from llm_profile.measurement import Measurement, PointFailure, StoppingRule
from llm_profile.passes.graphs import CaptureError, GraphPasses
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.store.storage import write_json
from llm_profile.timing.backends.base import GRAPHS
from llm_profile.timing.backends.gpu_kernels import GpuKernelBackend
from llm_profile.timing.launching import split_evenly
from llm_profile.timing.pacing import REST

PASSES = 10
"""Replays that count, with each clock."""


@dataclass(frozen=True)
class TwoClocks:
    """The pass of a point by two clocks: its median time by CUDA events, and the sum of the profiler's rows."""

    point: SweepPoint
    events_ns: float
    rows_ns: float

    @property
    def ratio(self) -> float:
        """events / rows."""
        return self.events_ns / self.rows_ns


def spread_lengths(count: int, longest: int) -> list[int]:
    """At most `count` lengths from 1 to `longest`, evenly spread over log length."""
    return sorted({round(longest ** (i / max(count - 1, 1))) for i in range(count)})


def spread_points(count: int, longest_prompt: int, longest_cache: int) -> list[SweepPoint]:
    """At most `count` points in each phase."""
    prefill = [SweepPoint(length, 0) for length in spread_lengths(count, longest_prompt)]
    return prefill + [SweepPoint(1, length) for length in spread_lengths(count, longest_cache)]


def timed_by_events(subject: Subject, points: Sequence[SweepPoint], passes: int = PASSES) -> dict[SweepPoint, float]:
    """Point -> median nanoseconds of a replayed pass, by CUDA events.

    As in a sweep, a point has several graphs, an uncounted replay comes first, and the GPU rests afterwards, so that it
    runs at the same clock. Raises CaptureError for a model whose passes cannot be captured.
    """
    runs = GraphPasses(subject, GRAPHS)
    times: dict[SweepPoint, float] = {}
    for point in points:
        subject.runner.forget_masks()
        for _ in range(2):
            runs.eager(point)
        between: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        for pool, replays in enumerate(split_evenly(passes, min(GRAPHS, passes))):
            graph = runs.capture(point, pool=pool)
            torch.cuda.synchronize()
            started = time.monotonic()
            with torch.cuda.stream(runs.stream):
                graph.replay()
                between += pairwise([mark(), *(mark(graph) for _ in range(replays))])
            torch.cuda.synchronize()
            time.sleep(REST * (time.monotonic() - started))
            graph.reset()
        times[point] = 1e6 * statistics.median(start.elapsed_time(end) for start, end in between)
    return times


def mark(after: torch.cuda.CUDAGraph | None = None) -> torch.cuda.Event:
    """A CUDA event that is recorded on the current stream, after a replay of `after` if it is given."""
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)
    if after is not None:
        after.replay()
    event.record()
    return event


def summed_rows(
    backend: GpuKernelBackend, points: Sequence[SweepPoint], passes: int = PASSES
) -> dict[SweepPoint, float]:
    """Point -> sum of the trimmed means of its rows in nanoseconds. Raises UsageError for a point that fails."""
    sums: dict[SweepPoint, float] = {}
    for result in backend.sample(points, StoppingRule(passes, precision=0), warmup=1):
        if isinstance(result, PointFailure):
            raise UsageError(f"{result.point}: {result.reason}; lower --max-length")
        sums[result.point] = sum(Measurement.of(row.pass_ns).trimmed_mean_ns for row in result.rows.values())
    return sums


def compare_clocks(backend: GpuKernelBackend, points: Sequence[SweepPoint]) -> list[TwoClocks]:
    """Both clocks at every point. Raises UsageError for a model whose passes cannot be captured."""
    try:
        events_ns = timed_by_events(backend.subject, points)
    except CaptureError as error:
        raise UsageError(
            f"--model: its passes cannot be captured in CUDA graphs ({error}); use another model"
        ) from error
    rows_ns = summed_rows(backend, points)
    return [TwoClocks(point, events_ns[point], rows_ns[point]) for point in points]


def table_lines(results: Sequence[TwoClocks]) -> list[str]:
    """The lines that are printed."""
    lines = [f"{'input':>6} {'kv_cache':>8} {'events us':>10} {'rows us':>10} {'ratio':>6}"]
    for result in results:
        point, events_us, rows_us = result.point, result.events_ns / 1e3, result.rows_ns / 1e3
        lines.append(f"{point.input_len:6} {point.kv_len:8} {events_us:10.1f} {rows_us:10.1f} {result.ratio:6.3f}")
    ratios = [result.ratio for result in results]
    return [*lines, f"ratio from {min(ratios):.3f} to {max(ratios):.3f}, median {statistics.median(ratios):.3f}"]


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_model_arguments(parser)
    parser.add_argument("--points", type=int, default=8, metavar="N", help="lengths per phase (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        backend = open_profiler(
            arguments.model, arguments.max_length, arguments.num_layers, arguments.sdpa_backend, arguments.device
        )
        try:
            points = spread_points(arguments.points, *longest_of(backend, arguments.max_length))
            results = compare_clocks(backend, points)
            conditions = dict(backend.conditions())
        finally:
            backend.close()
        print("\n".join(table_lines(results)))
        if arguments.json:
            found = [
                {**asdict(r.point), "events_ns": r.events_ns, "rows_ns": r.rows_ns, "ratio": r.ratio} for r in results
            ]
            content = {"model": arguments.model, "conditions": conditions, "passes": PASSES, "points": found}
            write_json(arguments.json, content)
    except UsageError as error:
        print(f"independent_clock.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
