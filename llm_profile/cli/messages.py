"""Lines for the person who started a command: which go to stderr, which to stdout, and how many. Imports no torch."""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llm_profile.cli.parsing import SWITCH, Options
from llm_profile.store.storage import without_tokens

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
    if text and sys.stderr is not None:
        with suppress(OSError):  # a log that takes no more is no reason to stop measuring
            print(without_tokens(" ".join(text.splitlines())), file=sys.stderr)


def tell(lines: Iterable[str]) -> None:
    """Lines of the result on stdout, as long as somebody takes them: `| head` has enough at some point."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (what else is printed, and the flush at the end)


def tell_json(document: Mapping[str, Any]) -> None:
    """A document for programs on stdout, in one line."""
    tell([json.dumps(document, default=str, allow_nan=False)])


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
        """Lines of the result: on stdout, or on stderr if stdout is for programs."""
        if self.quiet:
            return
        if not self.json:
            tell(lines)
            return
        for line in lines:
            if sys.stderr is not None:
                with suppress(OSError):
                    print(without_tokens(line), file=sys.stderr)
