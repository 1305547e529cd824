"""The sets of versions that a set-up installs, and which of them it takes."""

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from constraints import choose
from llm_profile.versions import TESTED, release

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ("requirements.txt", "tests/requirements.txt")
SETS = sorted((ROOT / "constraints").glob("py*.txt"))


def requirements_in(path: Path) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def pins_in(path: Path) -> dict[str, str]:
    found = {canonicalize_name(pin.name): str(pin.specifier) for pin in requirements_in(path)}
    assert all(re.fullmatch(r"==[\d.]+(post\d+)?", pin) for pin in found.values()), "one version each, no build"
    return {name: pin.removeprefix("==") for name, pin in found.items()}


REQUIRED = [each for name in REQUIREMENTS for each in requirements_in(ROOT / name)]


def test_there_is_a_set_for_each_python() -> None:
    assert [path.name for path in SETS] == ["py311.txt", "py312.txt", "py313.txt"]


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_every_requirement_is_pinned_in_its_range(path: Path) -> None:
    pins = pins_in(path)
    wrong = [each for each in REQUIRED if pins.get(canonicalize_name(each.name), "") not in each.specifier]
    assert not wrong


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", TESTED)
def test_torch_and_transformers_of_a_set_are_of_the_tested_range(path: Path, name: str) -> None:
    oldest, newest = TESTED[name]
    assert release(oldest) <= release(pins_in(path)[name]) <= release(newest)


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_a_set_is_of_no_single_platform(path: Path) -> None:
    required = {canonicalize_name(each.name) for each in REQUIRED}
    assert not [name for name in pins_in(path) if re.match("nvidia|cuda|triton|rocm", name) and name not in required]


def test_the_sets_are_of_the_same_torch_and_transformers() -> None:
    assert len({tuple(pins_in(path)[name] for name in TESTED) for path in SETS}) == 1


@pytest.mark.parametrize("name", TESTED)
def test_the_oldest_tested_release_is_that_of_the_requirements(name: str) -> None:
    (wanted,) = [each for each in REQUIRED if each.name == name]
    oldest = min((Version(each.version) for each in wanted.specifier if each.operator == ">="), default=None)
    assert oldest == Version(TESTED[name][0])


def test_what_the_set_needs_is_in_the_set() -> None:
    """Of the packages that are installed here at the set's version: what they need is pinned too, but for builds of
    torch."""
    pins, missing = pins_in(SETS[0]), []
    for name, pinned in pins.items():
        try:
            installed = Version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed.public != str(pinned):
            continue
        needs = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
        here = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        missing += [need for need in here if canonicalize_name(need.name) not in pins]
    assert not [need for need in missing if not re.match("nvidia|cuda|triton", need.name)]


# ---- what the set-up takes of a set


