"""The sections of a page, without its plots: what can be read without a script. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence

from llm_profile.report.comparisons import KERNELS, Comparison
from llm_profile.report.contents import Contents
from llm_profile.report.curves import SeriesCurves, head_row
from llm_profile.report.facts import Noise
from llm_profile.report.layer_groups import colours, stacked
from llm_profile.report.markup import Markup, element, joined, table
from llm_profile.report.serving import StepGrid
from llm_profile.validation.judgement import BatchedStep, Errors
from llm_profile.validation.report_text import LABELS, milliseconds, percent
from llm_profile.validation.steps import QUANTITIES

PHASES = {"prefill": "Prompts (prefill)", "decode": "Decode steps, one token"}

RUNTIMES = {"eager": "transformers, eager", "cuda-graph": "CUDA graphs, as serving engines run"}
"""How the real model ran, for those who do not know the options."""

WAYS = {KERNELS: "none: the sum of the kernels"}

NOT_VALIDATED = (
    "This table was not compared with the real model, so nobody knows how far estimates from it are off. "
    "validation.py does that."
)


def section(name: str, title: str, *parts: str) -> Markup:
    """A section with a heading that links lead to."""
    return element("section", element("h2", title), *parts, id=name)


def note(text: str) -> Markup:
    """How to read what is below."""
    return element("p", text, class_="how")


def plot(name: str, label: str) -> Markup:
    """Where the script draws, with the line that tells the values under the pointer."""
    title = element("h3", label)
    canvas = element("div", class_="plot", id=f"plot-{name}", role="img", aria_label=label)
    return element(
        "div", title, canvas, element("p", class_="values", id=f"values-{name}", aria_live="off"), class_="panel"
    )


def plots(name: str, contents: Contents) -> Markup:
    """One for each series of the table."""
    panels = (plot(f"{name}-{of.name}", PHASES[of.name]) for of in contents.curves)
    return element("div", *panels, class_="panels")


def accuracy(contents: Contents) -> Markup:
    """How far estimates are off, and how noisy the machine was: the first question."""
    parts: list[str] = [_error_cards(comparison) for comparison in contents.comparisons]
    if parts:
        parts.insert(
            0,
            note(
                "Errors are |estimated - measured| / measured of requests whose lengths were not used to fit the "
                "scaling. An error below the spread of the real model itself cannot be told from noise."
            ),
        )
        parts.append(_error_table(contents.comparisons))
    else:
        parts.append(element("p", NOT_VALIDATED))
    parts += [element("p", text, class_="warning") for text in contents.notices]
    parts += [element("h3", "How noisy the machine was"), _noise_list(contents.noise)]
    return section("accuracy", "How far the estimate is off", *parts)


def _error_cards(comparison: Comparison) -> Markup:
    processes = "" if comparison.processes is None else f" in {comparison.processes} processes"
    depth = f"{comparison.depth} of {comparison.model_depth} layers"
    errors = comparison.errors.get(comparison.mode, {})
    held_out = sum(comparison.held_out)
    title = element("h3", RUNTIMES.get(comparison.runtime, comparison.runtime))
    about = (
        f"{held_out} requests of unseen lengths, scaling {comparison.mode}, {depth}, {comparison.repeat} rounds"
        f"{processes}, {comparison.validated[:10]}"
    )
    parts: list[str] = [title, element("p", about, class_="about")]
    parts.append(element("div", *(_error_card(q, errors.get(q), comparison) for q in QUANTITIES), class_="cards"))
    parts += [element("p", text, class_="warning") for text in _doubts(comparison)]
    return element("div", *parts, class_="comparison")


def _error_card(quantity: str, errors: Errors | None, comparison: Comparison) -> Markup:
    big = "-" if errors is None else ratio(errors.mean)
    lines = [] if errors is None else [f"at worst {ratio(errors.worst)}"]
    for label, spreads in (("runs differ by", comparison.spread), ("processes by", comparison.spread_between)):
        if (value := spreads.get(quantity)) is not None:
            lines.append(f"{label} {ratio(value)}")
    missed = "card over" if quantity in comparison.over_tolerance or quantity in comparison.noisy else "card"
    small = (element("span", line) for line in lines)
    return element("div", element("b", LABELS[quantity]), element("strong", big), *small, class_=missed)


def _doubts(comparison: Comparison) -> Iterator[str]:
    for quantity, value in comparison.noisy.items():
        yield (
            f"Too noisy: {LABELS.get(quantity, quantity)} of the same steps differs by {percent(value)} between "
            "processes, so no error below that can be told on this machine."
        )
    if comparison.over_tolerance:
        names = ", ".join(LABELS.get(quantity, quantity) for quantity in comparison.over_tolerance)
        yield f"Over the tolerance of {percent(comparison.tolerance)}: {names}."
    if not comparison.is_current:
        yield (
            f"{comparison.file} is of an earlier state of this table; validation.py compares it anew. Errors of ways of "
            "scaling that were not applied are told as they were then."
        )
    yield from comparison.warnings


def _error_table(comparisons: Sequence[Comparison]) -> Markup:
    head = ["real model", "scaling", *(f"{LABELS[quantity]}: mean / worst" for quantity in QUANTITIES)]
    lines = [
        [
            comparison.runtime,
            f"{WAYS.get(way, way)}{' (applied)' if way == comparison.mode else ''}",
            *(_mean_and_worst(errors[quantity]) for quantity in QUANTITIES),
        ]
        for comparison in comparisons
        for way, errors in comparison.errors.items()
    ]
    return element("details", element("summary", "Errors of every way of scaling"), table(head, lines))


def _mean_and_worst(errors: Errors | None) -> str:
    return "-" if errors is None else f"{ratio(errors.mean)} / {ratio(errors.worst)}"


def _noise_list(noise: Noise) -> Markup:
    lines = []
    if noise.spread is not None:
        lines.append(f"The middle half of a point's passes spans {ratio(noise.spread)} of the pass (median point).")
    if noise.highest_clock_mhz is not None:
        slow = f"{noise.slow:,} of {noise.points:,} points ran at a low SM clock"
        span = f"it was {noise.lowest_clock_mhz:,.0f} to {noise.highest_clock_mhz:,.0f} MHz"
        lines.append(f"{slow}; {span}.")
    else:
        lines.append("The SM clock is not known.")
    if noise.throttled_by:
        lines.append(f"The driver lowered the clock for: {', '.join(noise.throttled_by)}.")
    lines += [f"{count:,} points: {text}" for text, count in noise.notes.items()]
    return element("ul", *(element("li", line) for line in lines))


def latency(contents: Contents) -> Markup:
    """Stacked latency, and the list of layers that its script fills."""
    whose = "the full model" if contents.is_of_full_model else "the profiled blocks"
    how = (
        f"Each colour is the GPU time of one layer in a pass of {whose}, stacked: the upper edge is the whole pass. "
        "The pale band around it is the middle half of the measured passes. Ticks at the top mark lengths at which a "
        "layer changes its kernels, darker the more of the pass it takes. Drag to zoom, double-click to zoom out; "
        "click a layer below to hide it."
    )
    if contents.one_logit:
        how += " lm_head of a prompt counts for one token, as an engine computes it."
    switch = element(
        "div",
        _button("latency-ms", "Milliseconds", pressed=True),
        _button("latency-share", "Share of the pass"),
        _button("latency-all", "All layers"),
        _button("latency-none", "None"),
        class_="buttons",
    )
    legend = element("div", class_="wide", id="layers")
    return section("latency", "Latency by layer", note(how), switch, plots("latency", contents), legend)


def _button(name: str, label: str, pressed: bool | None = None) -> Markup:
    return element("button", label, id=name, type="button", aria_pressed=None if pressed is None else "true")


def one_layer(contents: Contents) -> Markup:
    """One layer with its quartiles and its kernels, chosen by the reader."""
    how = (
        "The line is the time of one call of the layer (of one block), the band the middle half of its passes. A "
        "vertical line marks each length at which other kernels run."
    )
    names = stacked(dict.fromkeys(row for of in contents.curves for row in of.rows))
    options = (element("option", name, value=str(index)) for index, name in enumerate(names))
    choice = element("label", "Layer ", element("select", *options, id="layer-choice"))
    kernels = element("div", id="layer-kernels")
    return section(
        "layer", "One layer, and the kernels behind it", note(how), choice, plots("layer", contents), kernels
    )


def rooflines(contents: Contents) -> Markup:
    """Each layer under the roof of the GPU."""
    of = contents.roofline
    parts: list[str] = []
    if of.places:
        parts.append(
            note(
                "Each dot is a layer at a length. To the right, more is computed for each byte moved; above, more is "
                "computed a second. The grey roof is what the GPU can do at most: on its slope memory is the limit, on its "
                "flat part arithmetic. The lower a dot lies under the roof, the more time is lost. Circles are prompts, "
                "diamonds decode steps."
            )
        )
    if of.why_not:
        parts.append(element("p", of.why_not, class_="warning"))
    if of.places:
        parts.append(plot("roofline", "Arithmetic of each layer"))
    if of.roof:
        roof = f"{of.roof.flops_per_sec / 1e12:,.4g} TFLOP/s, {of.roof.bandwidth_bytes_per_sec / 1e12:,.3g} TB/s"
        parts.append(element("p", f"Roof: {roof}, at the highest clock ({of.roof.source}).", class_="about"))
    if of.places and of.left_out:
        parts.append(
            element("p", f"Without a place, as they hardly compute: {', '.join(of.left_out)}.", class_="about")
        )
    return section("roofline", "Each layer on its roofline", *parts)


def shares(contents: Contents) -> Markup:
    """What each row takes of all passes of a series, and its kernels."""
    how = (
        "How much of the GPU time of all prompts, and of all decode steps, each layer takes, counted as often as the model "
        "has it; behind it the kernels that it runs at most lengths."
    )
    names = stacked(dict.fromkeys(row for of in contents.curves for row in of.rows))
    colour = colours(names)
    by_series = {of.name: _shares_of(of, contents) for of in contents.curves}
    head = ["layer", "times", *(PHASES[name] for name in by_series), "kernels"]
    lines = [
        [
            joined(element("i", class_="swatch", style=f"background:{colour[name]}"), name),
            f"{contents.weights[name]}",
            *(_bar(of.get(name, 0.0), colour[name]) for of in by_series.values()),
            _usual_kernels(name, contents.curves),
        ]
        for name in reversed(names)
    ]
    return section("shares", "Share of each layer", note(how), table(head, lines, class_="shares"))


def _shares_of(curves: SeriesCurves, contents: Contents) -> dict[str, float]:
    head = head_row(curves, contents.one_logit)
    spent = {
        row: contents.weights[row]
        * (len(curve.latency_ns) * curve.latency_ns[0] if row == head else sum(curve.latency_ns))
        for row, curve in curves.rows.items()
    }
    total = sum(spent.values()) or 1
    return {row: ns / total for row, ns in spent.items()}


def _bar(share: float, colour: str) -> Markup:
    bar = element("i", class_="bar", style=f"width:{share * 100:.2f}%;background:{colour}")
    return joined(element("span", bar, class_="bars"), element("span", percent(share)))


def _usual_kernels(row: str, curves: Sequence[SeriesCurves]) -> Markup:
    """Of each series the kernels that run at most lengths, and how many lists of kernels there are."""
    parts = []
    for of in curves:
        counts: dict[tuple[str, ...], int] = {}
        for names, count in _lengths_by_kernels(of, row):
            counts[names] = counts.get(names, 0) + count
        usual = max(counts, key=counts.__getitem__, default=())
        if usual and usual not in parts:
            parts.append(usual)
    return joined(*(element("code", "\n".join(short_kernel(name) for name in names)) for names in parts))


def _lengths_by_kernels(curves: SeriesCurves, row: str) -> Iterator[tuple[tuple[str, ...], int]]:
    stretches = curves.rows[row].stretches if row in curves.rows else ()
    starts = [*(stretch.start for stretch in stretches), len(curves.lengths)]
    for stretch, end in zip(stretches, starts[1:], strict=True):
        yield stretch.kernels, end - stretch.start


LONGEST_KERNEL = 90
"""Characters of a kernel's name in the table of shares."""


