"""The page of a report in a real browser: drawn whole, in both themes, on a phone, without errors or requests.

Skipped where no Chromium is installed. Screenshots are kept in tests/screenshots/.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llm_profile.report.page import write_report
from llm_profile.store.files import read_table
from llm_profile.validation.estimate import Estimate
from tests.chromium import Browser, Page, find_chromium, running
from tests.report_samples import LLAMA, OPT, finished, hostile, validated
from tests.table_samples import sweep_points

CHROMIUM = find_chromium()
SCREENSHOTS = Path(__file__).parent / "screenshots"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium); CHROMIUM names one that is elsewhere"
)

PLOTS = [
    *(f"{name}-{series}" for name in ("latency", "layer", "clock") for series in ("prefill", "decode")),
    "roofline",
]

PHONE = 360
"""Width of a small phone in pixels."""

COLOURS_OF = """(name) => {
  const canvas = document.querySelector(`#plot-${name} canvas`);
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] > 200) colours.add(pixels.slice(i, i + 3).join());
  return [...colours];
}"""
"""The opaque colours of a plot."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    SCREENSHOTS.mkdir(exist_ok=True)
    with running(CHROMIUM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the README's table."""
    return write_report(LLAMA, tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a table with validations of two runtimes."""
    return write_report(OPT, tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab that must have had no problem in the end."""
    page = browser.page()
    yield page
    page.evaluate("1")  # what it told last is read
    assert not page.problems


def values(page: Page, name: str) -> str:
    text = page.evaluate(f"document.getElementById('values-{name}').textContent")
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_plot_is_drawn(page: Page, llama: Path, dark: bool) -> None:
    page.open(llama, dark=dark)
    drawn = page.evaluate("[...document.querySelectorAll('.plot')].map((e) => e.id.slice(5))")
    assert sorted(drawn) == sorted(PLOTS)
    few = {name: len(page.evaluate(f"({COLOURS_OF})('{name}')")) for name in PLOTS}
    assert min(few.values()) >= 3, few
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    page.screenshot(SCREENSHOTS / f"page-{'dark' if dark else 'light'}.png")
    for name in page.evaluate("[...document.querySelectorAll('section')].map((e) => e.id)"):
        page.screenshot(SCREENSHOTS / f"{name}-{'dark' if dark else 'light'}.png", f"#{name}")


def test_each_layer_has_its_colour_in_the_stack(page: Page, llama: Path) -> None:
    page.open(llama)
    found = {tuple(map(int, colour.split(","))) for colour in page.evaluate(f"({COLOURS_OF})('latency-prefill')")}
    colours = page.evaluate("REPORT.rows.map((row) => row.colour)")
    parts = [tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5)) for colour in colours]
    assert sum(part in found for part in parts) >= 15, "thin layers may be less than a pixel"


def test_the_script_reads_the_numbers_of_the_table(page: Page, llama: Path) -> None:
    page.open(llama)
    table = read_table(LLAMA)
    estimate = Estimate.of(table)
    names = page.evaluate("REPORT.rows.map((row) => row.name)")
    shown = page.evaluate("REPORT.series.map((series) => series.rows.map((row) => row.ns))")
    totals = page.evaluate("REPORT.series.map((series) => series.total)")
    for of, total, lengths in zip(shown, totals, (range(1, 2049), range(2049)), strict=True):
        decode = len(lengths) == 2049
        points = [(1, n) if decode else (n, 0) for n in lengths]
        by_key = {(point.input_len, point.kv_len): point for point in table.records}
        for name, ns in zip(names, of, strict=True):
            assert ns == [table.latency_ns(name, by_key[point]) for point in points]
        wanted = (estimate.decode_ns if decode else estimate.prefill_ns)(np.array(lengths))
        np.testing.assert_allclose(total, wanted, rtol=1e-12)


