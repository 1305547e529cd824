#!/usr/bin/env python3
"""Draw a table as an SVG: latency of one pass of the full model over prompt length and over cache length, by layer.

A pass has each row of the model once, and each row of a block times the number of such blocks. `lm_head` is that of one
token, since a prompt needs it for its last token only. Each point of a curve is a mean over neighbouring lengths. Text
and lines are grey, to be readable on white and on black; the background is transparent.

    python3 bench/picture.py H200/meta-llama/Llama-3.1-8B.csv docs/latency.svg
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, wherever this is run from

import pandas as pd

from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, UsageError
from llm_profile.report.layer_groups import LAYER_GROUPS, OTHER_ROWS
from llm_profile.store.storage import write_whole

LATENCY = "latency(ns)"
HEAD_ROW = "lm_head"

GREY = "#787878"
"""Colour of text and axes. Its contrast ratio to white is 4.4, to GitHub's dark background 4.3."""

WIDTH, HEIGHT = 960, 380
TOP, BOTTOM = 70, 320
"""Upper and lower end of both vertical axes, in pixels from the top."""

PANEL_WIDTH = 310
MOST_POINTS = 260
"""Most points of a curve; so many neighbouring lengths are averaged that there are no more."""

TOKEN_STEPS = [2**exponent for exponent in range(30)]
MS_STEPS = [digit * 10.0**exponent for exponent in range(-6, 6) for digit in (1, 2, 5)]
"""Possible distances between the numbers at an axis, ascending; the first that fits is used."""


@dataclass(frozen=True)
class Panel:
    """One of the two diagrams.

    axis: label of the horizontal axis. left: left edge in pixels. latency_ms: a row per length in tokens, a column per
    group.
    """

    title: str
    axis: str
    left: int
    latency_ms: pd.DataFrame

    @property
    def right(self) -> int:
        """The right edge in pixels."""
        return self.left + PANEL_WIDTH


