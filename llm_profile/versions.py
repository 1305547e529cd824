"""Which releases of torch and transformers this was tested with, and what to say where others are installed.

Older ones are refused. Newer ones are used with a warning, and are the first suspicion when something fails. Imports no
torch: installed versions are read from the metadata of their packages.
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
"""The oldest and the newest release of each that was tested. The oldest are those of requirements.txt."""

ROOT = Path(__file__).parent.parent


def release(text: str) -> tuple[int, int]:
    """`2.13.0+cu130` -> (2, 13), which is as far as releases differ in what they call things."""
    major, minor = (re.findall(r"\d+", text) + ["0", "0"])[:2]
    return int(major), int(minor)


def installed() -> dict[str, str]:
    """The versions of what is tested and installed."""
    found = {}
    for name in TESTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # importing it says so
    return found


def way_back() -> str:
    """The command that installs the tested set, or tested releases where no set is there for this Python."""
    pins = ROOT / f"constraints/py{sys.version_info[0]}{sys.version_info[1]}.txt"
    if pins.exists():
        wanted = ["-r", _from_here(ROOT / "requirements.txt"), "-c", _from_here(pins)]
    else:
        wanted = [f"{name}=={newest}.*" for name, (_, newest) in TESTED.items()]
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def refuse_older() -> None:
    """Raise UsageError for a release that is older than the oldest that works."""
    for name, found in installed().items():
        oldest, newest = TESTED[name]
        if release(found) < release(oldest):
            raise UsageError(
                f"{name} {found} is older than {oldest}, the oldest that works ({oldest} to {newest} were tested); "
                f"install the tested set: {way_back()}"
            )


def newer() -> str | None:
    """Which releases are newer than tested, `transformers 5.25.0 (tested: 5.17 to 5.24)`; None where none is."""
    told = [
        f"{name} {found} (tested: {TESTED[name][0]} to {TESTED[name][1]})"
        for name, found in installed().items()
        if release(found) > release(TESTED[name][1])
    ]
    return " and ".join(told) or None


def warning() -> str | None:
    """One line for a release newer than tested: which, the tested range, and the way back."""
    return (what := newer()) and f"newer than tested: {what}; back to the tested set: {way_back()}"


def suspicion(error: BaseException) -> str | None:
    """One line for an error that a release newer than tested may have made.

    That is any error that no one foresaw, and of those of a user's the ones from where torch and transformers are used.
    """
    if (what := newer()) is None or (isinstance(error, UsageError) and not uses_them(error)):
        return None
    return f"first suspicion: newer than tested: {what}; try the tested set: {way_back()}"


def uses_them(error: BaseException) -> bool:
    """Whether an error, or the one that it was made of, comes through a module that imports torch or transformers."""
    chain = [each for each in (error, error.__cause__) if each is not None]
    frames = (frame for each in chain for frame, _ in traceback.walk_tb(each.__traceback__))
    return any(_owner(value) in TESTED for frame in frames for value in list(frame.f_globals.values()))


def _owner(value: object) -> str:
    """The package that a module, a class or a function is of."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return str(name).partition(".")[0]


@contextmanager
def suspected() -> Iterator[None]:
    """Add the suspicion to an error on its way out, as a note: a traceback ends with it, a command prints it."""
    try:
        yield
    except Exception as error:
        if text := suspicion(error):
            error.add_note(text)
        raise
