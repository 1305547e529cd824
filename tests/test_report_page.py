"""The page of a report: names cannot break it, and what is drawn as text is right."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm_profile.report.accuracy_sections import accuracy
from llm_profile.report.contents import gather
from llm_profile.report.elements import ratio
from llm_profile.report.layer_groups import LAYER_GROUPS, colours, stacked
from llm_profile.report.layer_sections import short_kernel
from llm_profile.report.markup import Markup, element, joined, json_for_script
from llm_profile.report.page import report_page
from tests.report_samples import HOSTILE, LLAMA, OPT, data_of, hostile, validated

VOID = {"meta", "br", "img", "link", "input"}


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text; scripts and styles apart."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def parsed(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    elements.close()
    assert not elements.open
    return elements


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("p", "<b>", Markup("<i>"), class_="a\"b<&'") == (
        '<p class="a&quot;b&lt;&amp;&#x27;">&lt;b&gt;<i></p>'
    )
    assert joined("a & b", element("br-", aria_label=None)) == "a &amp; b<br-></br->"


def test_json_in_a_script_ends_no_script() -> None:
    text = json_for_script({HOSTILE: ["<!--", "\u2029"]})
    assert json.loads(text) == {HOSTILE: ["<!--", "\u2029"]}
    assert not re.search("[<>&\u2028\u2029]", text)


def test_hostile_names_add_no_element(tmp_path: Path) -> None:
    plain = parsed(report_page(gather(validated(tmp_path / "plain").csv)))
    broken = parsed(report_page(gather(hostile(tmp_path / "hostile").csv)))
    assert {tag for tag, _ in broken.found} <= {tag for tag, _ in plain.found}
    assert "img" not in {tag for tag, _ in broken.found}
    assert not [name for _tag, attributes in broken.found for name in attributes if name.startswith("on")]
    assert sum(tag == "script" for tag, _ in broken.found) == 2
    for where in ("on", "1 point:", "Too noisy: the same steps", "Slow path:", "times"):
        assert where in broken.text
    assert broken.text.count(HOSTILE) > 30


def test_hostile_names_reach_the_script_as_they_are(tmp_path: Path) -> None:
    data = data_of(report_page(gather(hostile(tmp_path).csv)))
    assert f"{HOSTILE}attn" in [row["name"] for row in data["rows"]]
    assert data["kernels"]["names"] == [HOSTILE, f"{HOSTILE}2"]
    assert data["validations"][0]["runtime"] == HOSTILE


def test_the_policy_allows_the_script_of_the_page_and_no_other(tmp_path: Path) -> None:
    from base64 import b64encode
    from hashlib import sha256

    page = report_page(gather(hostile(tmp_path).csv))
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    allowed = b64encode(sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for tag, a in parsed(page).found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and f"script-src 'sha256-{allowed}'" in policy and "default-src 'none'" in policy


def test_every_plot_says_how_to_read_it() -> None:
    page = report_page(gather(LLAMA))
    sections = re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL)
    assert [name for name, _ in sections] == [
        *("accuracy", "latency", "roofline", "shares", "layer", "sweep", "requests", "serving", "missing", "conditions")
    ]
    for name, content in sections[:-2]:
        (how,) = re.findall(r'<p class="how">(.*?)</p>', content)
        assert how.endswith(".") and how.count(". ") == 0, f"{name}: one sentence"


def test_shares_add_up() -> None:
    page = report_page(gather(LLAMA))
    cells = re.findall(r'<span class="bars">.*?</span><span>([\d.]+) %</span>', page)
    prefill, decode = ([float(cell) for cell in cells[side::2]] for side in (0, 1))
    assert len(prefill) == 19
    assert sum(prefill) == pytest.approx(100, abs=1) and sum(decode) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("csv", "runtime", "shown"),
    [
        (LLAMA, "CUDA graphs", "<b>TTFT</b><strong>0.46 %</strong><span>at worst 0.82 %"),
        (OPT, "CUDA graphs", "<b>TTFT</b><strong>1.0 %</strong><span>at worst 2.8 %"),
        (OPT, "transformers, eager", "<b>TTFT</b><strong>1.1 %</strong><span>at worst 2.3 %"),
    ],
)
def test_the_readme_errors_are_on_the_page(csv: Path, runtime: str, shown: str) -> None:
    """Those of docs/results.md, rounded less."""
    text = accuracy(gather(csv)).replace("\N{NO-BREAK SPACE}", " ")
    assert shown in text.partition(runtime)[2].partition("<b>TPOT</b>")[0]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.3214, "32 %"), (0.0139, "1.4 %"), (0.00388, "0.39 %"), (0.00056, "0.056 %"), (0, "0.000 %")]
)
def test_ratios_have_two_figures(value: float, shown: str) -> None:
    assert ratio(value) == shown.replace(" ", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize(
    ("kernel", "short"),
    [
        ("nvjet_sm90_tst_64x8_64x16_2x1_v_bz_TNT", "nvjet_sm90_tst_64x8_64x16_2x1_v_bz_TNT"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float> >(float)", "reduce_kernel"),
        ("void at::native::(anonymous namespace)::indexSelectSmallIndex<int>(int)", "indexSelectSmallIndex"),
        (
            "void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_nn_align1>(int)",
            "cutlass_80_simt_sgemm_128x32_8x5_nn_align1",
        ),
        ("Memset (Device)", "Memset"),
        ("<lambda>", "<lambda>"),
        ("x" * 500, "x" * 60),
    ],
)
def test_kernels_are_shortened(kernel: str, short: str) -> None:
    assert short_kernel(kernel) == short


def test_rows_of_a_group_are_next_to_each_other_in_shades_of_its_colour() -> None:
    names = ["lm_head", "a.q_proj", "attn", "mine", "b.q_proj", "gate_proj"]
    assert stacked(names) == ["gate_proj", "a.q_proj", "b.q_proj", "attn", "mine", "lm_head"]
    found = colours(names)
    assert len({*found.values()}) == 6
    plain = {rows[0]: colour for _label, colour, rows in LAYER_GROUPS if rows}
    assert found["attn"] == plain["attn"] and found["lm_head"] == plain["lm_head"]
