"""Sections on the layers of a model: latency, rooflines, shares, kernels. Imports no torch."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from llm_profile.report.contents import Contents
from llm_profile.report.curves import SeriesCurves, head_row
from llm_profile.report.elements import PHASES, note, plot, plots, section, swatch
from llm_profile.report.layer_groups import colours, stacked
from llm_profile.report.markup import Markup, element, joined, table
from llm_profile.validation.report_text import percent

CUT = re.compile(r"[<(]")


CUTLASS = re.compile(r"cutlass::Kernel2?<(\w{1,60})")


LONGEST_KERNEL = 60
"""Characters of a kernel's name in the table of shares."""


def latency(contents: Contents) -> Markup:
    """Stacked latency, and the list of layers that its script fills."""
    whose = "the full model" if contents.is_of_full_model else "the profiled blocks"
    head = "; lm_head of a prompt counts for one token, as an engine computes it" if contents.one_logit else ""
    how = (
        f"Each colour is the {_time(contents)} of one layer in a pass of {whose}, so the upper edge is the whole pass, "
        "the pale band at it the middle half of the measured passes, and each tick above the plot a length at which "
        f"layers change their kernels, darker the more of the pass they take{head}."
    )
    use = "Drag to zoom, double-click to zoom out; click a layer in the list to hide it."
    switch = element(
        "div",
        _button("latency-ms", "Milliseconds", pressed=True),
        _button("latency-share", "Share of the pass"),
        _button("latency-all", "All layers"),
        _button("latency-none", "None"),
        class_="buttons",
    )
    legend = element("div", class_="wide", id="layers")
    return section(
        "latency",
        "Latency by layer",
        note(how),
        element("p", use, class_="about"),
        switch,
        plots("latency", contents),
        legend,
    )


def _time(contents: Contents) -> str:
    return "GPU time" if contents.is_of_gpu else "time"


def _button(name: str, label: str, pressed: bool | None = None) -> Markup:
    return element("button", label, id=name, type="button", aria_pressed=None if pressed is None else "true")


def one_layer(contents: Contents) -> Markup:
    """One layer with its quartiles and its kernels, chosen by the reader."""
    how = (
        "The line is the time of one call of the layer (in one block), the band the middle half of its passes, and "
        "each vertical line a length from which on other kernels run; the axis of times does not start at 0."
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
                "Each dot is a layer at a length (circles: prompts, diamonds: decode steps), and the further it lies "
                "below the grey roof, the more time is lost: on the slope of the roof memory is the limit, on its flat "
                "part arithmetic."
            )
        )
    if of.why_not:
        parts.append(element("p", of.why_not, class_="warning"))
    if of.places:
        parts += [plot("roofline", "What each layer computes"), _legend(of.places)]
    if of.roof:
        roof = f"{of.roof.flops_per_sec / 1e12:,.4g} TFLOP/s, {of.roof.bandwidth_bytes_per_sec / 1e12:,.3g} TB/s"
        parts.append(element("p", f"Roof: {roof}, at the highest clock ({of.roof.source}).", class_="about"))
    if of.places and of.left_out:
        parts.append(
            element(
                "p",
                f"Not drawn, as what they have to compute is unknown or next to nothing: {', '.join(of.left_out)}.",
                class_="about",
            )
        )
    return section("roofline", "Each layer on its roofline", *parts)


def _legend(rows: Iterable[str]) -> Markup:
    colour = colours(stacked(rows))
    items = (element("span", swatch(colour[row]), row) for row in colour)
    return element("p", *items, class_="legend")


def layer_shares(contents: Contents) -> Markup:
    """What each row takes of all passes of a series, and its kernels."""
    how = (
        f"Each line is what a layer takes of the {_time(contents)} of all prompts, and of all decode steps, counted as "
        "often as the model has it, with the kernels that it runs at most lengths."
    )
    names = stacked(dict.fromkeys(row for of in contents.curves for row in of.rows))
    colour = colours(names)
    by_series = {of.name: _shares_of(of, contents) for of in contents.curves}
    largest = max((share for of in by_series.values() for share in of.values()), default=0.0) or 1.0
    head = ["layer", "times", *(PHASES[name] for name in by_series), "kernels"]
    lines = [
        [
            joined(swatch(colour[name]), name),
            f"{contents.weights[name]}",
            *(_bar(of.get(name, 0.0), largest, colour[name]) for of in by_series.values()),
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


def _bar(share: float, largest: float, colour: str) -> Markup:
    bar = element("i", class_="bar", style=f"width:{100 * share / largest:.1f}%;background:{colour}")
    return joined(element("span", bar, class_="bars"), element("span", percent(share)))


def _usual_kernels(row: str, curves: Sequence[SeriesCurves]) -> Markup:
    """The kernels that run at most lengths of each series, if they are others."""
    found = []
    for of in curves:
        counts: Counter[tuple[str, ...]] = Counter()
        for names, count in _lengths_by_kernels(of, row):
            counts[names] += count
        found += [names for names, _count in counts.most_common(1) if names]
    return joined(*(element("code", names) for names in dict.fromkeys(map(_short_list, found))))


def _short_list(kernels: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(map(short_kernel, kernels)))


def _lengths_by_kernels(curves: SeriesCurves, row: str) -> Iterator[tuple[tuple[str, ...], int]]:
    stretches = curves.rows[row].stretches if row in curves.rows else ()
    starts = [*(stretch.start for stretch in stretches), len(curves.lengths)]
    for stretch, end in zip(stretches, starts[1:], strict=True):
        yield stretch.kernels, end - stretch.start


def short_kernel(name: str) -> str:
    """A kernel without namespaces and arguments: `void at::native::reduce_kernel<512, ...>(...)` is `reduce_kernel`.

    Kernels of CUTLASS all have one name, and are told apart by the argument.
    """
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    if named := CUTLASS.match(plain):
        return named[1]
    return CUT.split(plain, maxsplit=1)[0].rpartition("::")[2].strip()[:LONGEST_KERNEL] or name[:LONGEST_KERNEL]
