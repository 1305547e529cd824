"""Sections on how right the numbers of a table are: errors, noise, clocks, the real model. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence

from llm_profile.report.contents import Contents
from llm_profile.report.elements import counted, note, plots, ratio, section
from llm_profile.report.facts import Noise
from llm_profile.report.markup import Markup, element, table
from llm_profile.report.serving import StepGrid
from llm_profile.report.validation_files import UNSCALED, ValidationFile
from llm_profile.timing.loop import CLOCK_DROP
from llm_profile.validation.judgement import BatchedStep, Errors
from llm_profile.validation.measured_steps import QUANTITIES
from llm_profile.validation.report import noise_limit
from llm_profile.validation.report_text import LABELS, STEP_WAYS, milliseconds, noisy_text, percent

RUNTIME_TITLES = {"eager": "transformers, eager", "cuda-graph": "CUDA graphs, as serving engines run"}
"""How the real model ran, for those who do not know the options."""


WAY_TITLES = {UNSCALED: "none: the sum of the kernels"}


NOT_VALIDATED = (
    "This table was not compared with the real model, so nobody knows how far estimates from it are off. "
    "validation.py does that."
)


def accuracy(contents: Contents) -> Markup:
    """How far estimates are off, and how noisy the machine was: the first question."""
    parts: list[str] = []
    if contents.validations:
        parts += [
            note(
                "Errors are |estimated - measured| / measured of requests whose lengths were not used to fit the "
                "scaling; an error below the spread of the real model itself cannot be told from noise."
            ),
            element("div", *map(_error_cards, contents.validations), class_="panels"),
            _error_table(contents.validations),
        ]
    else:
        parts.append(element("p", NOT_VALIDATED))
    parts += [element("p", text, class_="warning") for text in contents.notices]
    parts += [element("h3", "How noisy the machine was"), _noise_list(contents.noise)]
    return section("accuracy", "How far the estimate is off", *parts)


def _error_cards(validation: ValidationFile) -> Markup:
    count = validation.processes
    processes = "" if count is None else f" in {count} process{'' if count == 1 else 'es'}"
    depth = f"{validation.depth} of {validation.model_depth} layers"
    errors = validation.errors.get(validation.mode, {})
    held_out = sum(validation.held_out)
    title = element("h3", RUNTIME_TITLES.get(validation.runtime, validation.runtime))
    about = (
        f"{counted(held_out, 'request')} of unseen lengths, scaling {validation.mode}, {depth}, "
        f"{counted(validation.repeat, 'round')}{processes}, {validation.validated[:10]}"
    )
    parts: list[str] = [title, element("p", about, class_="about")]
    parts.append(element("div", *(_error_card(q, errors.get(q), validation) for q in QUANTITIES), class_="cards"))
    parts += [element("p", text, class_="warning") for text in _doubts(validation)]
    return element("div", *parts, class_="validation")


def _error_card(quantity: str, errors: Errors | None, validation: ValidationFile) -> Markup:
    big = "-" if errors is None else ratio(errors.mean)
    lines = [] if errors is None else [f"at worst {ratio(errors.worst)}"]
    spreads = [("processes by", validation.spread_between)]
    if validation.repeat > 1:
        spreads.insert(0, ("runs differ by", validation.spread))
    for label, of in spreads:
        if (value := of.get(quantity)) is not None:
            lines.append(f"{label} {ratio(value)}")
    missed = "card over" if quantity in validation.over_tolerance or quantity in validation.noisy else "card"
    small = (element("span", line) for line in lines)
    return element("div", element("b", LABELS[quantity]), element("strong", big), *small, class_=missed)


def _doubts(validation: ValidationFile) -> Iterator[str]:
    if validation.noisy:
        yield f"{noisy_text(validation.noisy, noise_limit(validation.tolerance))}."
    if validation.over_tolerance:
        names = ", ".join(LABELS.get(quantity, quantity) for quantity in validation.over_tolerance)
        yield f"Over the tolerance of {percent(validation.tolerance)}: {names}."
    if not validation.is_current:
        yield (
            f"{validation.file} is of an earlier state of this table: its errors are told as they were then, and "
            "validation.py compares the table anew."
        )
    yield from validation.warnings


def _error_table(validations: Sequence[ValidationFile]) -> Markup:
    head = ["real model", "scaling", *(f"{LABELS[quantity]}: mean / p90 / worst" for quantity in QUANTITIES)]
    lines = [
        [
            validation.runtime,
            f"{WAY_TITLES.get(way, way)}{' (applied)' if way == validation.mode else ''}",
            *(_sizes(errors[quantity]) for quantity in QUANTITIES),
        ]
        for validation in validations
        for way, errors in validation.errors.items()
    ]
    others = [element("li", text) for validation in validations for text in _other_errors(validation)]
    listed = [element("ul", *others)] if others else []
    return element("details", element("summary", "Errors of every way of scaling"), table(head, lines), *listed)


def _sizes(errors: Errors | None) -> str:
    return "-" if errors is None else f"{ratio(errors.mean)} / {ratio(errors.p90)} / {ratio(errors.worst)}"


def _other_errors(validation: ValidationFile) -> Iterator[str]:
    """Errors of decode steps and of extrapolated depths (mean / p90 / worst), and scalings that there are none of."""
    for way, errors in validation.of_steps.items():
        if errors is not None:
            yield f"{validation.runtime}, decode steps from scaled rows, {STEP_WAYS.get(way, way)}: {_sizes(errors)}"
    for quantity, errors in validation.of_depths.items():
        if errors is not None:
            label = LABELS.get(quantity, quantity)
            yield f"{validation.runtime}, {label} extrapolated to {validation.depth} layers: {_sizes(errors)}"
    for way, reason in validation.not_fitted.items():
        yield f"{validation.runtime}: scaling {way} was not fitted: {reason}"


def _noise_list(noise: Noise) -> Markup:
    lines = (
        [] if noise.spread is None else [f"The middle half of a point's passes spans {ratio(noise.spread)} of the pass"]
    )
    lines += [*_clock_lines(noise), *(f"{counted(count, 'point')}: {text}" for text, count in noise.notes.items())]
    return element("ul", *(element("li", line) for line in lines))


def _clock_lines(noise: Noise) -> Iterator[str]:
    if noise.highest_clock_mhz is None:
        yield "The SM clock is not known"
        return
    yield (
        f"{noise.slow:,} of {noise.points:,} points ran at a low SM clock; it was {noise.lowest_clock_mhz:,.0f} to "
        f"{noise.highest_clock_mhz:,.0f} MHz"
    )
    if noise.measured_again is not None:
        yield f"Measured again for a low clock: {counted(noise.measured_again, 'point')}"
    if noise.throttled_by:
        yield f"The driver gave these reasons for a lower clock: {', '.join(noise.throttled_by)}"


def sweep(contents: Contents) -> Markup:
    """The clock along the sweep."""
    noise = contents.noise
    if noise.highest_clock_mhz is None:
        return section("sweep", "The clock along the sweep", element("p", "The SM clock of this table is not known."))
    how = (
        "Each dot is the SM clock while the passes of a length ran: where it is lower all kernels are slower, so "
        f"points over {CLOCK_DROP:.0%} below like ones are measured again, twice at most (orange), and red if they "
        "stayed low."
    )
    lines = element("ul", *(element("li", line) for line in _clock_lines(noise)))
    return section("sweep", "The clock along the sweep", note(how), plots("clock", contents), lines)


def requests(contents: Contents) -> Markup:
    """Estimated against real, by input and output length; the script fills the map."""
    title = "Estimated against the real model"
    if not contents.validations:
        return section("requests", title, element("p", NOT_VALIDATED))
    how = (
        "Each cell is a request of so many input tokens (down) and output tokens (across), with the error of its "
        "estimate in percent of the real latency: red is too slow, blue too fast, full colour is at the tolerance."
    )
    runtimes = [f"{validation.runtime} ({validation.file})" for validation in contents.validations]
    choices = element(
        "div",
        _choice("requests-of", "Real model", runtimes),
        _choice("requests-quantity", "Latency", [LABELS[quantity] for quantity in QUANTITIES]),
        _choice("requests-way", "Scaling", []),
        _choice("requests-set", "Lengths", ["not fitted", "fitted", "all"]),
        class_="choices",
    )
    grid = element("div", class_="wide", id="requests-map")
    return section("requests", title, note(how), choices, grid, element("p", class_="values", id="values-requests"))


def _choice(name: str, label: str, options: Sequence[str]) -> Markup:
    listed = (element("option", option, value=str(index)) for index, option in enumerate(options))
    return element("label", f"{label} ", element("select", *listed, id=name))


def serving(contents: Contents) -> Markup:
    """Steps of several sequences, measured in the table or by a validation."""
    parts: list[str] = []
    for validation in contents.validations:
        if validation.batched:
            parts += [element("h3", f"Real decode steps: {validation.runtime}"), _batched_table(validation.batched)]
    if parts:
        parts.insert(
            0,
            note(
                "Each line is a decode step of so many sequences with the same history: what the real model took, and "
                "what a simulator composes of the scaled rows, which adds rope and attn once a sequence, the rest once."
            ),
        )
    for grid in contents.grids:
        parts += [element("h3", grid.title), _grid_table(grid)]
    if contents.mixed.count:
        listed = [[name, milliseconds(ns)] for name, ns in contents.mixed.steps]
        more = contents.mixed.count - len(listed)
        parts += [element("h3", "Sequences of several lengths"), table(["step", "pass (ms)"], listed)]
        parts += [element("p", f"{more:,} more are in the rows file.", class_="about")] if more else []
    if not parts:
        parts.append(element("p", "No steps of several sequences were measured."))
    return section("serving", "Serving steps: batch and history", *parts)


def _batched_table(steps: Sequence[BatchedStep]) -> Markup:
    lines = [
        [
            f"{step.sequences:,}",
            f"{step.kv_len:,}",
            milliseconds(step.measured_ns),
            milliseconds(step.composed_ns),
            element("span", percent(step.error, signed=True), class_="error", data_error=f"{step.error:.4f}"),
        ]
        for step in steps
    ]
    return table(["sequences", "history (tokens)", "real (ms)", "composed (ms)", "error"], lines, class_="numbers")


def _grid_table(grid: StepGrid) -> Markup:
    downs = sorted({down for down, _across in grid.pass_ns})
    acrosses = sorted({across for _down, across in grid.pass_ns})
    lines = [[f"{down:,}", *(_cell(grid.pass_ns, down, across) for across in acrosses)] for down in downs]
    head = [f"{grid.down}, by {grid.across}: pass in ms", *(f"{across:,}" for across in acrosses)]
    return table(head, lines, class_="numbers")


def _cell(pass_ns: Mapping[tuple[int, int], int], down: int, across: int) -> str:
    return milliseconds(pass_ns[down, across]) if (down, across) in pass_ns else ""
