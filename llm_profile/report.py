"""What validation found: for people as tables, for programs as JSON, for the shell as an exit code. No torch."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_profile.errors import EXIT_COMPLETE, EXIT_OVER_TOLERANCE
from llm_profile.estimate import PairLatency
from llm_profile.scaling import BatchedStep, Errors, Scaling
from llm_profile.steps import QUANTITIES, quantity_ns
from llm_profile.storage import to_json, write_whole
from llm_profile.sweep import SweepPoint

if TYPE_CHECKING:
    from rich.console import Console

REPORT_SCHEMA = 1
"""Version of the JSON that programs read."""

SPREAD_LIMIT = 0.10
"""Run-to-run spread of a pair above which its numbers are called doubtful."""

DRIFT_LIMIT = 0.05
"""How much slower the last repeat may be than the first; a GPU that warms up loses about 3 % of its clock."""

LABELS = {"ttft": "TTFT", "tpot": "TPOT", "total": "total"}


@dataclass(frozen=True)
class PairResult:
    """One (input, output) pair. kernels: the table's own sum. scaled: the same with the applied scaling.

    spread: run-to-run (max - min) / median of each quantity; None where there is none (TPOT of one token).
    """

    held_out: bool
    measured: PairLatency
    kernels: PairLatency
    scaled: PairLatency
    spread: Mapping[str, float | None]

    def as_json(self) -> dict[str, Any]:
        """For programs, nanoseconds."""
        return {
            "input": self.measured.input_len,
            "output": self.measured.output_len,
            "held_out": self.held_out,
            "spread": dict(self.spread),
            **{
                f"{way}_ns": {quantity: quantity_ns(getattr(self, way), quantity) for quantity in QUANTITIES}
                for way in ("measured", "kernels", "scaled")
            },
        }


@dataclass(frozen=True)
class StepResult:
    """One step of the real model. wall_ns: per repeat. kernels_ns, scaled_ns: as in PairResult."""

    point: SweepPoint
    held_out: bool
    wall_ns: tuple[float, ...]
    kernels_ns: float
    scaled_ns: float

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "input": self.point.input_len,
            "kv_cache": self.point.kv_len,
            "held_out": self.held_out,
            "wall_ns": list(self.wall_ns),
            "median_ns": statistics.median(self.wall_ns),
            "kernels_ns": self.kernels_ns,
            "scaled_ns": self.scaled_ns,
        }


@dataclass(frozen=True)
class ValidationReport:
    """A table held against the real model.

    runtime: how the real model ran. depth: of `model_depth` blocks, the ones it had. mode: the applied way of scaling.
    scaling: what to apply to the table; of `model_depth` blocks where the excess was extrapolated over depths
    `measured_depths`, else of `depth`. scalings: every way that could be fitted, at `depth`. not_fitted: the others, with
    the reason. errors: of held-out pairs, by way and quantity. spread: mean run-to-run spread of held-out pairs.
    recombination, batched: how the applied scaling's rows add up to steps in a simulator. depth_errors: where two other
    depths were measured, errors of pairs at `depth` extrapolated from them. tolerance, errors and spreads are ratios.
    """

    hardware: str
    model: str
    clock: str
    runtime: str
    depth: int
    model_depth: int
    measured_depths: tuple[int, ...]
    repeat: int
    mode: str
    tolerance: float
    scaling: Scaling
    scalings: Mapping[str, Scaling]
    not_fitted: Mapping[str, str]
    pairs: tuple[PairResult, ...]
    steps: tuple[StepResult, ...]
    errors: Mapping[str, Mapping[str, Errors | None]]
    spread: Mapping[str, float | None]
    recombination: Mapping[str, Errors | None]
    batched: tuple[BatchedStep, ...] = ()
    depth_errors: Mapping[str, Errors | None] | None = None
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def over_tolerance(self) -> list[str]:
        """The quantities whose held-out mean error is above both the tolerance and the run-to-run spread."""
        found = []
        for quantity, errors in self.errors[self.mode].items():
            if errors is not None and errors.mean > max(self.tolerance, self.spread[quantity] or 0.0):
                found.append(quantity)
        return found

    @property
    def exit_code(self) -> int:
        """EXIT_OVER_TOLERANCE or EXIT_COMPLETE."""
        return EXIT_OVER_TOLERANCE if self.over_tolerance else EXIT_COMPLETE

    def as_json(self) -> dict[str, Any]:
        """For programs: times in nanoseconds, errors and spreads as ratios."""

        def shown(errors: Mapping[str, Errors | None]) -> dict[str, Any]:
            return {name: asdict(value) if value else None for name, value in errors.items()}

        scalings = {
            mode: {"num_layers": scaling.depth, **scaling.parameters, "held_out_errors": shown(self.errors[mode])}
            for mode, scaling in self.scalings.items()
        }
        return {
            "schema": REPORT_SCHEMA,
            "hardware": self.hardware,
            "model": self.model,
            "clock": self.clock,
            "runtime": self.runtime,
            "batch": 1,
            "num_layers": self.depth,
            "model_num_layers": self.model_depth,
            "measured_depths": list(self.measured_depths),
            "repeat": self.repeat,
            "applied": {"mode": self.mode, "num_layers": self.scaling.depth, **self.scaling.parameters},
            "average_scaling_factor": self.scalings["global"].parameters["factor"],
            "tolerance": self.tolerance,
            "over_tolerance": self.over_tolerance,
            "spread": dict(self.spread),
            "scalings": scalings,
            "not_fitted": dict(self.not_fitted),
            "recombination": shown(self.recombination),
            "batched": [{**asdict(step), "error": step.error} for step in self.batched],
            "depth_extrapolation": None if self.depth_errors is None else shown(self.depth_errors),
            "warnings": list(self.warnings),
            "pairs": [pair.as_json() for pair in self.pairs],
            "steps": [step.as_json() for step in self.steps],
            "provenance": dict(self.provenance),
        }

    def write(self, path: Path) -> None:
        """Write the JSON whole. Raises UsageError where the file system refuses."""
        write_whole(path, (to_json(self.as_json(), indent=1) + "\n").encode())


def mean_spread(results: Sequence[PairResult]) -> dict[str, float | None]:
    """Mean run-to-run spread of each of QUANTITIES over pairs; None where there is none."""
    spread: dict[str, float | None] = {}
    for quantity in QUANTITIES:
        known = [value for result in results if (value := result.spread[quantity]) is not None]
        spread[quantity] = statistics.fmean(known) if known else None
    return spread


def warnings_of(report: ValidationReport, drift: float, interpolated: bool) -> Iterator[str]:
    """What makes a report's numbers doubtful, and what to do. drift: how much slower the last repeat was (a ratio).

    interpolated: whether the table is sparse.
    """
    spreads = [
        (value, quantity, result.measured)
        for result in report.pairs
        for quantity, value in result.spread.items()
        if value is not None and value > SPREAD_LIMIT
    ]
    if spreads:
        worst, quantity, pair = max(spreads, key=lambda spread: spread[0])
        more = len({(pair.input_len, pair.output_len) for _value, _quantity, pair in spreads}) - 1
        yield (
            f"{LABELS[quantity]} of (input {pair.input_len}, output {pair.output_len}) spreads by {percent(worst)} from run "
            f"to run{f', {more} more pairs by over {percent(SPREAD_LIMIT)}' if more else ''}: stop other work on this "
            f"machine, lock the GPU's clocks, or raise --scaling-repeat"
        )
    if drift > DRIFT_LIMIT:
        yield (
            f"steps were {percent(drift)} slower in the last repeat than in the first: the clock fell or other work began; "
            f"lock the GPU's clocks, or let it reach its working temperature first"
        )
    least = report.scaling.least_factor
    if least < 1:
        yield (
            f"the smallest factor is {least:.3f}: there the real model is faster than the sum of its kernels; it is applied, "
            f"but check that table and real model ran under the same conditions"
        )
    if not any(result.held_out for result in report.pairs):
        yield "nothing was held out, so no error is known: widen --scaling-input-min to --scaling-input-max"
    if interpolated:
        yield "the table is sparse: kernel times between its lengths are interpolated, which adds to the errors"
    beyond = report.scaling.parameters.get("held_beyond", {})
    for option, length in beyond.items():
        if length is not None:
            yield f"no real step ran beyond {option} {length}: longer ones get its excess over kernels, unchanged"
    if report.scaling.depth < report.model_depth:
        yield f"factors hold for {report.depth} layers, not for the model's {report.model_depth}"
    elif report.depth < report.model_depth:
        depths = " and ".join(map(str, report.measured_depths))
        yield (
            f"factors for {report.model_depth} layers are extrapolated from {depths}; "
            f"the errors shown are those at {report.depth}"
        )


def percent(ratio: float | None, signed: bool = False) -> str:
    """`0.0123` -> `1.2 %`; `-` for what there is none of."""
    if ratio is None:
        return "-"
    return f"{ratio:+.1%}".replace("%", " %") if signed else f"{ratio:.1%}".replace("%", " %")


def milliseconds(latency_ns: float | None) -> str:
    """Three figures after the point; `-` for what there is none of."""
    return "-" if latency_ns is None else f"{latency_ns / 1e6:,.3f}"


def print_report(report: ValidationReport, console: "Console") -> None:
    """Print what people want to see: held-out pairs, every way of scaling, recombination, warnings."""
    console.print(
        f"[bold]{report.model}[/] on {report.hardware} against the real model: {report.runtime}, "
        f"{report.depth} of {report.model_depth} layers, batch 1, median of {report.repeat}",
        highlight=False,
    )
    _print_pairs(report, console)
    _print_modes(report, console)
    lines = [
        f"Decode steps from scaled rows, {label}: mean error {percent(errors.mean)}, worst {percent(errors.worst)}"
        for way, label in (("own_point", "all at (1, k)"), ("recombined", "dense at (1, 0), rope and attn at (1, k)"))
        if (errors := report.recombination[way])
    ]
    lines += [
        f"Decode step of {step.sequences} sequences at kv_cache {step.kv_len}: measured {milliseconds(step.measured_ns)} ms, "
        f"composed {milliseconds(step.composed_ns)} ms ({percent(step.error, signed=True)}), of it "
        f"{milliseconds(step.request_ns)} ms are rope and attn of one sequence, {step.sequences} times"
        for step in report.batched
    ]
    if report.depth_errors:
        lines += [
            f"{LABELS[quantity]} extrapolated to {report.depth} layers from other depths: mean error "
            f"{percent(errors.mean)}, worst {percent(errors.worst)}"
            for quantity, errors in report.depth_errors.items()
            if errors
        ]
    lines += [f"Scaling {mode} was not fitted: {reason}" for mode, reason in report.not_fitted.items()]
    for line in lines:
        console.print(line, highlight=False)
    for warning in report.warnings:
        console.print(f"[yellow]Warning:[/] {warning}", highlight=False)
    if report.over_tolerance:
        failed = ", ".join(LABELS[quantity] for quantity in report.over_tolerance)
        console.print(f"[red]Over tolerance[/] ({percent(report.tolerance)}): {failed}", highlight=False)


def _print_pairs(report: ValidationReport, console: "Console") -> None:
    from rich.table import Table

    held_out = [pair for pair in report.pairs if pair.held_out]
    title = "Held-out pairs (ms)" if held_out else "Fitted pairs (ms): nothing was held out, so this is no judgement"
    table = Table(title=title, title_justify="left")
    for column in ("input", "output"):
        table.add_column(column, justify="right")
    for label in LABELS.values():
        for column in (f"{label}\nmeasured", "\nestimated", "\nerror"):
            table.add_column(column, justify="right")
    for pair in held_out or report.pairs:
        cells = [str(pair.measured.input_len), str(pair.measured.output_len)]
        for quantity in QUANTITIES:
            real, guess = (quantity_ns(latency, quantity) for latency in (pair.measured, pair.scaled))
            error = guess / real - 1 if real is not None and guess is not None else None
            cells += [milliseconds(real), milliseconds(guess), percent(error, signed=True)]
        table.add_row(*cells)
    console.print(table)


def _print_modes(report: ValidationReport, console: "Console") -> None:
    from rich.table import Table

    table = Table(title="Held-out errors: mean / 90th percentile / worst", title_justify="left")
    table.add_column("scaling")
    for label in LABELS.values():
        table.add_column(label, justify="right")
    for mode, errors in report.errors.items():
        cells = [
            "-" if of is None else f"{percent(of.mean)} / {percent(of.p90)} / {percent(of.worst)}"
            for of in (errors[quantity] for quantity in QUANTITIES)
        ]
        table.add_row(f"{mode} (applied)" if mode == report.mode else mode, *cells)
    table.add_section()
    table.add_row("run-to-run spread, mean", *(percent(report.spread[quantity]) for quantity in QUANTITIES))
    console.print(table)