def test_the_pointer_tells_values(page: Page, llama: Path) -> None:
    page.open(llama)
    for name in (name for name in PLOTS if name != "roofline"):
        before = values(page, name)
        page.hover(f"#plot-{name} .u-over", across=0.3)
        after = values(page, name)
        assert re.match(r"(\d+ tokens|cache of \d+): \S", after), (name, after)
        assert after != before, name
    table = read_table(LLAMA)
    page.hover("#plot-layer-prefill .u-over", across=0.3)
    text = values(page, "layer-prefill")
    length = int(text.partition(" ")[0].replace(",", ""))
    (point,) = [p for p in table.records if p.kv_len == 0 and p.input_len == length]
    row = table.records[point].rows[page.evaluate("REPORT.rows[0].name")]
    assert row.kernels[-1] in text
    assert f": {row.measurement.latency_ns / 1000:.4g} \N{MICRO SIGN}s" in text


def test_the_pointer_finds_dots_of_the_roofline(page: Page, llama: Path) -> None:
    page.open(llama)
    hint = values(page, "roofline")
    found = set()
    for across in np.linspace(0.1, 0.95, 12):
        for down in (0.1, 0.3, 0.6):
            page.hover("#plot-roofline .u-over", across=float(across), down=down)
            found.add(values(page, "roofline"))
    told = found - {hint}
    assert len(told) > 5
    for text in told:
        assert re.search(r"TFLOP/s at \S+ FLOP per byte, \d+ % of what the roof allows; the limit is", text)


def test_layers_are_hidden_and_shown(page: Page, llama: Path) -> None:
    page.open(llama)
    first = "#layers tbody tr:first-child button"
    assert page.evaluate(f"document.querySelector('{first}').textContent") == "lm_head"
    before = page.evaluate("plots.get('latency-decode').drawn.scales.y.max")
    page.click(first)
    assert page.evaluate(f"document.querySelector('{first}').getAttribute('aria-pressed')") == "false"
    assert page.evaluate("plots.get('latency-decode').drawn.scales.y.max") < before
    page.click("#latency-none")
    assert page.evaluate("document.querySelectorAll('#layers [aria-pressed=true]').length") == 0
    page.click("#latency-all")
    assert page.evaluate("document.querySelectorAll('#layers [aria-pressed=true]').length") == 19
    assert page.evaluate("plots.get('latency-decode').drawn.scales.y.max") == before
    page.click("#latency-share")
    assert page.evaluate("plots.get('latency-decode').drawn.scales.y.max") == 100
    page.screenshot(SCREENSHOTS / "latency-shares.png", "#latency")


def test_a_drag_zooms_and_a_double_click_zooms_out(page: Page, llama: Path) -> None:
    page.open(llama)
    place = "#plot-latency-prefill .u-over"
    box = page._box(place)
    middle = box["y"] + box["height"] / 2
    for kind, across in (("mousePressed", 0.25), ("mouseMoved", 0.5), ("mouseReleased", 0.5)):
        x = box["x"] + across * box["width"]
        page.send("Input.dispatchMouseEvent", type=kind, x=x, y=middle, button="left", buttons=1, clickCount=1)
    page.hover("h1")
    scale = page.evaluate("(({min, max}) => [min, max])(plots.get('latency-prefill').drawn.scales.x)")
    assert scale[0] == pytest.approx(512, abs=30) and scale[1] == pytest.approx(1024, abs=30)
    page.evaluate(f"document.querySelector('{place}').dispatchEvent(new MouseEvent('dblclick', {{bubbles: true}}))")
    page.hover("h1")
    assert page.evaluate("plots.get('latency-prefill').drawn.scales.x.max") == 2048


def test_one_layer_can_be_chosen(page: Page, llama: Path) -> None:
    page.open(llama)
    names = page.evaluate("REPORT.rows.map((row) => row.name)")
    page.choose("#layer-choice", str(names.index("attn")))
    assert "flash_fwd" in values(page, "layer-prefill")
    table = page.evaluate("document.getElementById('layer-kernels').textContent")
    assert "flash_fwd_splitkv_kernel" in table
    page.screenshot(SCREENSHOTS / "layer-attn.png", "#layer")


