"""run_profile.py doctor on a GPU."""

import json
from pathlib import Path

import pytest
import torch

import run_profile
from llm_profile.errors import EXIT_COMPLETE

pytestmark = pytest.mark.gpu


def test_a_machine_that_measures_has_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "tiny-llama", "--load-format", "dummy", "--output-dir", str(tmp_path)]
    code = run_profile.main(["doctor", *options, "--json"])
    told = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in told["checks"]}
    assert not [check for check in told["checks"] if check["level"] == "error"]
    assert code == EXIT_COMPLETE and told["errors"] == 0
    assert torch.cuda.get_device_name() in checks["GPU"]["text"]
    assert checks["profiler"]["text"] == "torch's profiler records kernels (3 of 3)"
    assert not [check for check in told["checks"] if "the check itself failed" in check["text"]]
    assert "free on the GPU" in checks["memory"]["text"]
    assert not [*tmp_path.iterdir()], "it only looks"
