"""run_profile.py on a GPU."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import run_profile
from llm_profile.errors import EXIT_COMPLETE, EXIT_OVER_TOLERANCE
from llm_profile.store.files import read_table

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]

SWEEP = ["--load-format", "dummy", "--hardware", "GPU", "--prefill-max", "16", "--decode-max", "16"]
SCALING = ["--scaling-input-min", "2", "--scaling-input-max", "8", "--scaling-input-step", "2", "--scaling-repeat", "2"]


@pytest.mark.parametrize(("runtime", "dtype"), [("cuda-graph", "bfloat16"), ("eager", "auto")])
def test_sweep_and_validation_of_a_tiny_model(
    runtime: str, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", "tiny-llama", "--dtype", dtype, *SWEEP, "--output-dir", str(tmp_path)]
    code = run_profile.main([*command, *SCALING, "--scaling-runtime", runtime])
    said = capsys.readouterr()
    # A curve of so few lengths of a tiny model may be over the tolerance.
    assert code in (EXIT_COMPLETE, EXIT_OVER_TOLERANCE), said.err
    names = {path.name for path in (tmp_path / "GPU").iterdir()}
    whole = {f"tiny-llama{ending}" for ending in (".csv", ".rows.parquet", ".meta.json", ".validation.json")}
    assert whole | {"tiny-llama-scaled.csv"} <= names
    assert not any(name.endswith((".journal.jsonl", ".lock", ".tmp")) for name in names)

    table = read_table(tmp_path / "GPU" / "tiny-llama.csv")
    assert len(table.records) == 32 and not table.missing
    assert table.meta["clock"] == "gpu-kernel"
    report = json.loads((tmp_path / "GPU" / "tiny-llama.validation.json").read_text())
    assert report["runtime"] == runtime and report["num_layers"] == 4

    before = (tmp_path / "GPU" / "tiny-llama.csv").read_bytes()
    assert run_profile.main([*command, "--skip-scaling"]) == EXIT_COMPLETE
    assert "complete: every point" in capsys.readouterr().err
    assert (tmp_path / "GPU" / "tiny-llama.csv").read_bytes() == before


WITH_PEAK = """
import resource, sys, run_profile
code = run_profile.main(sys.argv[1:])
print("peak KiB:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""

FROM_A_SHELL = ["sh", "-c", '"$@"; exit $?', "sh"]
"""A child of pytest would inherit the peak memory of pytest; as a child of a shell it starts from a small one."""


def start(model: str, folder: Path) -> subprocess.Popen[str]:
    few = ["--prefill-max", "2", "--decode-max", "2", "--repeat", "3", "--precision", "0", "--skip-scaling"]
    command = ["--model", model, "--load-format", "dummy", "--dtype", "bfloat16", *few, "--output-dir", str(folder)]
    return subprocess.Popen(
        [*FROM_A_SHELL, sys.executable, "-c", WITH_PEAK, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_random_weights_of_a_large_model_take_no_host_memory(tmp_path: Path) -> None:
    """One block of Llama-3.1-70B has 6 GB of weights with embedding and head, all of which are made on the GPU."""
    running = {
        name: start(name, tmp_path / name.replace("/", "_")) for name in ("tiny-llama", "meta-llama/Llama-3.1-70B")
    }
    peaks = {}
    for name, process in running.items():
        output, _ = process.communicate(timeout=110)
        assert process.returncode == EXIT_COMPLETE, output
        (peak_kib,) = re.findall(r"peak KiB: (\d+)", output)
        peaks[name] = int(peak_kib)
    tiny, large = peaks.values()
    print(f"peak host memory: tiny-llama {tiny / 2**20:.2f} GiB, Llama-3.1-70B {large / 2**20:.2f} GiB")
    assert (large - tiny) * 1024 < 2e9
