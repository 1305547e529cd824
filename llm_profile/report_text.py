"""What validation found, for people: tables, and warnings that say what makes a number doubtful. No torch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llm_profile.report import ValidationReport
from llm_profile.steps import QUANTITIES, quantity_ns

if TYPE_CHECKING:
    from rich.console import Console

SPREAD_LIMIT = 0.10
"""Run-to-run spread of a pair above which its numbers are called doubtful."""

DRIFT_LIMIT = 0.05
"""How much slower the last repeat may be than the first; a GPU that warms up loses about 3 % of its clock."""

LABELS = {"ttft": "TTFT", "tpot": "TPOT", "total": "total"}


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
            f"{LABELS[quantity]} of (input {pair.input_len}, output {pair.output_len}) spreads by {percent(worst)} "
            f"from run to run{f', {more} more pairs by over {percent(SPREAD_LIMIT)}' if more else ''}: stop other work "
            f"on this machine, lock the GPU's clocks, or raise --scaling-repeat"
        )
    if drift > DRIFT_LIMIT:
        yield (
            f"steps were {percent(drift)} slower in the last repeat than in the first: the clock fell or other work "
            f"began; lock the GPU's clocks, or let it reach its working temperature first"
        )
    least = report.scaling.least_factor
    if least < 1:
        yield (
            f"the smallest factor is {least:.3f}: some rows are scaled down, as the real model is faster there than "
            f"the sum of its kernels; check that table and real model ran under the same conditions"
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
        f"Decode step of {step.sequences} sequences at kv_cache {step.kv_len}: measured "
        f"{milliseconds(step.measured_ns)} ms, composed {milliseconds(step.composed_ns)} ms "
        f"({percent(step.error, signed=True)}), of it {milliseconds(step.request_ns)} ms are rope and attn of one "
        f"sequence, {step.sequences} times"
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