def test_the_map_of_requests_follows_the_choices(page: Page, opt: Path) -> None:
    page.open(opt)
    cells = "[...document.querySelectorAll('#requests-map td')].map((cell) => cell.textContent)"
    assert page.evaluate(cells)[0] == "0.60" and len(page.evaluate(cells)) == 49
    assert "49 requests: off by 1.03 % on average, 2.81 % at worst" in values(page, "requests")
    page.choose("#requests-way", "global")
    assert "off by 1.17 % on average" in values(page, "requests"), "held_out_errors of the JSON: 0.01166"
    page.screenshot(SCREENSHOTS / "requests-global.png", "#requests")
    page.choose("#requests-of", "1")
    page.choose("#requests-quantity", "2")
    assert "off by 0.87 % on average, 3.26 % at worst" in values(page, "requests")
    page.choose("#requests-set", "1")
    assert len([cell for cell in page.evaluate(cells) if cell]) == 64
    page.hover("#requests-map td")
    assert re.match(r"128 tokens in, 128 out: real \S+ s, estimated .*; used to fit", values(page, "requests"))


def test_the_theme_changes_and_plots_with_it(page: Page, llama: Path) -> None:
    page.open(llama)
    black = page.evaluate(f"({COLOURS_OF})('clock-prefill')")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert page.evaluate(f"({COLOURS_OF})('clock-prefill')") != black
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(f"({COLOURS_OF})('clock-prefill')") == black


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(page: Page, llama: Path, dark: bool) -> None:
    page.open(llama, width=PHONE, height=740, dark=dark, scale=2)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [PHONE, PHONE]
    widths = page.evaluate("[...document.querySelectorAll('.plot canvas')].map((e) => e.getBoundingClientRect().width)")
    assert len(widths) == len(PLOTS) and all(300 < width <= PHONE for width in widths)
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('p, td, th, li, button, code')]"
        ".map((e) => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 11, "pixels"
    page.screenshot(SCREENSHOTS / f"phone-{'dark' if dark else 'light'}.png")
    page.screenshot(SCREENSHOTS / f"phone-latency-{'dark' if dark else 'light'}.png", "#latency")


def test_a_finger_tells_values(page: Page, llama: Path) -> None:
    page.open(llama, width=PHONE, height=740)
    page.send("Emulation.setTouchEmulationEnabled", enabled=True)
    box = page._box("#plot-latency-prefill .u-over")
    point = {"x": box["x"] + box["width"] / 4, "y": box["y"] + box["height"] / 2}
    page.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
    page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.until("/^5\\d\\d tokens/.test(document.getElementById('values-latency-prefill').textContent)")


def test_the_window_may_change_its_width(page: Page, llama: Path) -> None:
    page.open(llama)
    page.send("Emulation.setDeviceMetricsOverride", width=700, height=900, deviceScaleFactor=1, mobile=False)
    page.until("plots.get('latency-prefill').drawn.width > 600")
    assert page.evaluate("document.documentElement.scrollWidth") == 700


def test_hostile_names_run_nothing(page: Page, tmp_path: Path) -> None:
    page.open(write_report(hostile(tmp_path).csv))
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert "onerror" in page.evaluate("document.querySelector('h1').textContent")
    assert "onerror" in page.evaluate("document.getElementById('layers').textContent")
    assert "onerror" in page.evaluate("document.getElementById('layer-kernels').textContent")
    page.hover("#plot-layer-prefill .u-over", across=0.9)
    assert "onerror" in values(page, "layer-prefill")
    page.screenshot(SCREENSHOTS / "hostile.png")


def test_pages_of_small_and_unfinished_tables(page: Page, tmp_path: Path) -> None:
    pages = {
        "all-kinds": validated(tmp_path / "all"),
        "no-validation": finished(tmp_path / "few", sweep_points(3, 2)),
        "one-series": finished(tmp_path / "prefill", sweep_points(5, 0)),
        "one-length": finished(tmp_path / "one", sweep_points(1, 0)),
    }
    for name, paths in pages.items():
        page.open(write_report(paths.csv))
        page.screenshot(SCREENSHOTS / f"{name}.png")
        plots = page.evaluate("[...document.querySelectorAll('.plot')].filter((e) => e.offsetWidth).length")
        canvases = page.evaluate("[...document.querySelectorAll('.plot canvas')].filter((e) => e.offsetWidth).length")
        assert plots == canvases, name
        assert (plots == 0) is (name == "one-length")
