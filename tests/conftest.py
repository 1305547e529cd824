"""Settings for all tests."""

import os

import pytest

from llm_profile import versions

# Set before torch is imported. Tests run in parallel processes, and the threads of tiny models would only slow them.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def tested_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that tested releases are installed, so that no warning is among the lines that tests check."""
    newest = {name: release for name, (_, release) in versions.TESTED.items()}
    monkeypatch.setattr(versions, "installed", lambda: newest)
