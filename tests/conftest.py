"""Settings of all tests."""

import os

import pytest

from llm_profile import versions

# Tests run side by side, and tiny models gain nothing from threads: those would wait for each other. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def tested_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed is of the tested range: no warning among the lines that tests look at, whatever CI runs on."""
    newest = {name: release for name, (_, release) in versions.TESTED.items()}
    monkeypatch.setattr(versions, "installed", lambda: newest)
