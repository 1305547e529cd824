"""A comparison printed for people, in 100 columns. Imports no torch."""

from typing import TYPE_CHECKING

from llm_profile.comparison.compare import ComparedPhase, Comparison
from llm_profile.comparison.ratio import Verdict
from llm_profile.comparison.wording import (
    COMPARED_COLUMNS,
    cells_of,
    closing_lines,
    how_to_read,
    phase_lines,
    table_line,
    title_of,
)

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100
"""Columns of the text where there is no terminal that has its own."""

STYLES = {Verdict.FASTER: "green", Verdict.SLOWER: "red", Verdict.SAME: "", Verdict.UNDECIDED: "yellow"}


def printable(text: str) -> str:
    """A name of a file's, without characters that would move the cursor or colour what follows."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def print_comparison(comparison: Comparison, console: "Console") -> None:
    """Print the conditions that differ, then a table for each phase."""

    def say(line: str, style: str = "") -> None:
        console.print(printable(line), style=style, highlight=False, soft_wrap=True, markup=False)

    say(title_of(comparison), "bold")
    for letter, told in (("A", comparison.a), ("B", comparison.b)):
        say(table_line(letter, told))
        for text in told.notes:
            say(f"   {text}", "yellow")
    for text in (*comparison.incomparable, *comparison.warnings):
        say(text, "yellow")
    if comparison.differing:
        _print_differing(comparison, console)
    else:
        say("All recorded conditions are the same.")
    for phase in comparison.phases:
        _print_phase(phase, console)
        for line in phase_lines(phase):
            say(f"   {line}")
    console.print()
    for line in (*closing_lines(comparison), how_to_read(comparison)):
        console.print(printable(line), highlight=False, markup=False)


def _print_differing(comparison: Comparison, console: "Console") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Conditions that differ", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("condition", overflow="fold", max_width=32)
    for letter in ("A", "B"):
        table.add_column(letter, overflow="fold")
    for line in comparison.differing:
        table.add_row(*(Text(printable(cell)) for cell in line))
    console.print(table)


def _print_phase(phase: ComparedPhase, console: "Console") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=phase.name, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    first, *others = COMPARED_COLUMNS
    table.add_column(first, overflow="fold", max_width=30)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    for row in (*phase.rows, phase.sum):
        if row is phase.sum:
            table.add_section()
        *cells, verdict = cells_of(row)
        table.add_row(*(Text(printable(cell)) for cell in cells), Text(verdict, style=STYLES[row.verdict]))
    console.print(table)
