"""Code that a model repository brings: it runs with --trust-remote-code, and never without."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import dynamic_module_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import run_profile
import validation
from llm_profile.store.files import read_table
from tests.test_hub import COMMIT, OLD_COMMIT, Hub, hub
from tests.tiny import COMMON
from tests.worker_here import WorkerHere, worker_here

__all__ = ["hub", "worker_here"]  # fixtures that pytest finds by their names here

REPO = "someone/small"
TRUST = "--trust-remote-code"
AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
CONFIG = {"model_type": "own", **COMMON, "gain": 2.0, "auto_map": AUTO_MAP}
CODE = {
    "configuration_own.py": """
from transformers import LlamaConfig
open({trace!r}, "a").write("configuration ")

class OwnConfig(LlamaConfig):
    model_type = "own"

    def __init__(self, gain=1.0, **fields):
        super().__init__(**fields)
        self.gain = gain
""",
    "parts_own.py": """
from torch import nn

class OwnMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.widen = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.narrow = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.gain = config.gain

    def forward(self, states):
        return self.gain * self.narrow(nn.functional.relu(self.widen(states)))
""",
    "modeling_own.py": """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
from .parts_own import OwnMLP
open({trace!r}, "a").write("modeling ")

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for block in self.model.layers:
            block.mlp = OwnMLP(config)
        self.post_init()
""",
}
SWEEP = ["--device", "cpu", "--prefill-max", "4", "--decode-max", "5", "--repeat", "1"]
PAIRS = ["--scaling-input-min", "1", "--scaling-input-max", "2", "--scaling-input-step", "1", "--scaling-repeat", "1"]
PAIRS += ["--scaling-tolerance", "1e9"]


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let transformers copy code of repositories into a folder of this test, and forget the modules afterwards."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))  # for processes of the real model
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that the code of the repository appends to when it is imported."""
    return tmp_path / "trace"


@pytest.fixture
def folder(tmp_path: Path, trace: Path) -> Path:
    return write_model(tmp_path / "own-model", trace)


def write_model(folder: Path, trace: Path, **fields: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | fields))
    for name, text in CODE.items():
        (folder / name).write_text(text.replace("{trace!r}", repr(str(trace))))
    return folder


def profile(model: Path | str, tmp_path: Path, *options: str) -> int:
    skip = [] if "--scaling-repeat" in options else ["--skip-scaling"]
    return run_profile.main(["--model", str(model), "--output-dir", str(tmp_path), *SWEEP, *skip, *options])


def csv_of(tmp_path: Path, name: str = "own-model") -> Path:
    return tmp_path / "CPU" / f"{name}.csv"


