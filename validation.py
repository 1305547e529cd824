#!/usr/bin/env python3
"""Hold a latency table against the real model, and correct it for what kernels alone do not show.

A table has kernel times. The real model takes longer: launches, gaps between kernels, Python. This command runs the
real model, step by step, at the lengths that (input, output) pairs need, fits a scaling on some of these lengths,
judges it on others, prints the error, and writes a scaled table beside the measured one.

    python3 validation.py --csv H200/meta-llama/Llama-3.1-8B.csv --scaling-runtime cuda-graph

Two realities (--scaling-runtime): `eager` is `generate` as Hugging Face runs it; `cuda-graph` is the same steps
captured in CUDA graphs, which is what serving engines come close to. Three ways of scaling (--scaling-mode): `global`,
one average; `phase`, one factor each for prefill and decode; `curve`, what each step costs beyond its kernels. The
report has the held-out errors of all three. `curve` is the default: in eager mode one factor for both phases triples
the TTFT of long prompts, and only the curve keeps what a step costs once off `rope` and `attn`, which simulators add
once per request.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_profile import request, summary
from llm_profile.backends.base import Reality
from llm_profile.errors import EXIT_COMPLETE, EXIT_INTERRUPTED, EXIT_OVER_TOLERANCE, EXIT_USAGE, UsageError
from llm_profile.estimate import Estimate, Pair, check_pairs, model_depth
from llm_profile.judgement import judge_batches, judge_pairs, judge_recombination
from llm_profile.report import PairResult, StepResult, ValidationReport, mean_spread
from llm_profile.report_text import print_report, warnings_of
from llm_profile.scaled_table import refuse_scaled, scaled_table, scaling_paths, write_scaled
from llm_profile.scaling import DEFAULT_MODE, MODES, Scaling, at_depth, average_factor, kernels_ns
from llm_profile.scaling_options import OneLineParser, add_scaling_arguments, parse_scaling
from llm_profile.steps import MeasuredSteps, StepPlan, measure, plan_steps
from llm_profile.sweep import SweepPoint
from llm_profile.table import LatencyTable

__all__ = [
    "OneLineParser",
    "add_scaling_arguments",
    "apply_scaling_to_latency_csv",
    "compute_average_scaling_factor",
    "known_exit_code",
    "measure_fitted",
    "parse_scaling",
    "run_validation",
    "validate",
    "validate_table",
]


BATCHES = (1, 4, 16, 64)
"""Sequences of the batched decode steps that composed ones are held against."""


def compute_average_scaling_factor(
    table: LatencyTable,
    measured: MeasuredSteps | Mapping[SweepPoint, Sequence[float]],
    pairs: Sequence[Pair],
    depth: int | None = None,
) -> float:
    """The documented one average: the mean over `pairs` of measured / estimated total latency.

    measured: wall times of real steps in nanoseconds, per repeat: prefill at (n, 0), decode at (1, k). Decode steps
    that were not timed are interpolated. pairs: (input length, output length) in tokens. depth: blocks that the real
    model had (its first so many), None for all. Raises UsageError where the table or the steps do not cover a pair.
    """
    check_pairs(pairs, table.records, table.missing)
    steps = measured if isinstance(measured, MeasuredSteps) else MeasuredSteps.of(measured)
    return average_factor(Estimate.of(table, depth), steps, pairs)


def apply_scaling_to_latency_csv(
    csv_path: str | Path,
    scaling_factor: float | Scaling,
    output_path: str | Path | None = None,
    add_new_column: bool = False,
    *,
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write a scaled copy of the table at `csv_path`, with its metadata and rows file, and return the new CSV's path.

    scaling_factor: one factor for every row, or a Scaling fitted on this table. output_path: default
    `<model>-scaled.csv` beside the measured table. add_new_column: leave `latency(ns)` as measured in the new CSV and
    add a `scaled_latency(ns)` column. details: kept in the metadata's `scaling` (runtime, errors).

    The measured table is never touched. Raises UsageError for a table that is scaled already, for an output that would
    replace a measured one, and for a factor that is not positive.
    """
    source, target = scaling_paths(csv_path, output_path)
    table = LatencyTable.read(source.csv)
    scaled = scaled_table(table, scaling_factor, {"source": source.csv.name, **(details or {})})
    write_scaled(scaled, table if add_new_column else None, target)
    return target.csv


