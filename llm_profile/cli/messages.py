"""Lines for the person who started a command: which go to stderr, which to stdout, and how many. Imports no torch."""

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from llm_profile.cli.parsing import SWITCH, Options
from llm_profile.errors import harmless
from llm_profile.store.storage import without_infinity, without_tokens

if TYPE_CHECKING:
    from rich.console import Console

OUTPUT_OPTIONS: Options = {
    "--verbose": {
        **SWITCH,
        "help": "print more, before the summary: conditions, the share of each row, every pair of the validation",
    },
    "--quiet": {**SWITCH, "help": "print errors and warnings only; goes before --verbose"},
    "--json": {
        **SWITCH,
        "help": "print one JSON document with files and figures on stdout, and nothing else there",
    },
}
"""How much a command prints, and where."""


def notice(text: str | None) -> None:
    """One line for the user on stderr, if there is anything to say. What was typed may be in it, a token never is."""
    if text:
        _print_to_stderr(without_tokens(harmless(" ".join(text.splitlines()))))


def _print_to_stderr(text: str) -> None:
    if sys.stderr is not None:
        with suppress(OSError):  # a log that takes no more is no reason to stop measuring
            print(text, file=sys.stderr)


class LostStdout(io.TextIOBase):
    """In the place of a stdout that takes no more. problem: why; None where its reader had enough, as `| head` has."""

    def __init__(self, problem: str | None) -> None:
        self.problem = problem

    def write(self, text: str) -> int:
        """Drop the text."""
        return len(text)


def stdout_problem() -> str | None:
    """Why a part of what was told is lost; None where nothing is, or nobody wanted it."""
    return sys.stdout.problem if isinstance(sys.stdout, LostStdout) else None


def _print_to_stdout(text: str, wanted: bool = True) -> None:
    """The command goes on where stdout takes no more: its files are still to be written, and its exit code counts.

    wanted: whether it is an error if the text is lost; that of a table which was written is none.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = LostStdout(None)
    except OSError as error:
        sys.stdout = LostStdout((error.strerror or str(error)) if wanted else None)


def tell(lines: Iterable[str], wanted: bool = True) -> None:
    """Lines of the result on stdout, as long as somebody takes them: `| head` has enough at some point.

    wanted: whether it is an error if they are lost.
    """
    _print_to_stdout(harmless("\n".join(lines)), wanted)


def tell_json(document: Mapping[str, Any]) -> None:
    """A document for programs on stdout, in one line."""
    tell([without_tokens(json.dumps(without_infinity(document), default=str, allow_nan=False))])


class _Kept(io.StringIO):
    """Text that is not printed yet, with the colours and letters that the file it is for can show."""

    def __init__(self, meant_for: TextIO | None) -> None:
        super().__init__()
        self._meant_for = meant_for

    def isatty(self) -> bool:
        return self._meant_for is not None and self._meant_for.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._meant_for, "encoding", None) or "utf-8"


@contextmanager
def told_by_console(to_stderr: bool = False, columns: int | None = None) -> Iterator["Console"]:
    """A console for tables; what it printed is told, as lines are, when the `with` ends.

    columns: width where there is no terminal; None for that of rich.
    """
    from rich.console import Console

    kept = _Kept(sys.stderr if to_stderr else sys.stdout)
    yield Console(file=kept, width=None if kept.isatty() else columns)
    (_print_to_stderr if to_stderr else _print_to_stdout)(kept.getvalue().removesuffix("\n"))


def hide_bars_of_downloads() -> None:
    """Have huggingface_hub draw no bars, in the processes of the real model neither. Call it before it is imported."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


@dataclass(frozen=True)
class Verbosity:
    """How much a command prints, by the options of these names."""

    verbose: bool = False
    quiet: bool = False
    json: bool = False

    @classmethod
    def of(cls, options: Any) -> "Verbosity":
        """That of a Request, or of parsed arguments."""
        return cls(options.verbose and not options.quiet, options.quiet, options.json)

    def inform(self, text: str | None) -> None:
        """A line on stderr that is no warning."""
        if not self.quiet:
            notice(text)

    def summarise(self, lines: Iterable[str]) -> None:
        """Lines of a result that is in files: on stdout, or on stderr if stdout is for programs."""
        if self.quiet:
            return
        if not self.json:
            tell(lines, wanted=False)
            return
        for line in lines:
            _print_to_stderr(without_tokens(harmless(line)))
