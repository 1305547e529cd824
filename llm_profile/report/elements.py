"""Parts that several sections of a page have. Imports no torch."""

from llm_profile.report.contents import Contents
from llm_profile.report.markup import Markup, element

PHASES = {"prefill": "Prompts (prefill)", "decode": "Decode steps, one token"}


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


def ratio(value: float) -> str:
    """A ratio in percent with two figures at least: `0.0006` -> `0.06 %`."""
    size = abs(value) * 100
    decimals = 0 if size >= 10 else 1 if size >= 1 else 2 if size >= 0.1 else 3
    return f"{value * 100:.{decimals}f}\u00a0%"


def swatch(colour: str) -> Markup:
    return element("i", class_="swatch", style=f"background:{colour}")


def counted(count: int, one: str) -> str:
    """`1 point`, `4,096 points`."""
    return f"{count:,} {one}{'' if count == 1 else 's'}"