def validate(
    table: LatencyTable,
    reality: Reality,
    pairs: Sequence[Pair],
    *,
    depth: int | None = None,
    mode: str = DEFAULT_MODE,
    tolerance: float = 0.05,
    repeat: int = 3,
    other_depths: Mapping[int, MeasuredSteps] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ValidationReport:
    """Time the real model's steps, fit every way of scaling on some of them and judge it on the others.

    reality: the real model with `depth` blocks (None: all), already under the table's conditions. pairs: (input,
    output) lengths. mode: the way of scaling to apply, one of MODES. tolerance: held-out mean error that is accepted, a
    ratio. repeat: timings of each step. other_depths: fitted steps measured at other depths (`measure_fitted`): with a
    depth below the model's, the excess of steps is extrapolated to the full model; at full depth and with two others,
    that extrapolation is judged. provenance: recorded as it is. Steps of several sequences are timed too, to be held
    against composed ones. Raises UsageError for pairs beyond the table, before anything runs.
    """
    estimate, (fit_plan, held_plan) = _plan(table, pairs, depth)
    fitted = measure(reality, fit_plan, repeat)
    held_out = measure(reality, held_plan, repeat)
    batched = {step.point: step.wall_ns for step in reality.batched(batched_points(pairs, estimate), repeat)}
    scalings: dict[str, Scaling] = {}
    not_fitted: dict[str, str] = {}
    for name, fit in MODES.items():
        try:
            scalings[name] = fit(estimate, fitted, fit_plan.pairs)
        except UsageError as error:
            if name == mode:
                raise
            not_fitted[name] = str(error)
    scaled = {name: scaling.applied_to(estimate) for name, scaling in scalings.items()}
    real = [held_out.pair(pair) for pair in held_plan.pairs]
    errors = {name: judge_pairs([of.pair(pair) for pair in held_plan.pairs], real) for name, of in scaled.items()}

    pair_results: list[PairResult] = []
    step_results: list[StepResult] = []
    for is_held_out, plan, steps in ((False, fit_plan, fitted), (True, held_plan, held_out)):
        for pair in plan.pairs:
            latencies = (steps.pair(pair), estimate.pair(pair), scaled[mode].pair(pair))
            pair_results.append(PairResult(is_held_out, *latencies, steps.spread(pair)))
        points = sorted(steps.steps)
        both = zip(kernels_ns(estimate, points), kernels_ns(scaled[mode], points), strict=True)
        for point, (kernels, guess) in zip(points, both, strict=True):
            step_results.append(StepResult(point, is_held_out, steps.steps[point], float(kernels), float(guess)))

    full = model_depth(table)
    other = {of: (Estimate.of(table, of), steps) for of, steps in (other_depths or {}).items() if of != estimate.depth}
    depths = sorted({*other, estimate.depth})
    applied, depth_errors = scalings[mode], None
    if estimate.depth < full and other:
        full_estimate = Estimate.of(table)
        full_steps = at_depth(full_estimate, [*other.values(), (estimate, fitted)])
        applied = MODES[mode](full_estimate, full_steps, fit_plan.pairs)
    elif len(other) > 1:
        guessed = at_depth(estimate, list(other.values()))
        depth_errors = judge_pairs(*([steps.pair(pair) for pair in fit_plan.pairs] for steps in (guessed, fitted)))
    applied = replace(applied, parameters=applied.parameters | {"measured_depths": depths})
    report = ValidationReport(
        hardware=table.hardware,
        model=table.model,
        clock=table.meta["clock"],
        runtime=reality.runtime,
        depth=estimate.depth,
        model_depth=full,
        measured_depths=tuple(depths),
        repeat=repeat,
        mode=mode,
        tolerance=tolerance,
        scaling=applied,
        scalings=scalings,
        not_fitted=not_fitted,
        pairs=tuple(pair_results),
        steps=tuple(step_results),
        errors=errors,
        spread=mean_spread([result for result in pair_results if result.held_out]),
        recombination=judge_recombination(scaled[mode], held_out),
        batched=tuple(judge_batches(scaled[mode], batched)),
        depth_errors=depth_errors,
        provenance=provenance or {},
    )
    drift = max(fitted.drift, held_out.drift)
    return replace(report, warnings=(*reality.notices, *warnings_of(report, drift, estimate.interpolated)))


def _plan(table: LatencyTable, pairs: Sequence[Pair], depth: int | None) -> tuple[Estimate, tuple[StepPlan, StepPlan]]:
    check_pairs(pairs, table.records, table.missing)
    estimate = Estimate.of(table, depth)
    return estimate, plan_steps(pairs, estimate, table.missing)


def batched_points(pairs: Sequence[Pair], estimate: Estimate) -> list[SweepPoint]:
    """Decode steps of several sequences, at the shortest and the longest prompt, as far as the table's rows go."""
    kv_lens = sorted({min(pairs)[0], max(pairs)[0]})
    return [SweepPoint(1, kv, n) for n in BATCHES if n <= estimate.prefill.lens[-1] for kv in kv_lens]


def measure_fitted(
    table: LatencyTable, reality: Reality, pairs: Sequence[Pair], depth: int, repeat: int = 3
) -> MeasuredSteps:
    """Time only the steps that scaling is fitted on, of a real model with `depth` blocks: `validate(other_depths)`."""
    _estimate, (fit_plan, _held_plan) = _plan(table, pairs, depth)
    return measure(reality, fit_plan, repeat)


def run_validation(
    table: LatencyTable,
    open_at: Callable[[int], Reality],
    pairs: Sequence[Pair],
    *,
    depth: int | None = None,
    other_depths: Sequence[int] | None = None,
    repeat: int = 3,
    **options: Any,
) -> ValidationReport:
    """`validate` with models opened and closed one after the other, so that one at a time is in memory.

    open_at: opens the real model with so many blocks. other_depths: depths to be measured beside `depth`; by default
    half of it where the full model is deeper, none otherwise. options: as for `validate`.
    """
    full = model_depth(table)
    depth = full if depth is None else depth
    _plan(table, pairs, depth)  # refuses what cannot be estimated before a model is opened
    if other_depths is None:
        other_depths = [depth // 2] if 1 < depth < full else []
    others: dict[int, MeasuredSteps] = {}
    for other in other_depths:
        reality = open_at(other)
        try:
            others[other] = measure_fitted(table, reality, pairs, other, repeat)
        finally:
            reality.close()
    reality = open_at(depth)
    try:
        return validate(table, reality, pairs, depth=depth, other_depths=others, repeat=repeat, **options)
    finally:
        reality.close()


def scaling_details(report: ValidationReport) -> dict[str, Any]:
    """What a scaled table's metadata says about the validation that it comes from."""
    errors = report.as_json()["scalings"][report.mode]["held_out_errors"]
    return {"runtime": report.runtime, "held_out_errors": errors, "judged_at_num_layers": report.depth}


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = OneLineParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit codes: 0 done; 2 usage or environment; 4 held-out error above the tolerance.",
    )
    parser.add_argument("--csv", type=Path, required=True, help="the measured table")
    parser.add_argument("--device", help="cuda, cuda:N or cpu (default: what the table was measured on)")
    parser.add_argument("--hf-token", help="access token of the Hugging Face hub (default: HF_TOKEN)")
    add_scaling_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        return _run(build_parser().parse_args(argv))
    except UsageError as error:
        summary.notice(f"validation.py: {error}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        summary.notice("validation.py: interrupted; nothing was written")
        return EXIT_INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    wanted = parse_scaling(arguments)
    table = LatencyTable.read(arguments.csv)
    device = arguments.device or ("cuda" if table.meta["clock"] == "gpu-kernel" else "cpu")
    token = arguments.hf_token or os.environ.get("HF_TOKEN") or None
    return validate_table(table, arguments.csv, wanted, device, token)


def known_exit_code(table: LatencyTable, csv_path: Path, wanted: request.Scaling) -> int | None:
    """What `validate_table` returned for this very table and these options before; None where it is to be done."""
    try:
        told = json.loads(report_path(csv_path, wanted.output).read_bytes())
        options, runs = told["provenance"]["request"], told["provenance"]["runs"]
        over_tolerance = told["over_tolerance"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    scaled = scaling_paths(csv_path, wanted.output)[1].csv
    if (options, runs) != (wanted.as_json(), table.meta["runs"]) or not scaled.exists():
        return None
    return EXIT_OVER_TOLERANCE if over_tolerance else EXIT_COMPLETE


def report_path(csv_path: Path, output: Path | None) -> Path:
    """Where a validation is told to programs: `<model>.validation.json`, or beside a scaled table of another name."""
    beside = output or csv_path
    return beside.with_name(f"{beside.stem}.validation.json")


def validate_table(
    table: LatencyTable, csv_path: Path, wanted: request.Scaling, device: str, token: str | None = None
) -> int:
    """Hold the table at `csv_path` against the real model, write the scaled one and the JSON, print the report.

    Returns the exit code: 0, or 4 for a held-out error above the tolerance. Raises UsageError for what the user can
    mend, where possible before a model is loaded.
    """
    from rich.console import Console

    refuse_scaled(table)
    scaling_paths(csv_path, wanted.output)

    def open_at(depth: int) -> Reality:
        from llm_profile.reality import open_reality  # imports torch

        return open_reality(wanted.runtime, table, depth, device, token)

    report = run_validation(
        table,
        open_at,
        wanted.pairs,
        depth=wanted.num_layers,
        repeat=wanted.repeat,
        mode=wanted.mode,
        tolerance=wanted.tolerance,
        provenance={
            "table": csv_path.name,
            "validated": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": wanted.as_json(),
            "conditions": table.meta["conditions"],
            "runs": table.meta["runs"],
        },
    )
    details = scaling_details(report)
    scaled_path = apply_scaling_to_latency_csv(
        csv_path, report.scaling, wanted.output, wanted.add_new_column, details=details
    )
    json_path = report_path(csv_path, wanted.output)
    report.write(json_path)  # last: it says that all is done
    console = Console()
    print_report(report, console)
    files = f"Scaled table: {scaled_path}\nAll pairs and steps: {json_path}"
    console.print(files, highlight=False, soft_wrap=True, markup=False)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
