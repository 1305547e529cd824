"""Sections on the table itself: what is missing, and its conditions. Imports no torch."""

from llm_profile.report.contents import Contents
from llm_profile.report.elements import PHASES, counted, section
from llm_profile.report.markup import Markup, element, table


def missing(contents: Contents) -> Markup:
    """What was asked for and is not there."""
    lines = [f"{counted(gap.count, 'point')}: {gap.reason} ({gap.text})" for gap in contents.gaps]
    lines += [
        f"{PHASES[of.name]}: {counted(of.left_out, 'length')} of the table left out of this page, to keep it small"
        for of in contents.curves
        if of.left_out
    ]
    names = {of.name for of in contents.curves}
    lines += [f"{label}: none were measured, or one length only" for name, label in PHASES.items() if name not in names]
    if not contents.validations:
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
