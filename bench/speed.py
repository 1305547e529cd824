#!/usr/bin/env python3
"""Compare the speed of the documented way of timing layers with that of LLM-Profile, in one run on one GPU.

The documented way: each point has 10 warm-up passes, then 100 eager passes in a torch.profiler session of its own (CPU
and CUDA) with a range around each layer, and the session's `key_averages()`. This way, that of LLM-Profile: points
share a session, and a pass is replayed as CUDA graphs until its mean is known precisely enough. Both run the same
model, cache and kernels.

`ratio` is the time of a full sweep the documented way over that of this way, each extrapolated from evenly spread
points; `ratio_at_equal_passes` is the same with exactly 100 passes per point for both. The time to load the model is
left out.

    python3 bench/speed.py --model meta-llama/Llama-3.1-8B
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, wherever this is run from

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.compare_tables import Agreement, agreement_lines
from bench.loading import add_model_arguments, longest_of, open_profiler, sweep_sizes
from llm_profile.cards import short_device_name
from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, UsageError
from llm_profile.layers.layout import MODEL_OTHER
from llm_profile.layers.ranges import LayerRanges
from llm_profile.measurement import Measurement, PointFailure, StoppingRule
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.store.storage import write_json
from llm_profile.timing.backends.gpu_kernels import GpuKernelBackend
from llm_profile.timing.loop import in_measuring_order
from llm_profile.timing.session import ROW_RANGE, RangeRecorder
from llm_profile.validation.estimate import is_unnamed_row

WARMUP, REPEAT = 10, 100
"""Warm-up passes and timed passes of the documented way at each point."""

DENSER = 16
"""Points that are timed this way per point that is timed the documented way. With many points, sessions are full and
points share labelled passes, as in a sweep."""

RESULTS = Path(__file__).parent / "results"


@dataclass
class Timed:
    """The points of one phase, timed one way.

    seconds: wall time of all points. device_ns: GPU time of the passes that count. rows_ns: point -> named row -> GPU
    time per pass, the trimmed mean over passes as in tables. passes: number of passes that count, of each point.
    """

    seconds: float = 0.0
    device_ns: float = 0.0
    rows_ns: dict[SweepPoint, dict[str, float]] = field(default_factory=dict)
    passes: list[int] = field(default_factory=list)

    @property
    def seconds_per_point(self) -> float:
        return self.seconds / len(self.rows_ns)

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON. gpu_busy: share of the wall time in which the GPU ran passes that count."""
        return {
            "points": len(self.rows_ns),
            "s_per_point": self.seconds_per_point,
            "passes_per_point": statistics.fmean(self.passes),
            "gpu_busy": self.device_ns / 1e9 / self.seconds,
        }


Phases = Mapping[str, Timed]
"""Phase -> its points as they were timed."""


def kernels_ns(event: Any) -> float:
    """GPU time of what was launched during a profiler event, in nanoseconds, with that of the events inside it."""
    own = sum(kernel.duration for kernel in event.kernels if not kernel.name.startswith(ROW_RANGE))  # us
    return 1e3 * own + sum(kernels_ns(inside) for inside in event.cpu_children)


def range_times(events: Iterable[Any], repeat: int) -> dict[str, list[float]]:
    """Row -> nanoseconds of its ranges in each of `repeat` passes, from the events of a session.

    A range contains what was launched in ranges inside it. So rows of containers contain the rows inside them.
    """
    ranges: dict[str, list[Any]] = {}
    for event in events:
        if event.device_type == DeviceType.CPU and event.name.startswith(ROW_RANGE):
            ranges.setdefault(event.name[len(ROW_RANGE) :], []).append(event)
    times = {}
    for row, of_row in ranges.items():
        of_row.sort(key=lambda event: event.time_range.start)
        calls, rest = divmod(len(of_row), repeat)
        if rest:
            raise RuntimeError(f"{row} ran {len(of_row)} times in {repeat} passes")
        call_ns = [kernels_ns(event) for event in of_row]
        times[row] = [sum(call_ns[at : at + calls]) for at in range(0, len(call_ns), calls)]
    return times