def pass_latencies(csv: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Latency of a pass of the full model in ms, over prompt length and over cache length, with a column per group.

    Raises UsageError for files that are no table of LLM-Profile, and for a table without both phases.
    """
    try:
        table = pd.read_csv(csv)
        meta = json.loads(csv.with_suffix(".meta.json").read_bytes())
        blocks = {kind["name"]: kind["count"] for kind in meta["kinds"]}
        count_of = {row: blocks[kind] for row, kind in meta["block_rows"].items()}
        table["ms"] = table[LATENCY] / 1e6 * table["layer_name"].map(count_of).fillna(1)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{csv}: cannot be read as a table with its .meta.json ({error})") from error
    table["row"] = table["layer_name"].str.rpartition(".")[2]
    of_one_token = table[(table["row"] == HEAD_ROW) & (table["input"] == 1) & (table["kv_cache"] == 0)]["ms"].sum()
    table.loc[table["row"] == HEAD_ROW, "ms"] = of_one_token
    groups = {row: label for label, _, rows in LAYER_GROUPS for row in rows}
    table["group"] = table["row"].map(groups).fillna(OTHER_ROWS)
    prefill, decode = table[table["kv_cache"] == 0], table[table["input"] == 1]
    if prefill["input"].nunique() < 2 or decode["kv_cache"].nunique() < 2:
        raise UsageError(f"{csv}: needs two lengths of each phase; measure with --mode both")
    return _by_length(prefill, "input"), _by_length(decode, "kv_cache")


def _by_length(rows: pd.DataFrame, length: str) -> pd.DataFrame:
    """Sums per group, a column each, over the column `length`; neighbouring lengths are averaged."""
    sums = rows.pivot_table(index=length, columns="group", values="ms", aggfunc="sum", fill_value=0.0)
    sums = sums[[label for label, _, _ in LAYER_GROUPS if label in sums]].reset_index()
    size = -(-len(sums) // MOST_POINTS)
    return sums.groupby(sums.index // size).mean().set_index(length)


def ticks(highest: float, steps: Sequence[float], most: int) -> list[float]:
    """The numbers at an axis: 0, and multiples of a step up to the first that is not below `highest`.

    steps: possible steps, ascending; the first is used with which there are at most `most` multiples.
    """
    step = next(step for step in steps if ceil(highest / step) <= most)
    return [step * i for i in range(ceil(highest / step) + 1)]


def panel_lines(panel: Panel) -> Iterator[str]:
    """The SVG elements of one diagram: title, horizontal lines, areas, axes and their labels."""
    stacked = panel.latency_ms.cumsum(axis=1)
    tokens_shown = ticks(panel.latency_ms.index[-1], TOKEN_STEPS, 4)
    ms_shown = ticks(stacked.to_numpy().max(), MS_STEPS, 7)

    def x(length: float) -> float:
        return panel.left + PANEL_WIDTH * length / tokens_shown[-1]

    def y(ms: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * ms / ms_shown[-1]

    yield f'<text x="{panel.left}" y="{TOP - 14}" class="title">{panel.title}</text>'
    for ms in ms_shown:
        yield f'<path d="M{panel.left} {y(ms):.1f}H{panel.right}" class="grid"/>'
        yield f'<text x="{panel.left - 8}" y="{y(ms) + 4:.1f}" text-anchor="end">{ms:,.4g}</text>'
    colours = {label: colour for label, colour, _ in LAYER_GROUPS}
    for label in reversed(stacked.columns):  # each area reaches down to the axis, and lower ones are drawn over it
        line = "L".join(
            f"{x(length):.1f} {y(ms):.1f}" for length, ms in zip(stacked.index, stacked[label], strict=True)
        )
        first, last = x(stacked.index[0]), x(stacked.index[-1])
        yield f'<path d="M{first:.1f} {BOTTOM}L{line}L{last:.1f} {BOTTOM}Z" fill="{colours[label]}"/>'
    yield f'<path d="M{panel.left} {BOTTOM}H{panel.right}" stroke="{GREY}"/>'
    for tokens in tokens_shown:
        yield f'<text x="{x(tokens):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{tokens:,.0f}</text>'
    yield f'<text x="{panel.left + PANEL_WIDTH / 2}" y="{BOTTOM + 42}" text-anchor="middle">{panel.axis}</text>'


def legend_lines(labels: Sequence[str], left: int) -> Iterator[str]:
    """The SVG elements of the legend: a coloured square and a label for each group, the top of the stack first."""
    shown = [(label, colour) for label, colour, _ in reversed(LAYER_GROUPS) if label in labels]
    for i, (label, colour) in enumerate(shown):
        y = TOP + 10 + 26 * i
        yield f'<rect x="{left}" y="{y}" width="14" height="14" fill="{colour}"/>'
        yield f'<text x="{left + 22}" y="{y + 11}">{label}</text>'


def svg_of(csv: Path) -> str:
    """The picture of a table as SVG. Raises UsageError as `pass_latencies` does."""
    prefill, decode = pass_latencies(csv)
    names = pd.read_csv(csv, nrows=1).iloc[0]
    title = f"{names['model']} on {names['hardware']}: GPU time of one pass of the model, by layer"
    panels = (
        Panel("Prefill", "prompt (tokens)", 66, prefill),
        Panel("Decode, one token", "KV cache before the step (tokens)", 436, decode),
    )
    labels = list(dict.fromkeys([*prefill.columns, *decode.columns]))
    middle = (TOP + BOTTOM) / 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        "<style>",
        f"text {{ font: 13px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; fill: {GREY} }}",
        ".title { font-weight: 600; font-size: 14px }",
        f".grid {{ stroke: {GREY}; stroke-opacity: .3 }}",
        "</style>",
        f'<text x="66" y="24" class="title">{escape(title)}</text>',
        f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">latency of a pass (ms)</text>',
        *(line for panel in panels for line in panel_lines(panel)),
        *legend_lines(labels, panels[-1].right + 30),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("csv", type=Path, help="a table of LLM-Profile, with its .meta.json beside it")
    parser.add_argument("svg", type=Path, help="the picture to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        write_whole(arguments.svg, svg_of(arguments.csv).encode())
    except UsageError as error:
        print(f"picture.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
