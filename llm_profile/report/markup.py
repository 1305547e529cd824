"""HTML that cannot be broken by what stands in it: text is escaped unless it is Markup. Imports no torch."""

import html
import json
from typing import Any

from llm_profile.errors import harmless


def escape(text: str) -> str:
    """Text for a page: no markup, and no control characters."""
    return html.escape(harmless(text), quote=True)


class Markup(str):
    """HTML as it is to stand in a page."""


def element(name: str, *children: str, **attributes: str | int | None) -> Markup:
    """An element. children: text, which is escaped, or Markup. attributes: `class_` and the like without the `_`.

    Those that are None are left out.
    """
    shown = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{''.join(shown)}>{joined(*children)}</{name}>")


def joined(*children: str) -> Markup:
    """Text and Markup, one behind the other."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def table(head: list[str], lines: list[list[str]], **attributes: str | int | None) -> Markup:
    """A table. lines: the first cell of each is a head of its own."""
    cells = joined(*(element("th", cell, scope="col") for cell in head))
    body = (
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in lines
    )
    return element(
        "div",
        element("table", element("thead", element("tr", cells)), element("tbody", *body), **attributes),
        class_="wide",
    )


def json_for_script(value: Any) -> Markup:
    """JSON for a `<script>`: nothing in it ends the script, or is taken for markup."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII only
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))
