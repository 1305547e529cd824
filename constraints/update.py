#!/usr/bin/env python3
"""Make the sets of versions that a set-up installs, one file a Python: the newest that requirements.txt and
tests/requirements.txt allow, as pip resolves them. Nothing is installed, and of torch only the metadata is read.

    python3 constraints/update.py                                     with python3.11, python3.12 and python3.13
    python3 constraints/update.py --python ~/py313/bin/python3 ...    with interpreters that are not on PATH
    python3 constraints/update.py "torch==2.13.0"                     held to a release

What comes of it is tested together before it is committed: docs/releases.md.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
REQUIREMENTS = ("requirements.txt", "tests/requirements.txt")
PYTHONS = ("python3.11", "python3.12", "python3.13")
OF_ONE_BUILD = re.compile(r"nvidia-|cuda-|triton|pytorch-triton")
"""What only some builds of torch need, each in a version of its own: their torch says which."""


def fail(message: str) -> NoReturn:
    """End with 2, as all commands here do where the user can mend it."""
    print(f"update.py: {message}", file=sys.stderr)
    sys.exit(2)


def canonical(name: str) -> str:
    """A package's name as every index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def python_version(interpreter: str) -> str:
    """`311` of an interpreter of Python 3.11."""
    code = "import sys; print(*sys.version_info[:2], sep='')"
    try:
        return subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        fail(f"{interpreter} does not run; install it, or name interpreters: --python PATH PATH PATH")


def resolve(interpreter: str, held: Iterable[str]) -> dict[str, str]:
    """Versions of all packages that pip would install with this interpreter into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [interpreter, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        files = [word for name in REQUIREMENTS for word in ("-r", str(HERE.parent / name))]
        done = subprocess.run([*command, "--report", str(report), *held, *files], stdout=sys.stderr)
        if done.returncode:
            fail(f"pip of {interpreter} found no set (see above); no file was written")
        packages = [each["metadata"] for each in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return {canonical(each["name"]): each["version"].partition("+")[0] for each in packages}


def required() -> set[str]:
    """Names of the packages that the requirement files ask for."""
    lines = [line for name in REQUIREMENTS for line in (HERE.parent / name).read_text(encoding="utf-8").splitlines()]
    return {canonical(found[0]) for line in lines if (found := re.match(r"[\w.-]+", line))}


def main() -> None:
    """Resolve for each interpreter, then write all files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("held", nargs="*", metavar="REQUIREMENT", help='such as "torch==2.13.0"')
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="PATH", help="interpreters, one a file")
    arguments = parser.parse_args()
    interpreters = {python_version(each): each for each in arguments.python}
    sets = {version: resolve(each, arguments.held) for version, each in interpreters.items()}
    asked = required()
    command = " ".join(["python3 constraints/update.py", *(f'"{each}"' for each in arguments.held)])
    for version, packages in sets.items():
        kept = {name: packages[name] for name in packages if name in asked or not OF_ONE_BUILD.match(name)}
        head = f"# Versions that were tested together, for Python 3.{version[1:]}. Made by: {command}\n"
        text = head + "".join(f"{name}=={kept[name]}\n" for name in sorted(kept))
        (HERE / f"py{version}.txt").write_text(text, encoding="utf-8")
        print(f"py{version}.txt: {len(kept)} packages, torch {kept['torch']}, transformers {kept['transformers']}")


if __name__ == "__main__":
    main()