def documented_point(subject: Subject, point: SweepPoint, timed: Timed, repeat: int = REPEAT) -> None:
    """Time one point the documented way and add it to `timed`. Call it while `LayerRanges` is open."""
    subject.runner.forget_masks()
    started = time.perf_counter()
    for _ in range(WARMUP):
        subject.runner.run(point)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as session:
        for _ in range(repeat):
            subject.runner.run(point)
        torch.cuda.synchronize()
    _averages_us = {event.key: event.device_time_total / event.count for event in session.key_averages()}
    timed.seconds += time.perf_counter() - started

    # For the comparison of rows: trimmed means, which the documented way does not have. Their time is not counted.
    times = range_times(session.events() or [], repeat)
    timed.device_ns += sum(times[MODEL_OTHER])
    timed.rows_ns[point] = named_rows_ns(times)
    timed.passes.append(repeat)


def named_rows_ns(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Named row -> trimmed mean of its nanoseconds in single passes. `_other` rows are left out."""
    return {row: Measurement.of(of_row).trimmed_mean_ns for row, of_row in times.items() if not is_unnamed_row(row)}


def documented_way(subject: Subject, points: Sequence[SweepPoint]) -> Timed:
    """Time points the documented way, one by one."""
    timed = Timed()
    with LayerRanges(subject.model, subject.layout, RangeRecorder()):
        for point in points:
            documented_point(subject, point, timed)
    return timed


def this_way(backend: GpuKernelBackend, points: Sequence[SweepPoint], rule: StoppingRule) -> Timed:
    """Time points as run_profile.py does. Raises UsageError for a point that cannot be measured."""
    timed = Timed()
    started = time.perf_counter()
    samples = list(backend.sample(in_measuring_order(points, seed=0), rule, WARMUP))
    timed.seconds = time.perf_counter() - started
    for sample in samples:
        if isinstance(sample, PointFailure):
            raise UsageError(f"{sample.point}: {sample.reason}; lower --max-length")
        timed.device_ns += sum(sample.pass_ns)
        timed.passes.append(len(sample.pass_ns))
        timed.rows_ns[sample.point] = named_rows_ns({row: of_row.pass_ns for row, of_row in sample.rows.items()})
    return timed


def even_lengths(count: int, longest: int) -> list[int]:
    """At most `count` lengths from 1 to `longest`, evenly spread."""
    return sorted({1 + round((longest - 1) * i / max(count - 1, 1)) for i in range(count)})


def agreement(a: Phases, b: Phases) -> dict[str, Agreement]:
    """Phase -> agreement of all rows at the points that both ways timed."""
    return {
        phase: Agreement.of(
            [
                (ns, b[phase].rows_ns[point].get(row, 0.0))
                for point, rows in timed.rows_ns.items()
                if point in b[phase].rows_ns
                for row, ns in rows.items()
            ]
        )
        for phase, timed in a.items()
    }


def sweep_seconds(phases: Phases, sizes: Mapping[str, int]) -> float:
    """Extrapolated seconds of a sweep. sizes: phase -> number of points of the sweep."""
    return sum(timed.seconds_per_point * sizes[phase] for phase, timed in phases.items())


def summary(documented: Phases, equal: Phases, this: Phases, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The figures of a comparison, as JSON. equal: this way with as many passes as the documented way."""
    ways = {"documented": documented, "equal_passes": equal, "this": this}
    seconds = {name: sweep_seconds(phases, sizes) for name, phases in ways.items()}
    return {
        "ratio": seconds["documented"] / seconds["this"],
        "ratio_at_equal_passes": seconds["documented"] / seconds["equal_passes"],
        "sweep_points": dict(sizes),
        "sweep_s": seconds,
        "ways": {name: {phase: timed.as_json() for phase, timed in of.items()} for name, of in ways.items()},
        "agreement": {
            name: {phase: asdict(found) for phase, found in agreement(way, this).items()}
            for name, way in (("with_documented", documented), ("with_equal_passes", equal))
        },
    }


def table_lines(found: Mapping[str, Any]) -> list[str]:
    """The lines that are printed. found: the result of `summary`."""
    points = sum(found["sweep_points"].values())
    lines = [f"{'':14} {'phase':8} {'points':>6} {'passes':>7} {'ms a point':>10} {'GPU busy %':>10}"]
    for name, phases in found["ways"].items():
        for phase, of in phases.items():
            figures = f"{of['passes_per_point']:7.1f} {1e3 * of['s_per_point']:10.1f} {100 * of['gpu_busy']:10.1f}"
            lines.append(f"{name:14} {phase:8} {of['points']:6} {figures}")
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["sweep_s"].items())
    lines.append(f"a sweep of {points} points: {times}")
    lines.append(f"ratio {found['ratio']:.1f}, at equal passes {found['ratio_at_equal_passes']:.1f}")
    lines.append("rows, this way and")
    named = {"with_documented": "the documented way", "with_equal_passes": f"{REPEAT} passes"}
    return lines + agreement_lines(
        (f"{named[key]}, {phase}", Agreement(**of_phase))
        for key, by_phase in found["agreement"].items()
        for phase, of_phase in by_phase.items()
    )