class Machine:
    """What is installed on a machine that is not this one, and what the installed packages need."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.versions: dict[str, str] = {}
        self.needs: dict[str, list[str]] = {}
        pins = ["# a set", "torch==2.13.0", "transformers==5.24.0", "numpy==2.4.6", "setuptools==84.2.1"]
        (folder / "py399.txt").write_text("\n".join(pins))
        monkeypatch.setattr(choose, "HERE", folder)
        monkeypatch.setattr(choose, "PYTHON", "3.99")
        monkeypatch.setattr(choose.importlib.metadata, "version", self.version)
        monkeypatch.setattr(choose.importlib.metadata, "requires", self.needs.get)

    def version(self, name: str) -> str:
        if name not in self.versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return self.versions[name]


WANTED = [Requirement("torch>=2.11,<3"), Requirement("transformers>=5.17,<6"), Requirement("numpy>=2.0")]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("versions", "needs", "left_out"),
    [
        ({}, {}, []),
        ({"torch": "2.12.0+rocm7"}, {}, ["torch"]),
        ({"torch": "2.12.0a0+nv26.1", "transformers": "5.17.0"}, {}, ["torch", "transformers"]),
        ({"torch": "2.10.0"}, {}, []),
        ({"torch": "3.0"}, {}, []),
        ({"torch": "2.11.0"}, {"torch": ["setuptools<82", "numpy>=2"]}, ["torch", "setuptools"]),
        ({"torch": "2.11.0"}, {"torch": ["numpy<2.4; extra == 'old'"]}, ["torch"]),
        ({"torch": "2.10.0"}, {"torch": ["setuptools<82"]}, []),
        ({"numpy": "2.3.1"}, {}, []),
    ],
)
def test_the_set_gives_way_to_what_is_kept(
    machine: Machine, versions: Mapping[str, str], needs: Mapping[str, list[str]], left_out: list[str]
) -> None:
    machine.versions |= versions
    machine.needs |= needs
    names = ["torch", "transformers", "numpy", "setuptools"]
    assert [pin.name for pin in choose.pins(WANTED)] == [name for name in names if name not in left_out]


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({}, "torch 2.13.0+cu130, transformers 5.24.0 (the tested set for Python 3.99)"),
        (
            {"torch": "2.12.0"},
            "torch 2.12.0, transformers 5.24.0 (kept: torch 2.12.0; else the tested set for Python 3.99)",
        ),
        (
            {"numpy": "2.3.1"},
            "torch 2.13.0+cu130, transformers 5.24.0 (the tested set for Python 3.99, but for numpy 2.3.1)",
        ),
    ],
)
def test_what_was_taken_is_said(machine: Machine, versions: Mapping[str, str], said: str) -> None:
    machine.versions |= {"torch": "2.13.0+cu130", "transformers": "5.24.0", "numpy": "2.4.6", **versions}
    assert choose.taken(WANTED) == said


def test_the_newest_are_said_beside_the_tested(machine: Machine) -> None:
    machine.versions |= {"torch": "2.19.0", "transformers": "5.31.0", "numpy": "2.4.6"}
    assert choose.taken(WANTED, newest=True) == (
        "torch 2.19.0, transformers 5.31.0 (the newest; tested for Python 3.99: torch==2.13.0, transformers==5.24.0)"
    )


def test_a_python_without_a_set_is_said_and_takes_the_newest(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "PYTHON", "3.98")
    machine.versions |= {"torch": "2.13.0", "transformers": "5.24.0", "numpy": "2.4.6"}
    assert not choose.pins(WANTED)
    assert "no set was tested for Python 3.98" in choose.taken(WANTED)


@pytest.mark.parametrize(
    ("torch", "requirements", "satisfied"),
    [
        ("pytest", "pytest>=1  # a comment\n\n# another\n", True),
        ("pytest", "pytest>=1,<2\n", False),
        ("pytest>=1000", "pytest>=1\n", False),
        ("pytest", "pytest>=1\nno-such-package-here\n", False),
        ("pytest", "not a requirement\n", False),
    ],
)
def test_requirement_files_are_checked_with_their_bounds(
    tmp_path: Path, torch: str, requirements: str, satisfied: bool
) -> None:
    (tmp_path / "wanted.txt").write_text(requirements)
    command = [sys.executable, ROOT / "constraints/choose.py", "satisfied", torch, tmp_path / "wanted.txt"]
    assert (subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0) is satisfied


def test_choosing_needs_nothing_but_pip() -> None:
    """A new virtual environment has no `packaging`."""
    code = "import sys, runpy; sys.modules['packaging'] = None; sys.argv = ['choose.py', 'pins', 'requirements.txt'];"
    code += "runpy.run_path('constraints/choose.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "numpy==" in done.stdout or not choose.tested_set()


# ---- making the sets

FAKE_PIP = f"""#!{sys.executable} -IS
import json, sys
if sys.argv[1] == "-c":
    print("399")
    sys.exit()
assert sys.argv[1:5] == ["-m", "pip", "install", "--dry-run"], sys.argv
found = "torch 2.12.0+cpu, transformers 5.20.0, NVIDIA_ml.py 13.1, nvidia-cublas 13.1, triton 3.7, Jinja2 3.1"
pairs = [each.split() for each in found.split(", ")]
with open(sys.argv[sys.argv.index("--report") + 1], "w") as report:
    json.dump({{"install": [{{"metadata": {{"name": name, "version": version}}}} for name, version in pairs]}}, report)
sys.exit("broken==1" in sys.argv)
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in (*REQUIREMENTS, "constraints/update.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "python").write_text(FAKE_PIP)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def update(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, clone / "constraints/update.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_set_has_what_pip_resolved_but_for_single_builds(clone: Path) -> None:
    done = update(clone, "torch<3", "--python", str(clone / "python"))
    assert done.returncode == 0, done.stderr
    head, *pins = (clone / "constraints/py399.txt").read_text().splitlines()
    assert head.endswith('for Python 3.99. Made by: python3 constraints/update.py "torch<3"')
    assert pins == ["jinja2==3.1", "nvidia-ml-py==13.1", "torch==2.12.0", "transformers==5.20.0"]


@pytest.mark.parametrize("arguments", [["--python", "no-such-python"], ["broken==1", "--python", "python"]])
def test_a_set_that_cannot_be_made_writes_nothing_and_ends_with_2(clone: Path, arguments: list[str]) -> None:
    arguments = [str(clone / word) if word == "python" else word for word in arguments]
    done = update(clone, *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("update.py: ")
    assert not list((clone / "constraints").glob("*.txt"))


def test_the_committed_sets_say_one_command() -> None:
    assert len({path.read_text().splitlines()[0].split("Made by: ")[1] for path in SETS}) == 1