def short_kernel(name: str) -> str:
    """The start of a kernel's name: templates run to thousands of characters."""
    plain = name.removeprefix("void ")
    return plain if len(plain) <= LONGEST_KERNEL else f"{plain[:LONGEST_KERNEL]}..."


def sweep(contents: Contents) -> Markup:
    """The clock along the sweep."""
    noise = contents.noise
    if noise.highest_clock_mhz is None:
        return section("sweep", "The clock along the sweep", element("p", "The SM clock of this table is not known."))
    how = (
        "Each dot is the SM clock while the passes of a length ran, which were measured in shuffled order. A point whose "
        "clock lies over 3 % below that of like points is measured again, twice at most; those that stayed low are red. "
        "Where the clock is lower, all kernels are slower."
    )
    return section("sweep", "The clock along the sweep", note(how), plots("clock", contents), _noise_list(noise))


def requests(contents: Contents) -> Markup:
    """Estimated against real, by input and output length; the script fills the map."""
    title = "Estimated against the real model"
    if not contents.comparisons:
        return section("requests", title, element("p", NOT_VALIDATED))
    how = (
        "Each cell is a request of so many input and output tokens. The number is how far the estimate is from the real "
        "model in percent: red is too slow, blue too fast, white is right. Full colour is at the tolerance."
    )
    runtimes = [f"{comparison.runtime} ({comparison.file})" for comparison in contents.comparisons]
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
    for comparison in contents.comparisons:
        if comparison.batched:
            parts += [element("h3", f"Real decode steps: {comparison.runtime}"), _batched_table(comparison.batched)]
    if parts:
        parts.insert(
            0,
            note(
                "Decode steps of several sequences with the same history: as the real model took, and as a simulator "
                "composes them of this table, which adds rope and attn once for each sequence and all else once. Blue is "
                "composed too fast, red too slow."
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


def missing(contents: Contents) -> Markup:
    """What was asked for and is not there."""
    lines = [f"{gap.count:,} points: {gap.reason} ({gap.text})" for gap in contents.gaps]
    lines += [
        f"{of.left_out:,} lengths of {PHASES[of.name]} are in the table and not on this page, which has every so many-th"
        for of in contents.curves
        if of.left_out
    ]
    names = {of.name for of in contents.curves}
    lines += [f"{label}: none were measured, or one length only" for name, label in PHASES.items() if name not in names]
    if not contents.comparisons:
        lines.append("A comparison with the real model (validation.py)")
    parts = element("ul", *(element("li", line) for line in lines)) if lines else element("p", "Nothing is missing.")
    return section("missing", "What is missing", parts)


def conditions(contents: Contents) -> Markup:
    """Under which conditions it was measured."""
    head = ["condition", "value"]
    runs = (
        element("details", element("summary", title), table(head, [list(line) for line in lines], class_="conditions"))
        for title, lines in contents.runs
    )
    return section(
        "conditions",
        "Conditions",
        table(head, [list(line) for line in contents.conditions], class_="conditions"),
        *runs,
    )


def ratio(value: float) -> str:
    """A ratio in percent with two figures at least: `0.0006` -> `0.06 %`."""
    return f"{value * 100:.2g} %" if abs(value) < 0.1 else f"{value * 100:.0f} %"
