"""The releases of torch and transformers that were tested, and what is said where others are installed.

Older releases are refused. Newer ones are used with a warning, and named as a possible cause when something fails.
Imports no torch: versions are read from the metadata of the installed packages.
"""

import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from llm_profile.errors import UsageError

TESTED = {"torch": ("2.11", "2.14"), "transformers": ("5.17", "5.24")}
"""Package -> the oldest and the newest release that was tested. requirements.txt asks for the oldest or newer."""

ROOT = Path(__file__).parent.parent


def release(text: str) -> tuple[int, int]:
    """`2.13.0+cu130` -> (2, 13): names change with the minor version only, so the rest is not compared."""
    major, minor = (re.findall(r"\d+", text) + ["0", "0"])[:2]
    return int(major), int(minor)


def installed() -> dict[str, str]:
    """Package -> installed version, of the packages in TESTED."""
    found = {}
    for name in TESTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # the error of its import will say so
    return found


def install_command() -> str:
    """The command that installs the tested set of versions; without a set for this Python, the newest tested releases.

    The sets are in `constraints/`.
    """
    pins = ROOT / f"constraints/py{sys.version_info[0]}{sys.version_info[1]}.txt"
    if pins.exists():
        wanted = ["-r", _from_working_directory(ROOT / "requirements.txt"), "-c", _from_working_directory(pins)]
    else:
        wanted = [f"{name}=={newest}.*" for name, (_, newest) in TESTED.items()]
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])


def _from_working_directory(path: Path) -> str:
    """The path as a user can type it: relative to the working directory if it lies in there."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def refuse_older() -> None:
    """Raise UsageError where an installed release is older than the oldest tested one."""
    for name, found in installed().items():
        oldest, newest = TESTED[name]
        if release(found) < release(oldest):
            raise UsageError(
                f"{name} {found} is older than {oldest}, the oldest that works ({oldest} to {newest} were tested); "
                f"install the tested set: {install_command()}"
            )


def newer_than_tested() -> str | None:
    """The installed releases newer than tested, as `transformers 5.25.0 (tested: 5.17 to 5.24)`; None if none is."""
    newer = [
        f"{name} {found} (tested: {TESTED[name][0]} to {TESTED[name][1]})"
        for name, found in installed().items()
        if release(found) > release(TESTED[name][1])
    ]
    return " and ".join(newer) or None


def warning() -> str | None:
    """A line that warns of releases newer than tested, with the command that installs the tested set; None if none is.

    Example: `newer than tested: transformers 5.25.0 (tested: 5.17 to 5.24); to install the tested set: ...`
    """
    return (
        what := newer_than_tested()
    ) and f"newer than tested: {what}; to install the tested set: {install_command()}"


def possible_cause(error: BaseException) -> str | None:
    """A line that names releases newer than tested as a possible cause of an error; None if they cannot be it.

    They may cause any unforeseen error. A UsageError they may cause only where torch or transformers are used: a typing
    error in an option, for example, has nothing to do with them.
    """
    if (what := newer_than_tested()) is None or (isinstance(error, UsageError) and not passed_tested_packages(error)):
        return None
    return f"possible cause: newer than tested: {what}; try the tested set: {install_command()}"


def passed_tested_packages(error: BaseException) -> bool:
    """Whether the traceback of an error, or of its cause, goes through a module that imports torch or transformers."""
    chain = [each for each in (error, error.__cause__) if each is not None]
    frames = (frame for each in chain for frame, _ in traceback.walk_tb(each.__traceback__))
    return any(_owner(value) in TESTED for frame in frames for value in list(frame.f_globals.values()))


def _owner(value: object) -> str:
    """The package that a module, a class or a function belongs to."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return str(name).partition(".")[0]


@contextmanager
def possible_cause_noted() -> Iterator[None]:
    """Add `possible_cause` as a note to an error that passes: tracebacks end with notes, and commands print them."""
    try:
        yield
    except Exception as error:
        if text := possible_cause(error):
            error.add_note(text)
        raise
