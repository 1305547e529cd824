#!/usr/bin/env python3
"""Hold a latency table against the real model, and correct it for what kernels alone do not show.

A table has kernel times. The real model takes longer: launches, gaps between kernels, Python. This command runs the real
model, step by step, at the lengths that (input, output) pairs need, fits a scaling on some of these lengths, judges it on
others, prints the error, and writes a scaled table beside the measured one.

    python3 validation.py --csv H200/meta-llama/Llama-3.1-8B.csv --scaling-runtime cuda-graph

Two realities (--scaling-runtime): `eager` is `generate` as Hugging Face runs it; `cuda-graph` is the same steps captured in
CUDA graphs, which is what serving engines come close to. Three ways of scaling (--scaling-mode): `global`, one average;
`phase`, one factor each for prefill and decode; `curve`, what each step costs beyond its kernels. The report has the
held-out errors of all three; `curve` is the default, since in eager mode one factor triples the TTFT of long prompts.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_profile.backends.base import Reality
from llm_profile.errors import EXIT_INTERRUPTED, EXIT_USAGE, UsageError
from llm_profile.estimate import Estimate, Pair, check_pairs, model_depth
from llm_profile.report import PairResult, StepResult, ValidationReport, mean_spread, print_report, warnings_of
from llm_profile.scaled_table import refuse_scaled, scaled_table, scaling_paths, write_scaled
from llm_profile.scaling import (
    DEFAULT_MODE,
    MODES,
    Scaling,
    at_depth,
    average_factor,
    judge_batches,
    judge_pairs,
    judge_recombination,
    kernels_ns,
)
from llm_profile.steps import MeasuredSteps, StepPlan, measure, plan_steps
from llm_profile.sweep import SweepPoint
from llm_profile.table import LatencyTable

RUNTIMES = ("eager", "cuda-graph")


def compute_average_scaling_factor(
    table: LatencyTable,
    measured: MeasuredSteps | Mapping[SweepPoint, Sequence[float]],
    pairs: Sequence[Pair],
    depth: int | None = None,
) -> float:
    """The documented one average: the mean over `pairs` of measured / estimated total latency.

    measured: wall times of real steps in nanoseconds, per repeat: prefill at (n, 0), decode at (1, k). Decode steps that
    were not timed are interpolated. pairs: (input length, output length) in tokens. depth: blocks that the real model had
    (its first so many), None for all. Raises UsageError where the table or the steps do not cover a pair.
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
    `<model>-scaled.csv` beside the measured table. add_new_column: leave `latency(ns)` as measured in the new CSV and add
    a `scaled_latency(ns)` column. details: kept in the metadata's `scaling` (runtime, errors).

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
    batched: Mapping[SweepPoint, Sequence[float]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ValidationReport:
    """Time the real model's steps, fit every way of scaling on some of them and judge it on the others.

    reality: the real model with `depth` blocks (None: all), already under the table's conditions. pairs: (input, output)
    lengths. mode: the way of scaling to apply, one of MODES. tolerance: held-out mean error, as a ratio, that is accepted.
    repeat: timings of each step. other_depths: fitted steps measured at other depths (`measure_fitted`): with a depth
    below the model's, the excess of steps is extrapolated to the full model; at full depth and with two others, that
    extrapolation is judged. batched: wall times of decode steps with several sequences, to be held against composed ones.
    provenance: recorded as it is. Raises UsageError for pairs beyond the table, before anything runs.
    """
    estimate, (fit_plan, held_plan) = _plan(table, pairs, depth)
    fitted = measure(reality, fit_plan, repeat)
    held_out = measure(reality, held_plan, repeat)
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
        for point, kernels, guess in zip(points, kernels_ns(estimate, points), kernels_ns(scaled[mode], points), strict=True):
            step_results.append(StepResult(point, is_held_out, steps.steps[point], float(kernels), float(guess)))

    full = model_depth(table)
    other = {of: (Estimate.of(table, of), steps) for of, steps in (other_depths or {}).items() if of != estimate.depth}
    applied, depths, depth_errors = scalings[mode], (estimate.depth,), None
    if estimate.depth < full and other:
        depths = tuple(sorted({*other, estimate.depth}))
        full_estimate = Estimate.of(table)
        full_steps = at_depth(full_estimate, [*other.values(), (estimate, fitted)])
        applied = MODES[mode](full_estimate, full_steps, fit_plan.pairs)
    elif len(other) > 1:
        guessed = at_depth(estimate, list(other.values()))
        depth_errors = judge_pairs(*([steps.pair(pair) for pair in fit_plan.pairs] for steps in (guessed, fitted)))
    applied = replace(applied, parameters=applied.parameters | {"measured_depths": list(depths)})
    report = ValidationReport(
        hardware=table.hardware,
        model=table.model,
        clock=table.meta["clock"],
        runtime=reality.runtime,
        depth=estimate.depth,
        model_depth=full,
        measured_depths=depths,
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
        batched=tuple(judge_batches(scaled[mode], batched or {})),
        depth_errors=depth_errors,
        provenance=provenance or {},
    )
    return replace(report, warnings=tuple(warnings_of(report, max(fitted.drift, held_out.drift), estimate.interpolated)))


def _plan(table: LatencyTable, pairs: Sequence[Pair], depth: int | None) -> tuple[Estimate, tuple[StepPlan, StepPlan]]:
    check_pairs(pairs, table.records, table.missing)
    estimate = Estimate.of(table, depth)
    return estimate, plan_steps(pairs, estimate, table.missing)


def measure_fitted(
    table: LatencyTable, reality: Reality, pairs: Sequence[Pair], depth: int, repeat: int = 3
) -> MeasuredSteps:
    """Time only the steps that scaling is fitted on, of a real model with `depth` blocks, for `validate(other_depths)`."""
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


def add_scaling_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say how a table is held against the real model; run_profile.py has the same."""
    group = parser.add_argument_group("scaling", "how the table is held against the real model, and corrected")
    add = group.add_argument
    add("--scaling-runtime", choices=RUNTIMES, default="eager", help="how the real model runs (default %(default)s)")
    add("--scaling-mode", choices=tuple(MODES), default=DEFAULT_MODE, help="which scaling to apply (default %(default)s)")
    add("--scaling-num-layers", type=int, metavar="N", help="blocks of the real model (default: all of them)")
    for what, defaults in (("input", (128, 1024, 128)), ("output", (None, None, None))):
        for bound, default in zip(("min", "max", "step"), defaults, strict=True):
            shown = default or f"as --scaling-input-{bound}"
            add(f"--scaling-{what}-{bound}", type=int, metavar="N", default=default, help=f"tokens (default {shown})")
    add("--scaling-repeat", type=int, metavar="N", default=3, help="timings of each step (default %(default)s)")
    add(
        "--scaling-tolerance",
        type=float,
        metavar="PERCENT",
        default=5.0,
        help="held-out mean error that is accepted; above it, and above the run-to-run spread, the exit code is 4 "
        "(default %(default)s)",
    )
    add("--scaling-output", type=Path, metavar="CSV", help="the scaled table (default: <model>-scaled.csv beside it)")
    add("--scaling-add-new-col", action="store_true", help="keep latency(ns) and add a scaled_latency(ns) column")


def scaling_pairs(arguments: argparse.Namespace) -> list[Pair]:
    """The (input, output) pairs that parsed options ask for. Raises UsageError for a bad range, repeat or tolerance."""
    grids: dict[str, range] = {}
    for what in ("input", "output"):
        values: dict[str, int] = {}
        for bound in ("min", "max", "step"):
            own = getattr(arguments, f"scaling_{what}_{bound}")
            option = f"--scaling-{'input' if own is None else what}-{bound}"
            values[bound] = getattr(arguments, f"scaling_input_{bound}") if own is None else own
            if values[bound] < 1:
                raise UsageError(f"{option} {values[bound]}: must be a whole number of at least 1")
        if values["min"] > values["max"]:
            raise UsageError(f"--scaling-{what}-min {values['min']}: is above --scaling-{what}-max {values['max']}")
        grids[what] = range(values["min"], values["max"] + 1, values["step"])
    if arguments.scaling_repeat < 1:
        raise UsageError(f"--scaling-repeat {arguments.scaling_repeat}: must be a whole number of at least 1")
    if not arguments.scaling_tolerance >= 0:
        raise UsageError(f"--scaling-tolerance {arguments.scaling_tolerance}: must be a percentage of at least 0")
    return [(input_len, output_len) for input_len in grids["input"] for output_len in grids["output"]]


def scaling_details(report: ValidationReport) -> dict[str, Any]:
    """What a scaled table's metadata says about the validation that it comes from."""
    errors = report.as_json()["scalings"][report.mode]["held_out_errors"]
    return {"runtime": report.runtime, "held_out_errors": errors, "judged_at_num_layers": report.depth}


class OneLineParser(argparse.ArgumentParser):
    """Complaints are UsageErrors, without the usage text around them."""

    def error(self, message: str) -> Any:
        """Raises UsageError."""
        raise UsageError(f"{message}; see --help")


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = OneLineParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit codes: 0 done; 2 usage or environment; 4 held-out error above the tolerance.",
    )
    parser.add_argument("--csv", type=Path, required=True, help="the measured table")
    parser.add_argument("--model", help="where the model comes from (default: what the table was measured with)")
    parser.add_argument("--device", help="cuda, cuda:N or cpu (default: what the table was measured on)")
    parser.add_argument("--hf-token", help="access token of the Hugging Face hub (default: HF_TOKEN)")
    add_scaling_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        return _validate_csv(build_parser().parse_args(argv))
    except UsageError as error:
        print(f"validation.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("validation.py: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED


def _validate_csv(arguments: argparse.Namespace) -> int:
    pairs = scaling_pairs(arguments)
    source, _target = scaling_paths(arguments.csv, arguments.scaling_output)
    table = LatencyTable.read(source.csv)
    refuse_scaled(table)
    report = run_validation(
        table,
        _opener(arguments, table),
        pairs,
        depth=arguments.scaling_num_layers,
        repeat=arguments.scaling_repeat,
        mode=arguments.scaling_mode,
        tolerance=arguments.scaling_tolerance / 100,
        provenance={
            "table": source.csv.name,
            "validated": datetime.now(UTC).isoformat(timespec="seconds"),
            "conditions": table.meta["conditions"],
        },
    )
    return finish(report, source.csv, arguments.scaling_output, arguments.scaling_add_new_col)


def finish(report: ValidationReport, csv_path: Path, output_path: Path | None, add_new_column: bool) -> int:
    """Write the scaled table and the JSON, print the report, and return the exit code."""
    from rich.console import Console

    console = Console()
    json_path = csv_path.with_name(f"{csv_path.stem}.validation.json")
    report.write(json_path)
    scaled_path = apply_scaling_to_latency_csv(
        csv_path, report.scaling, output_path, add_new_column, details=scaling_details(report)
    )
    print_report(report, console)
    console.print(f"Scaled table: {scaled_path}\nAll pairs and steps: {json_path}", highlight=False, soft_wrap=True)
    return report.exit_code


def _opener(arguments: argparse.Namespace, table: LatencyTable) -> Callable[[int], Reality]:
    """How to load the model that `table` was measured on, at some depth."""
    device = arguments.device or ("cuda" if table.meta["clock"] == "gpu-kernel" else "cpu")
    token = arguments.hf_token or os.environ.get("HF_TOKEN")

    def open_at(depth: int) -> Reality:
        from llm_profile.reality import open_reality  # imports torch

        return open_reality(arguments.scaling_runtime, table.meta, depth, device, token)

    return open_at


if __name__ == "__main__":
    sys.exit(main())
