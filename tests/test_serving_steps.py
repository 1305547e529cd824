"""Serving steps beside a table: what is written is read again."""

from pathlib import Path

import pytest

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.validation.profiled import Profiled
from llm_profile.validation.serving_steps import read_serving, serving_steps, write_serving


def test_steps_are_read_as_they_were_written(tmp_path: Path) -> None:
    steps = {SweepPoint(1, 128, 64): (8_500_000, 8_510_000), SweepPoint.of([(1, 9), (16, 4)]): (7_000_000, 7_100_000)}
    path = write_serving(tmp_path / "Llama.csv", 32, steps)
    assert path == tmp_path / "Llama.serving.json" and read_serving(path) == steps


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "Llama.serving.json"
    path.write_text('{"steps": [{"wall_ns": [1]}]}')
    with pytest.raises(UsageError, match="no file of serving steps"):
        read_serving(path)


def test_a_cpu_has_no_serving_steps() -> None:
    with pytest.raises(UsageError, match="cpu has no CUDA graphs"):
        next(serving_steps(Profiled({}, {}, 1, False), 2, [SweepPoint(1, 4, 2)], 1, "cpu"))
