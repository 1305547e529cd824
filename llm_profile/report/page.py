"""The page of a table: one HTML file that needs nothing else. Imports no torch."""

from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from llm_profile.report.accuracy_sections import accuracy, requests, serving, sweep
from llm_profile.report.contents import Contents, gather
from llm_profile.report.layer_sections import latency, layer_shares, one_layer, rooflines
from llm_profile.report.markup import Markup, element, joined, json_for_script
from llm_profile.report.page_data import page_data
from llm_profile.report.table_sections import conditions, missing
from llm_profile.store.storage import write_whole

FOLDER = Path(__file__).with_name("page")
STYLE_PARTS = ("uplot/uPlot.min.css", "page.css")
SCRIPT_PARTS = (
    "uplot/uPlot.iife.min.js",
    *("data.js", "ui.js", "latency.js", "layer.js", "roofline.js", "clock.js", "requests.js", "main.js"),
)
"""Of `page/`, in the order in which they run."""

UPLOT_LICENCE = "uplot/LICENSE"
"""Of uPlot, which has to be in each copy of it."""

UPLOT = "uPlot 1.6.32"

SECTIONS = (
    *(accuracy, latency, rooflines, layer_shares, one_layer),
    *(sweep, requests, serving, missing, conditions),
)
"""In the order of the page."""

NEED_CURVES = (latency, layer_shares, one_layer, sweep)
"""Sections that a table without two lengths of a series has nothing for."""


def default_path(csv: Path) -> Path:
    """`<model>.report.html`, beside the table."""
    return csv.with_name(f"{csv.stem}.report.html")


def write_report(csv: Path, output: Path | None = None) -> Path:
    """Write the page of the table at `csv` whole, and return where it is. Raises UsageError as `gather` does."""
    path = output or default_path(csv)
    write_whole(path, report_page(gather(csv)).encode())
    return path


def report_page(contents: Contents) -> str:
    """The HTML."""
    title = f"{contents.model} on {contents.hardware}"
    shown = [of for of in SECTIONS if contents.curves or of not in NEED_CURVES]
    body = joined(
        element(
            "header",
            element("button", "Light or dark", id="theme", type="button"),
            element("h1", title),
            element("p", contents.headline, class_="headline"),
            *(element("p", text, class_="banner") for text in contents.banners),
        ),
        element("noscript", element("p", "The plots need JavaScript; all else can be read without.", class_="banner")),
        element("main", *(of(contents) for of in shown)),
        element("footer", element("p", f"Made by LLM-Profile of {contents.csv.name}. Plots: {UPLOT}.")),
    )
    return _document(title, body, _data(contents))


def _data(contents: Contents) -> Markup:
    return json_for_script(
        page_data(contents.curves, contents.weights, contents.one_logit, contents.roofline, contents.validations)
    )


def _document(title: str, body: Markup, data: Markup) -> str:
    script = "\n".join([f"/* {UPLOT}\n{_part(UPLOT_LICENCE)} */", *map(_part, SCRIPT_PARTS)])
    allowed = b64encode(sha256(script.encode()).digest()).decode()
    scripts = joined(
        element("script", data, id="data", type="application/json"),
        element("script", Markup(script)),
    )
    return document(title, style(*STYLE_PARTS), joined(body, scripts), f"; script-src 'sha256-{allowed}'")


def style(*parts: str) -> Markup:
    """Style sheets of `page/` as one."""
    return Markup("\n".join(map(_part, parts)))


def document(title: str, css: Markup, body: Markup, more_allowed: str = "") -> str:
    """A page that loads nothing. more_allowed: what its policy allows beside pictures and styles in the page itself."""
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'{more_allowed}"
    head = joined(
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", title),
        element("style", css),
    )
    html = element("html", element("head", head), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{html}\n"


def _part(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8").strip()
