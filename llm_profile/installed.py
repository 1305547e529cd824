"""Whether the packages are there that the commands need. Imports nothing but the standard library."""

import sys
from collections.abc import Iterable
from importlib.util import find_spec

from llm_profile.errors import EXIT_USAGE

REQUIRED = (
    "torch",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
    "yaml",
    "rich",
)
"""Names by which the packages of requirements.txt are imported, except two: runs do without
pynvml, and only predictions need sklearn."""


def end_without_packages(command: str, required: Iterable[str] = REQUIRED) -> None:
    """End this process with one line and exit code 2 if a package is missing."""
    missing = [name for name in required if find_spec(name) is None]
    if missing:
        print(
            f"{command}: {sys.executable} has no {', '.join(missing)}; use the environment of the scripts "
            "(. .venv/bin/activate), or run ./run.sh, which installs what is missing",
            file=sys.stderr,
        )
        sys.exit(EXIT_USAGE)
