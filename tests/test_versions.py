"""What both commands do and print where torch or transformers are newer or older than tested."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import run_profile
import validation
from llm_profile import versions
from llm_profile.cli import planning
from llm_profile.errors import UsageError
from tests import fake_command

ROOT = Path(__file__).parent.parent
COMMANDS = {"run_profile": [*fake_command.OPTIONS, "--plan"], "validation": ["--csv", "none.csv"]}

TESTED = {"torch": "2.13.0+cu130", "transformers": "5.24.0"}
NEWER = {"torch": "2.15.0", "transformers": "5.30.1"}
OLDER = {"torch": "2.10.1", "transformers": "5.16.4"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that pretends that these versions are installed; packages that are not given have tested ones."""

    def has(**found: str) -> None:
        monkeypatch.setattr(versions, "installed", lambda: TESTED | found)

    return has


def run(command: str, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, list[str]]:
    """Run a command. Returns its exit code and the lines that it wrote to stderr."""
    main = {"run_profile": run_profile.main, "validation": validation.main}[command]
    code = main([*COMMANDS[command], *more])
    return code, capsys.readouterr().err.splitlines()


def check_install_command(line: str, environment: Path = Path(sys.executable)) -> None:
    """Check that a line ends with a pip command of this interpreter, and that the files that it names exist."""
    words = shlex.split(line[line.index(str(environment)) :])
    assert words[1:4] == ["-m", "pip", "install"]
    assert all(Path(word).is_file() for word in words[4:] if word.endswith(".txt"))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("versions_found", [TESTED, {"torch": "2.11.0"}, {"torch": "2.14.9", "transformers": "5.17.0"}])
def test_of_tested_releases_nothing_is_said(
    command: str, versions_found: dict[str, str], machine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    machine(**versions_found)
    assert not [line for line in run(command, capsys)[1] if "tested" in line]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NEWER)
def test_a_newer_release_is_used_with_one_line_of_warning(
    command: str, name: str, machine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    machine(**{name: NEWER[name]})
    code, lines = run(command, capsys)
    (line,) = [line for line in lines if "tested" in line]
    oldest, newest = versions.TESTED[name]
    assert f"{name} {NEWER[name]} (tested: {oldest} to {newest})" in line
    check_install_command(line)
    assert code == {"run_profile": 0, "validation": 2}[command], "as it would be without"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", OLDER)
def test_an_older_release_is_refused_in_one_line(
    command: str, name: str, machine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    machine(**{name: OLDER[name]})
    code, (line,) = run(command, capsys)
    assert code == 2
    assert line.startswith(f"{command}.py: {name} {OLDER[name]} is older than {versions.TESTED[name][0]}")
    check_install_command(line)


def test_a_mistake_of_the_user_is_told_before(machine: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    machine(**NEWER)
    code, lines = run("run_profile", capsys, "--repeat", "0")
    assert (code, len(lines)) == (2, 1)


def test_an_unforeseen_error_ends_with_its_possible_cause(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(request: object) -> None:
        raise KeyError("past_key_values")

    monkeypatch.setattr(planning, "plan_lines", fails)
    machine(**NEWER)
    with pytest.raises(KeyError) as raised:
        run_profile.main(COMMANDS["run_profile"])
    (note,) = raised.value.__notes__
    assert note.startswith("possible cause: newer than tested: torch 2.15.0")
    check_install_command(note)

    machine()
    with pytest.raises(KeyError) as raised:
        run_profile.main(COMMANDS["run_profile"])
    assert not hasattr(raised.value, "__notes__")


def raised_in(globals_of: dict[str, object], cause: Exception | None = None) -> UsageError:
    """A UsageError whose traceback goes through code with these globals."""
    space = {**globals_of, "error": UsageError("it keeps no cache"), "cause": cause}
    with pytest.raises(UsageError) as raised:
        exec("raise error from cause", space)
    return raised.value


def raised_by_transformers() -> Exception:
    from transformers import AutoConfig

    with pytest.raises(ValueError) as raised:
        AutoConfig.for_model("no-such-type")
    return raised.value


def test_releases_may_cause_usage_errors_only_where_torch_or_transformers_are_used(
    machine: Callable[..., None],
) -> None:
    import torch
    from torch import nn

    machine(**NEWER)
    assert versions.possible_cause(raised_in({"torch": torch}))
    assert versions.possible_cause(raised_in({"Module": nn.Module}))
    assert versions.possible_cause(raised_in({}, raised_by_transformers()))
    assert not versions.possible_cause(raised_in({"Path": Path, "versions": versions}))
    machine()
    assert not versions.possible_cause(raised_in({"torch": torch}))


def test_a_model_that_a_newer_release_breaks_is_told_in_two_lines(tmp_path: Path) -> None:
    """In a process of its own, with package metadata that says transformers 9.1.0.

    The model has no decode, so it fails as one would whose cache argument was renamed.
    """
    info = tmp_path / "site/transformers-9.1.0.dist-info/METADATA"
    info.parent.mkdir(parents=True)
    info.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 9.1.0\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "xlm", "architectures": ["XLMWithLMHeadModel"]}')
    command = [sys.executable, ROOT / "run_profile.py", "--model", tmp_path / "model", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--load-format", "dummy", "--prefill-max", "2", "--decode-max", "2", "--skip-scaling"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(info.parent.parent)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert re.match(r"newer than tested: transformers 9\.1\.0 \(tested: [\d.]+ to [\d.]+\); ", lines[0])
    assert lines[-2].startswith("run_profile.py: --model: ")
    assert lines[-1].startswith("possible cause: newer than tested: transformers 9.1.0")


def test_without_a_set_for_this_python_the_command_names_tested_releases(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    words = shlex.split(versions.install_command())
    assert words[4:] == [f"{name}=={newest}.*" for name, (_, newest) in versions.TESTED.items()]


@pytest.mark.parametrize(
    ("text", "release"),
    [("2.13.0", (2, 13)), ("2.12.0a0+git1234", (2, 12)), ("5.24.0.dev0", (5, 24)), ("3", (3, 0)), ("unknown", (0, 0))],
)
def test_releases_are_read(text: str, release: tuple[int, int]) -> None:
    assert versions.release(text) == release


def test_a_release_is_compared_as_numbers() -> None:
    assert versions.release("2.9.1") < versions.release("2.11") < versions.release("2.101")
