"""What validation found, for people: tables, and warnings that say what makes a number doubtful. No torch."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from llm_profile.validation.measured_steps import QUANTITIES, quantity_ns
from llm_profile.validation.outcome import ValidationOutcome
from llm_profile.validation.report import ValidationReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SPREAD_LIMIT = 0.10
"""Run-to-run spread of a pair above which its numbers are called doubtful."""

DRIFT_LIMIT = 0.05
"""How much slower the last repeat may be than the first; a GPU that warms up loses about 3 % of its clock."""

LABELS = {"ttft": "TTFT", "tpot": "TPOT", "total": "total"}

STEP_WAYS = {"own_point": "all rows at (1, k)", "recombined": "rope and attn at (1, k), the rest at (1, 0)"}
"""How decode steps are read from a scaled table."""


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
    least = report.scaling.factor_range[0]
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


def noisy_text(noisy: Mapping[str, float], limit: float) -> str:
    """What is said first and last of a machine whose processes differ too much.

    noisy: quantity -> spread between processes, a ratio. limit: the least spread that is too much.
    """
    found = ", ".join(f"{LABELS.get(quantity, quantity)} by {percent(spread)}" for quantity, spread in noisy.items())
    return (
        f"Too noisy: the same steps differ between processes: {found}. No error below {percent(limit)} "
        "can be told on this machine now; stop other work on it and validate again"
    )


def over_tolerance_text(outcome: ValidationOutcome) -> str | None:
    """Which quantities are off by more than was asked for; None if none is."""
    failed = ", ".join(LABELS[quantity] for quantity in outcome.over_tolerance)
    return f"Over tolerance ({percent(outcome.tolerance)}): {failed}" if failed else None


def accuracy_lines(outcome: ValidationOutcome) -> Iterator[str]:
    """How far the estimate is off, a line for each quantity, beside how far the real model differs from itself."""
    processes = f"{outcome.processes} process{'es' if outcome.processes > 1 else ''}"
    yield (
        f"against the real model ({outcome.runtime}, {outcome.depth} of {outcome.model_depth} layers, {processes}), "
        f"scaling {outcome.mode}, in %:"
    )
    columns = ("mean error", "worst error", "run-to-run spread", "between processes")
    yield " " * 8 + "".join(f"{column:>19}" for column in columns)
    for quantity, errors in outcome.errors.items():
        of_errors = (errors.mean, errors.worst) if errors else (None, None)
        ratios = (*of_errors, outcome.spread[quantity], outcome.spread_between[quantity])
        yield f"  {LABELS[quantity]:6}" + "".join(f"{'-' if ratio is None else f'{ratio:.1%}':>19}" for ratio in ratios)
    if not outcome.over_tolerance and not outcome.noisy:
        yield f"passed: no mean error is above {percent(outcome.tolerance)} and above the spreads of the real model"


def percent(ratio: float, signed: bool = False) -> str:
    """`0.0123` -> `1.2 %`."""
    return f"{ratio:+.1%}".replace("%", " %") if signed else f"{ratio:.1%}".replace("%", " %")


def milliseconds(latency_ns: float) -> str:
    """Four figures at least: `7.273`, `60.38`, `20,123`."""
    latency_ms = latency_ns / 1e6
    decimals = max(0, 4 - len(str(int(latency_ms))))
    return f"{latency_ms:,.{decimals}f}"


def print_report(report: ValidationReport, console: "Console") -> None:
    """Print what people want to see: held-out pairs, every way of scaling, recombination, warnings."""
    from rich.markup import escape  # names may have brackets

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    several = "es" if report.processes > 1 else ""
    say(
        f"[bold]{escape(report.model)}[/] on {escape(report.hardware)} against the real model: {report.runtime}, "
        f"{report.depth} of {report.model_depth} layers, batch 1, median of {report.repeat} rounds in "
        f"{report.processes} process{several}"
    )
    _print_pairs(report, console)
    _print_modes(report, console)
    for way, label in STEP_WAYS.items():
        if errors := report.recombination[way]:
            say(f"Decode steps from scaled rows, {label}: error {percent(errors.mean)}, worst {percent(errors.worst)}")
    for step in report.batched:
        say(
            f"Decode step of {step.sequences} sequences at kv_cache {step.kv_len}: measured "
            f"{milliseconds(step.measured_ns)} ms, composed {milliseconds(step.composed_ns)} ms "
            f"({percent(step.error, signed=True)}), of it {milliseconds(step.request_ns)} ms are rope and attn of one "
            f"sequence, {step.sequences} times"
        )
    for quantity, depth_errors in (report.depth_errors or {}).items():
        if depth_errors:
            say(
                f"{LABELS[quantity]} extrapolated to {report.depth} layers from other depths: error "
                f"{percent(depth_errors.mean)}, worst {percent(depth_errors.worst)}"
            )
    for mode, reason in report.not_fitted.items():
        say(f"Scaling {mode} was not fitted: {escape(reason)}")
    for warning in report.warnings:
        say(f"[yellow]Warning:[/] {escape(warning)}")


def _table(title: str) -> "Table":
    """A table that fits in 80 columns, as logs have them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _print_pairs(report: ValidationReport, console: "Console") -> None:
    held_out = [pair for pair in report.pairs if pair.held_out]
    title = "Held-out pairs" if held_out else "Fitted pairs (nothing was held out, so this is no judgement)"
    table = _table(f"{title}: real and estimated ms, error in %")
    for column in ("input", "output"):
        table.add_column(column, justify="right", no_wrap=True)
    for label in LABELS.values():
        for column in (f"{label}\nreal", "\nest.", "\nerror"):
            table.add_column(column, justify="right", no_wrap=True)
    for pair in held_out or report.pairs:
        cells = [str(pair.measured.input_len), str(pair.measured.output_len)]
        for quantity in QUANTITIES:
            real, guess = (quantity_ns(latency, quantity) for latency in (pair.measured, pair.scaled))
            if real is None or guess is None:
                cells += ["-"] * 3
            else:
                cells += [milliseconds(real), milliseconds(guess), f"{100 * (guess / real - 1):+.1f}"]
        table.add_row(*cells)
    console.print(table)


def _print_modes(report: ValidationReport, console: "Console") -> None:
    def shown(*ratios: float | None) -> str:
        return " / ".join("-" if ratio is None else f"{100 * ratio:.1f}" for ratio in ratios)

    table = _table("Held-out errors in %: mean / 90th percentile / worst")
    table.add_column("scaling", no_wrap=True)
    for label in LABELS.values():
        table.add_column(label, justify="right", no_wrap=True)
    for mode, by_quantity in report.errors.items():
        found = [by_quantity[quantity] for quantity in QUANTITIES]
        cells = [shown(errors.mean, errors.p90, errors.worst) if errors else "-" for errors in found]
        table.add_row(f"{mode} (applied)" if mode == report.mode else mode, *cells)
    table.add_section()
    table.add_row("run-to-run spread", *(shown(report.spread[quantity]) for quantity in QUANTITIES))
    table.add_row("between processes", *(shown(report.spread_between[quantity]) for quantity in QUANTITIES))
    console.print(table)
