"""A comparison as an HTML page that needs nothing else: no script, no network. Imports no torch."""

from pathlib import Path

from llm_profile.comparison.compare import ComparedPhase, ComparedRow, ComparedTable, Comparison
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
from llm_profile.report.elements import PHASES, note, section
from llm_profile.report.markup import Markup, element, joined, table
from llm_profile.report.page import document, style
from llm_profile.store.storage import write_whole

COLOURS = {Verdict.FASTER: "#2a8f4d", Verdict.SLOWER: "#d04348", Verdict.SAME: None, Verdict.UNDECIDED: "#b07a14"}
"""Of verdicts, readable on light and dark ground; None: that of the text."""


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page whole. Raises UsageError where the file system refuses."""
    write_whole(path, comparison_page(comparison).encode())


def comparison_page(comparison: Comparison) -> str:
    """The HTML. Whatever comes from the tables is escaped."""
    body = joined(
        element(
            "header",
            element("h1", title_of(comparison)),
            *_about("A", comparison.a),
            *_about("B", comparison.b),
            *(element("p", text, class_="banner") for text in (*comparison.incomparable, *comparison.warnings)),
        ),
        element("main", _conditions(comparison), *(_phase(phase, comparison) for phase in comparison.phases)),
        element(
            "footer", *(element("p", line) for line in closing_lines(comparison)), element("p", "Made by LLM-Profile.")
        ),
    )
    return document(title_of(comparison), style("page.css"), body)


def _about(letter: str, told: ComparedTable) -> list[Markup]:
    line = element("p", table_line(letter, told), class_="headline")
    return [line, *(element("p", f"{letter}: {text}", class_="banner") for text in told.notes)]


def _conditions(comparison: Comparison) -> Markup:
    lines = [list(line) for line in comparison.differing]
    shown = table(["condition", "A", "B"], lines, class_="conditions")
    return section(
        "conditions",
        "Conditions that differ",
        shown if lines else element("p", "All recorded conditions are the same."),
    )


def _phase(phase: ComparedPhase, comparison: Comparison) -> Markup:
    lines = [_line(row) for row in (*phase.rows, phase.sum)]
    return section(
        phase.name,
        PHASES[phase.name],
        note(how_to_read(comparison)),
        element("ul", *(element("li", line) for line in phase_lines(phase))),
        table([*COMPARED_COLUMNS], lines, class_="numbers"),
    )


def _line(row: ComparedRow) -> list[str]:
    *cells, verdict = cells_of(row)
    colour = COLOURS[row.verdict]
    return [*cells, element("b", verdict, style=colour and f"color:{colour}")]
