"""bench/picture.py: the sums that it draws, its SVG, and the files that it refuses."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import run_profile
from bench import picture

ROOT = Path(__file__).parent.parent
HEADER = "hardware,model,layer_name,input,kv_cache,latency(ns)"
SVG = "{http://www.w3.org/2000/svg}"


def small_table(folder: Path, rows: dict[str, dict[tuple[int, int], int]], **meta: Any) -> Path:
    """A table of these latencies in ns by (input, kv_cache), with two kinds of blocks: 3 of `a`, 2 of `b`."""
    lines = [f"H200,org/m,{row},{n},{k},{ns}" for row, by_point in rows.items() for (n, k), ns in by_point.items()]
    csv = folder / "m.csv"
    csv.write_text("\n".join([HEADER, *lines]) + "\n")
    kinds = [{"name": "a", "count": 3}, {"name": "b", "count": 2}]
    block_rows = {row: row.split(".")[0] for row in rows if "." in row}
    csv.with_suffix(".meta.json").write_text(json.dumps({"kinds": kinds, "block_rows": block_rows} | meta))
    return csv


def test_a_pass_is_rows_of_the_model_once_and_of_blocks_times_their_number(tmp_path: Path) -> None:
    ms = 1_000_000
    csv = small_table(
        tmp_path,
        {
            "embedding": {(1, 0): 1 * ms, (2, 0): 2 * ms, (1, 1): 3 * ms},
            "a.attn": {(1, 0): 10 * ms, (2, 0): 20 * ms, (1, 1): 30 * ms},
            "b.attn": {(1, 0): 100 * ms, (2, 0): 200 * ms, (1, 1): 300 * ms},
            "b.q_norm": {(1, 0): 5 * ms, (2, 0): 6 * ms, (1, 1): 7 * ms},
            "lm_head": {(1, 0): 1000 * ms, (2, 0): 2000 * ms, (1, 1): 1001 * ms},
        },
    )
    prefill, decode = picture.pass_latencies(csv)
    assert list(prefill.columns) == list(decode.columns) == ["norms", "attn", "all other rows", "lm_head, one token"]
    assert prefill.loc[2].tolist() == [2 * 6, 3 * 20 + 2 * 200, 2, 1000]
    assert decode.loc[0].tolist() == prefill.loc[1].tolist() == [2 * 5, 3 * 10 + 2 * 100, 1, 1000]
    assert decode.loc[1].tolist() == [2 * 7, 3 * 30 + 2 * 300, 3, 1000]


def test_neighbouring_lengths_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MOST_POINTS", 2)
    by_point = {(n, 0): n * 1_000_000 for n in (1, 2, 3, 4)} | {(1, 1): 9_000_000}
    prefill, decode = picture.pass_latencies(small_table(tmp_path, {"attn": by_point}))
    assert prefill["attn"].to_dict() == {1.5: 1.5, 3.5: 3.5}
    assert decode["attn"].to_dict() == {0: 1.0, 1: 9.0}


def test_ticks_reach_what_they_are_for() -> None:
    assert picture.ticks(56.5, picture.MS_STEPS, 7) == [0, 10, 20, 30, 40, 50, 60]
    assert picture.ticks(2044.5, picture.TOKEN_STEPS, 4) == [0, 512, 1024, 1536, 2048]
    assert picture.ticks(2, picture.TOKEN_STEPS, 4) == [0, 1, 2]


def test_the_picture_of_a_small_table(tmp_path: Path) -> None:
    command = "--model tiny-llama --device fake --hardware Fake --prefill-max 8 --decode-max 8 --skip-scaling"
    assert run_profile.main([*command.split(), "--output-dir", str(tmp_path)]) == 0
    svg = tmp_path / "picture.svg"
    assert picture.main([str(tmp_path / "Fake" / "tiny-llama.csv"), str(svg)]) == 0
    root = ElementTree.parse(svg).getroot()
    assert root.tag == f"{SVG}svg"
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"Prefill", "Decode, one token", "prompt (tokens)", "latency of a pass (ms)", "attn", "8"} <= set(words)
    areas = [path for path in root.iter(f"{SVG}path") if "fill" in path.attrib]
    assert len(areas) == 2 * len(picture.LAYER_GROUPS)
    heights = [float(y) for area in areas for y in re.findall(r" ([\d.]+)", area.attrib["d"])]
    assert min(heights) >= picture.TOP and max(heights) == picture.BOTTOM


def test_the_committed_picture_is_of_the_committed_table() -> None:
    committed = ROOT / "docs" / "latency.svg"
    assert committed.read_text(encoding="utf-8") == picture.svg_of(ROOT / "H200" / "meta-llama" / "Llama-3.1-8B.csv")
    assert committed.stat().st_size < 100_000


def test_what_is_no_table_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_phase = small_table(tmp_path, {"attn": {(1, 0): 1, (2, 0): 2}})
    for csv, told in ((one_phase, "--mode both"), (tmp_path / "none.csv", "cannot be read")):
        assert picture.main([str(csv), str(tmp_path / "picture.svg")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("picture.py: ") and told in said and said.count("\n") == 1
    assert not (tmp_path / "picture.svg").exists()
