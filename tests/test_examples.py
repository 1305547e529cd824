"""The committed exports are what the exporters make of the committed table."""

from pathlib import Path

import pytest

import run_profile
from llm_profile.exporters import BUNDLES

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "H200" / "meta-llama" / "Llama-3.1-8B.csv"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", BUNDLES)
def test_a_committed_export_is_made_again(form: str, tmp_path: Path) -> None:
    assert run_profile.main(["export", "--format", form, "--output", str(tmp_path / form), str(TABLE)]) == 0
    assert contents(tmp_path / form) == contents(ROOT / "examples" / form)
