"""`report --png`: the main plots as files, where matplotlib is installed."""

import importlib
import struct
from pathlib import Path

import pytest

import run_profile
from llm_profile.errors import UsageError
from llm_profile.report.pictures import PICTURES, write_pictures
from tests.report_samples import LLAMA, finished, hostile
from tests.table_samples import sweep_points


def size_of(png: Path) -> tuple[int, int]:
    """Width and height, from the header of a PNG."""
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_every_plot_of_the_readme_table_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    page, folder = tmp_path / "page.html", tmp_path / "pictures"
    assert run_profile.main(["report", str(LLAMA), "--output", str(page), "--png", str(folder)]) == 0
    written = [folder / f"Llama-3.1-8B-{name}.png" for name in PICTURES]
    assert capsys.readouterr().out.splitlines() == [f"report: {path}" for path in (page, *written)]
    for path in written:
        width, height = size_of(path)
        assert width > 1000 and height > 400


def test_plots_without_numbers_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = write_pictures(finished(tmp_path, sweep_points(4, 3)).csv, tmp_path)
    assert [path.name for path in written] == ["model-1.5-latency.png", "model-1.5-clock.png"]


def test_hostile_names_are_drawn(tmp_path: Path) -> None:
    """A `$` begins a formula in matplotlib."""
    pytest.importorskip("matplotlib")
    assert len(write_pictures(hostile(tmp_path).csv, tmp_path)) == 3


def test_without_matplotlib_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise ImportError

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match="--png: matplotlib draws these pictures; install it"):
        write_pictures(finished(tmp_path).csv, tmp_path)
