"""The main plots of a table as PNGs, for papers and slides. Imports no torch.

matplotlib draws them. It is no requirement of this project: whoever wants PNGs installs it.
"""

import importlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.report.contents import Contents, gather
from llm_profile.report.curves import SeriesCurves, head_row
from llm_profile.report.elements import PHASES
from llm_profile.report.layer_groups import colours, stacked
from llm_profile.report.validation_files import ValidationFile
from llm_profile.store.storage import write_whole
from llm_profile.validation.measured_steps import QUANTITIES, quantity_ns
from llm_profile.validation.report_text import LABELS

LENGTH_AXES = {"prefill": "prompt (tokens)", "decode": "KV cache before the step (tokens)"}

DOTS_PER_INCH = 150

MARKERS = {"prefill": "o", "decode": "D"}


def write_pictures(csv: Path, folder: Path) -> list[Path]:
    """Write `<model>-<plot>.png` for each plot that the table has numbers for, and return where they are.

    Raises UsageError as `gather` does, and where matplotlib is not installed.
    """
    contents = gather(csv)
    figure_class = _figure_class()
    written = []
    for name, draw in PICTURES.items():
        figure = figure_class(layout="constrained", dpi=DOTS_PER_INCH)
        if draw(figure, contents):
            figure.suptitle(_plain(f"{contents.model} on {contents.hardware}"))
            content = io.BytesIO()
            figure.savefig(content, format="png")
            written.append(folder / f"{csv.stem}-{name}.png")
            write_whole(written[-1], content.getvalue())
    return written


def _figure_class() -> Any:
    """matplotlib's, which draws without a display."""
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise UsageError("--png: matplotlib draws these pictures; install it (pip install matplotlib)") from None


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def _latency(figure: Any, contents: Contents) -> bool:
    """Passes by layer, stacked."""
    if not contents.curves:
        return False
    figure.set_size_inches(6.4 * len(contents.curves), 4.8)
    names = stacked(dict.fromkeys(row for of in contents.curves for row in of.rows))
    colour = colours(names)
    axes = figure.subplots(1, len(contents.curves), squeeze=False)[0]
    for axis, of in zip(axes, contents.curves, strict=True):
        rows = [row for row in names if row in of.rows]
        stack = [_in_pass_ms(row, of, contents) for row in rows]
        axis.stackplot(of.lengths, stack, colors=[colour[row] for row in rows], labels=list(map(_plain, rows)))
        axis.set(title=PHASES[of.name], xlabel=LENGTH_AXES[of.name], ylabel="pass (ms)", ylim=(0, None))
        axis.margins(x=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize="small", frameon=False)
    return True


def _in_pass_ms(row: str, of: SeriesCurves, contents: Contents) -> list[float]:
    ns = of.rows[row].latency_ns
    if row == head_row(of, contents.one_logit):
        ns = ns[:1] * len(ns)
    return [contents.weights[row] * value / 1e6 for value in ns]


def _roofline(figure: Any, contents: Contents) -> bool:
    """FLOP/s over FLOP per byte."""
    places, roof = contents.roofline.places, contents.roofline.roof
    if not places:
        return False
    figure.set_size_inches(8, 5)
    axis, colour = figure.subplots(), colours(stacked(places))
    for row, by_phase in places.items():
        for phase, at in by_phase.items():
            label = _plain(row) if phase == next(iter(by_phase)) else None
            intensities, rates = [p.intensity for p in at], [p.flops_per_sec / 1e12 for p in at]
            style = {"color": colour[row], "marker": MARKERS[phase], "markersize": 3, "linewidth": 0.8}
            axis.plot(intensities, rates, label=label, **style)
    axis.set(xscale="log", yscale="log", xlabel="FLOP per byte moved", ylabel="TFLOP/s")
    if roof:
        (first, last), bend = axis.get_xlim(), roof.flops_per_sec / roof.bandwidth_bytes_per_sec
        ends = [min(first, bend), bend, max(last, 2 * bend)]
        heights = [min(roof.flops_per_sec, x * roof.bandwidth_bytes_per_sec) / 1e12 for x in ends]
        axis.plot(ends, heights, color="0.5", linewidth=2.5, zorder=0, label="roof")
    axis.legend(fontsize="small", frameon=False)
    return True


def _clock(figure: Any, contents: Contents) -> bool:
    """The SM clock along the lengths."""
    known = [of for of in contents.curves if any(of.clock_mhz)]
    if not known:
        return False
    figure.set_size_inches(6.4 * len(known), 3.6)
    for axis, of in zip(figure.subplots(1, len(known), squeeze=False)[0], known, strict=True):
        clocks = [float("nan") if clock is None else clock for clock in of.clock_mhz]
        axis.plot(of.lengths, clocks, ".", markersize=3)
        axis.set(title=PHASES[of.name], xlabel=LENGTH_AXES[of.name], ylabel="SM clock (MHz)")
        axis.ticklabel_format(useOffset=False)
    return True


def _errors(figure: Any, contents: Contents) -> bool:
    """Errors of the applied scaling by input and output length, requests that were not fitted."""
    known = [validation for validation in contents.validations if any(validation.held_out)]
    if not known:
        return False
    figure.set_size_inches(4.4 * len(QUANTITIES), 3.9 * len(known))
    for line, validation in zip(figure.subplots(len(known), len(QUANTITIES), squeeze=False), known, strict=True):
        for axis, quantity in zip(line, QUANTITIES, strict=True):
            _map(axis, validation, quantity)
    return True


def _map(axis: Any, validation: ValidationFile, quantity: str) -> None:
    errors = dict(_held_out_errors(validation, quantity))
    inputs, outputs = (sorted({lengths[side] for lengths in errors}) for side in (0, 1))
    cells = [[errors.get((i, o), float("nan")) for o in outputs] for i in inputs]
    full = 100 * validation.tolerance or 1.0
    if errors:
        axis.imshow(cells, cmap="RdBu_r", vmin=-full, vmax=full, aspect="auto")
    for y, row in enumerate(cells):
        for x, error in enumerate(row):
            axis.text(x, y, "" if error != error else f"{error:.2f}", ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(outputs)), outputs)
    axis.set_yticks(range(len(inputs)), inputs)
    title = _plain(f"{LABELS[quantity]}, {validation.runtime}: error in %")
    axis.set(title=title, xlabel="output (tokens)", ylabel="input (tokens)")
    axis.title.set_fontsize(9)


def _held_out_errors(validation: ValidationFile, quantity: str) -> Sequence[tuple[tuple[int, int], float]]:
    """Percent, by (input, output)."""
    found = []
    scaled = validation.estimates[validation.mode]
    for real, guess, held_out in zip(validation.measured, scaled, validation.held_out, strict=True):
        real_ns, guess_ns = quantity_ns(real, quantity), quantity_ns(guess, quantity)
        if held_out and real_ns and guess_ns:
            found.append(((real.input_len, real.output_len), 100 * (guess_ns / real_ns - 1)))
    return found


PICTURES: dict[str, Callable[[Any, Contents], bool]] = {
    "latency": _latency,
    "roofline": _roofline,
    "clock": _clock,
    "errors": _errors,
}
"""By name. Each draws into a figure, and returns whether there was anything to draw."""
