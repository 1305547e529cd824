#!/usr/bin/env bash
# Sets up as run.sh does, then makes every check: ruff, mypy, pytest, and the GPU tests where there is a GPU.
# For some tests only: python3 -m pytest -k NAME
set -euo pipefail
cd "$(dirname "$0")/.."

. llm_profile/setup_env.sh
set_up requirements.txt tests/requirements.txt

"$PYTHON" -m ruff check
"$PYTHON" -m mypy
"$PYTHON" -m pytest -n 2 -m "not gpu"
if has_gpu; then
    "$PYTHON" -m pytest -m gpu tests/gpu  # one at a time: they time the GPU
fi
