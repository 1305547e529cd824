"""What a command says where its packages are missing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_profile.installed import REQUIRED

ROOT = Path(__file__).parent.parent

IMPORT_NAMES = {"pyyaml": "yaml", "nvidia-ml-py": "pynvml"}


@pytest.mark.parametrize(
    "command", [["run_profile.py", "doctor"], ["run_profile.py", "--help"], ["validation.py", "--csv", "a.csv"]]
)
def test_a_python_without_the_packages_is_told_in_one_line(command: list[str]) -> None:
    """-S leaves out the folder in which packages are installed."""
    ended = subprocess.run(
        [sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2 and not ended.stdout
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"{command[0]}: ") and "torch, transformers" in line and ".venv/bin/activate" in line


def test_all_requirements_are_looked_for() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [re.split(r"[<>=!~ ]", line)[0].lower() for line in lines if line and not line.startswith("#")]
    assert {IMPORT_NAMES.get(name, name) for name in names} - {"pynvml", "scikit-learn"} == {*REQUIRED}