def measure(backend: GpuKernelBackend, count: int, longest: tuple[int, int]) -> dict[str, Any]:
    """Time both ways and return the figures.

    count: points of each phase that are timed the documented way. longest: prompt and cache, in tokens.
    """
    dense = {
        "decode": [SweepPoint(1, length) for length in even_lengths(DENSER * (count - 1) + 1, longest[1])],
        "prefill": [SweepPoint(length, 0) for length in even_lengths(DENSER * (count - 1) + 1, longest[0])],
    }
    sparse = {phase: points[::DENSER] for phase, points in dense.items()}
    rule, hundred = StoppingRule(REPEAT), StoppingRule(REPEAT, precision=0)
    first = [SweepPoint(2, 0)]  # the first use of a profiler and of libraries takes time that belongs to no point
    this_way(backend, first, rule)
    documented_way(backend.subject, first)
    # This way comes first, so that it also has the time in which libraries build plans for new lengths.
    this = {phase: this_way(backend, points, rule) for phase, points in dense.items()}
    equal = {phase: this_way(backend, points, hundred) for phase, points in sparse.items()}
    documented = {phase: documented_way(backend.subject, points) for phase, points in sparse.items()}
    return summary(documented, equal, this, sweep_sizes(*longest))


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_model_arguments(parser)
    parser.add_argument(
        "--points",
        type=int,
        default=16,
        metavar="N",
        help="lengths of each phase that are timed the documented way, about 5 s each (default %(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="where the figures go (default: bench/results/speed_*.json)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.points < 2:
            raise UsageError(f"--points {arguments.points}: must be at least 2")
        backend = open_profiler(
            arguments.model, arguments.max_length, arguments.num_layers, arguments.sdpa_backend, arguments.device
        )
        try:
            found = measure(backend, arguments.points, longest_of(backend, arguments.max_length))
            conditions, facts = dict(backend.conditions()), dict(backend.facts())
        finally:
            backend.close()
        print("\n".join(table_lines(found)))
        name = f"speed_{short_device_name(conditions['gpu'])}_{arguments.model.rpartition('/')[2]}"
        path = arguments.json or RESULTS / f"{name}_{arguments.sdpa_backend}.json"
        content = {"model": arguments.model, "conditions": conditions, "facts": facts} | found
        write_json(path, content)
        print(f"figures: {path}")
    except UsageError as error:
        print(f"speed.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