def test_without_the_flag_no_code_runs(
    folder: Path, tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ([], ["--plan"], ["--load-format", "dummy"]):
        code = profile(folder, tmp_path, *options)
        told = capsys.readouterr().err
        if "--plan" in options:
            assert code == 0
        else:
            assert code == 2
            assert "does not know model type 'own'" in told and f"its own code would have to run: {TRUST}" in told
    profile(folder, tmp_path, "--plan", TRUST)
    assert not trace.exists()
    assert not (tmp_path / "modules").exists() and not (tmp_path / "CPU").exists()


def test_a_model_of_its_own_code_is_profiled_and_validated(
    folder: Path, tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process of the real model as well, which imports the code for itself."""
    options = ["--scaling-processes", "1"]
    assert profile(folder, tmp_path, TRUST, *PAIRS, *options) == 0, capsys.readouterr().err
    told = capsys.readouterr().err
    marks = trace.read_text().split()
    assert marks[: len(marks) // 2] == marks[len(marks) // 2 :], "once in each process"
    assert set(trace.read_text().split()) == {"configuration", "modeling"}
    table = read_table(csv_of(tmp_path))
    assert {"q_proj", "attn", "rope", "widen", "narrow", "mlp_other", "lm_head"} <= set(table.row_names())
    assert "gate_proj" not in table.row_names()
    (kind,) = table.meta["kinds"]
    assert (kind["count"], kind["profiled"]) == (4, [0])
    code = table.meta["conditions"]["remote_code"]
    assert code.startswith("own_hyphen_model.") and code.endswith(".modeling_own.OwnForCausalLM")
    assert f"code of the model's repository runs: {code}" in told
    assert csv_of(tmp_path, "own-model-scaled").exists(), "the validation had the flag as well"


def test_transformers_has_forgotten_the_code_afterwards(folder: Path, tmp_path: Path) -> None:
    assert profile(folder, tmp_path, TRUST) == 0
    assert "own" not in CONFIG_MAPPING
    assert not any("OwnConfig" in str(config) for config in MODEL_FOR_CAUSAL_LM_MAPPING)


def test_validation_asks_for_the_flag_again_and_for_the_same_code(
    folder: Path, tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str], worker_here: list[WorkerHere]
) -> None:
    assert profile(folder, tmp_path, TRUST) == 0
    trace.unlink()
    validate = ["--csv", str(csv_of(tmp_path)), *PAIRS]
    capsys.readouterr()
    assert validation.main(validate) == 2
    assert (
        f"was measured with code of its repository, which would have to run again: {TRUST}" in capsys.readouterr().err
    )
    assert not trace.exists()
    assert validation.main([*validate, TRUST]) == 0
    file = folder / "modeling_own.py"
    file.write_text(file.read_text() + "\n# another version\n")
    capsys.readouterr()
    assert validation.main([*validate, TRUST]) == 2
    assert "--csv: measured with the code own_hyphen_model." in capsys.readouterr().err


def test_a_known_type_takes_transformers_code_but_where_the_flag_is_given(
    tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "own-model", trace, model_type="llama")
    assert profile(folder, tmp_path) == 0
    assert not trace.exists()
    table = read_table(csv_of(tmp_path))
    assert "gate_proj" in table.row_names() and "remote_code" not in table.meta["conditions"]
    capsys.readouterr()
    assert profile(folder, tmp_path, TRUST) == 2, "other code, another table"
    assert "remote_code is not recorded there and " in capsys.readouterr().err
    assert profile(folder, tmp_path, TRUST, "--overwrite") == 0
    assert "widen" in read_table(csv_of(tmp_path)).row_names()
    capsys.readouterr()
    assert profile(folder, tmp_path) == 2, "going on needs the flag as well"
    assert "remote_code is " in capsys.readouterr().err


def test_real_weights_of_a_model_of_its_own_code(folder: Path, tmp_path: Path, trace: Path) -> None:
    from llm_profile.models.building import make_config
    from llm_profile.models.hub import find_model
    from llm_profile.models.remote_code import code_of

    source = find_model(str(folder), load_format="dummy", trust_remote_code=True)
    with code_of(source):
        config = make_config(source.config)
        model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    model.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    (tmp_path / "saved" / "config.json").unlink()
    for file in (tmp_path / "saved").iterdir():
        file.rename(folder / file.name)
    assert profile(folder, tmp_path, TRUST, "--load-format", "hf") == 0
    table = read_table(csv_of(tmp_path))
    assert table.meta["conditions"]["weights"] == "folder own-model" and "widen" in table.row_names()


def test_code_of_the_hub_is_that_of_the_commit(
    hub: Hub, tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str], worker_here: list[WorkerHere]
) -> None:
    code = {name: text.replace("{trace!r}", repr(str(trace))).encode() for name, text in CODE.items()}
    hub.repositories[REPO] = {"config.json": json.dumps(CONFIG).encode(), **code}
    dummy = ["--load-format", "dummy", "--revision", "v1"]
    assert profile(REPO, tmp_path, *dummy) == 2
    assert TRUST in capsys.readouterr().err
    assert hub.fetched() == ["config.json"] and not trace.exists()
    assert profile(REPO, tmp_path, *dummy, TRUST) == 0, capsys.readouterr().err
    assert sorted(set(hub.fetched())) == ["config.json", *sorted(CODE)]
    assert all(f"/resolve/{OLD_COMMIT}/" in path for _, path in hub.asked if path.endswith(".py"))
    conditions = read_table(csv_of(tmp_path, REPO)).meta["conditions"]
    assert conditions["remote_code"].startswith(OLD_COMMIT) and COMMIT not in conditions["remote_code"]
    validate = ["--csv", str(csv_of(tmp_path, REPO)), *PAIRS]
    assert validation.main([*validate, TRUST]) == 0


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"auto_map": {"AutoConfig": AUTO_MAP["AutoConfig"]}}, "names no AutoModelForCausalLM"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}, "names no AutoConfig"),
        ({"auto_map": {**AUTO_MAP, "AutoConfig": "other/repo--configuration_own.OwnConfig"}}, "own-model alone"),
        ({"auto_map": {**AUTO_MAP, "AutoConfig": "../configuration_own.OwnConfig"}}, "own-model alone"),
        ({"auto_map": {**AUTO_MAP, "AutoConfig": ["configuration_own.OwnConfig"]}}, "own-model alone"),
        ({"auto_map": {**AUTO_MAP, "AutoConfig": "configuration_own.Missing"}}, "configuration_own.Missing fails"),
        ({"auto_map": {**AUTO_MAP, "AutoConfig": "missing.OwnConfig"}}, "missing.OwnConfig fails"),
        ({"auto_map": "modeling_own"}, "does not know model type 'own'; a newer transformers may"),
        ({"auto_map": {}}, "does not know model type 'own'; a newer transformers may"),
    ],
)
def test_code_that_cannot_be_used(
    tmp_path: Path, trace: Path, fields: dict[str, Any], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "own-model", trace, **fields)
    assert profile(folder, tmp_path, TRUST, "--load-format", "dummy") == 2
    told = capsys.readouterr().err
    assert problem in told and told.count("\n") == 1


@pytest.mark.parametrize("line", ["import a_package_that_is_not_there", "raise RuntimeError('of its\\nown')", "def ("])
def test_code_that_fails_is_told_in_one_line(
    folder: Path, tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "modeling_own.py"
    file.write_text(file.read_text() + f"\n{line}\n")
    assert profile(folder, tmp_path, TRUST, "--load-format", "dummy") == 2
    told = capsys.readouterr().err.splitlines()
    assert "its code modeling_own.OwnForCausalLM fails: " in told[-1] and "Traceback" not in "".join(told)


def test_models_of_the_table_need_no_code(tmp_path: Path) -> None:
    assert profile("tiny-llama", tmp_path, TRUST, "--load-format", "dummy") == 0
    assert "remote_code" not in read_table(csv_of(tmp_path, "tiny-llama")).meta["conditions"]
