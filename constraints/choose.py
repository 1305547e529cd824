#!/usr/bin/env python3
"""Which versions the set-up takes; llm_profile/setup_env.sh asks. Needs pip or packaging, and nothing else.

    choose.py satisfied TORCH FILE...   exit code 0: all is installed that the requirement files and TORCH ask for
    choose.py pins FILE...              constraints for pip: the tested set, where it does not forbid what is kept
    choose.py taken FILE...             one line: what is installed, and how far that is the tested set
    choose.py newest FILE...            the same line, where the newest were asked for

A torch and a transformers that are installed and in the range of the requirements are kept.
"""

import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError:
    try:  # a new virtual environment has pip alone, which brings its own
        from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]
        from pip._vendor.packaging.utils import canonicalize_name  # type: ignore[assignment]
    except ImportError:
        sys.exit(f"{sys.executable} has no pip; give it one: {sys.executable} -m ensurepip")

HERE = Path(__file__).resolve().parent
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
KEPT = ("torch", "transformers")
"""What is large, or was chosen for this machine's GPU, and so is not replaced while it will do."""

NAMED = 3
"""Most packages that `taken` names; more are counted."""


def requirements(lines: Iterable[str]) -> list[Requirement]:
    """The requirements of a file's lines."""
    return [Requirement(text) for line in lines if (text := line.split("#")[0].strip())]


def requirements_of(files: Iterable[str]) -> list[Requirement]:
    """The requirements of some files."""
    return requirements(line for file in files for line in Path(file).read_text(encoding="utf-8").splitlines())


def tested_set() -> list[Requirement]:
    """The pins for this Python; none where no set was tested with it."""
    file = HERE / f"py{PYTHON.replace('.', '')}.txt"
    return requirements_of([str(file)]) if file.exists() else []


def installed(name: str) -> str | None:
    """The version of a package that this Python sees."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def allows(requirement: Requirement, version: str | None) -> bool:
    """Whether a version is there and in the range of a requirement."""
    return version is not None and bool(requirement.specifier.contains(version, prereleases=True))


def satisfied(wanted: Iterable[Requirement]) -> bool:
    """Whether all that is wanted is installed."""
    return all(allows(each, installed(each.name)) for each in wanted)


def pins(wanted: Iterable[Requirement]) -> list[Requirement]:
    """The tested set without what is kept, and without what this could not run with."""
    wanted = list(wanted)
    kept = [name for name in KEPT if satisfied(each for each in wanted if each.name == name) and installed(name)]
    needs = [need for name in kept for need in requirements(importlib.metadata.requires(name) or ())]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]

    def gives_way(pin: Requirement) -> bool:
        name, version = canonicalize_name(pin.name), str(pin.specifier).removeprefix("==")
        return name in kept or any(canonicalize_name(need.name) == name and not allows(need, version) for need in needs)

    return [pin for pin in tested_set() if not gives_way(pin)]


def taken(wanted: Iterable[Requirement], newest: bool = False) -> str:
    """What is installed, and how far that is the tested set."""
    versions: dict[str, str | None] = {canonicalize_name(each.name): installed(each.name) for each in wanted}
    here = ", ".join(f"{name} {versions[name]}" for name in KEPT)
    tested: dict[str, Requirement] = {canonicalize_name(pin.name): pin for pin in tested_set()}
    if not tested:
        return f"{here} (the newest, or what was there: no set was tested for Python {PYTHON})"
    if newest:
        return f"{here} (the newest; tested for Python {PYTHON}: {', '.join(str(tested[name]) for name in KEPT)})"
    others = [name for name in versions if not allows(tested[name], versions[name])]
    kept = [f"{name} {versions[name]}" for name in others if name in KEPT]
    rest = [f"{name} {versions[name]}" for name in others if name not in KEPT]
    which = f"the tested set for Python {PYTHON}"
    if kept:
        which = f"kept: {', '.join(kept)}; else {which}"
    if rest:
        which += f", but for {', '.join(rest) if len(rest) <= NAMED else f'{len(rest)} of its packages'}"
    return f"{here} ({which})"


def main(question: str, *rest: str) -> int:
    """Answer the question; returns the exit code."""
    if question == "satisfied":
        torch, *files = rest
        return 0 if satisfied([*requirements([torch]), *requirements_of(files)]) else 1
    wanted = requirements_of(rest)
    if question == "pins":
        print(*pins(wanted), sep="\n")
    else:
        print(taken(wanted, newest=question == "newest"))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
