"""Parsers of command lines whose options are given as tables. Imports no torch."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.sweep import Sweep

Options = Mapping[str, Mapping[str, Any]]
"""Option (`--num-layers`) -> keyword arguments of `add_argument`, without its default."""

SWITCH = {"action": "store_true"}
"""An option without a value."""

COUNT = {"type": int, "metavar": "N"}
"""An option whose value is a whole number."""


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises UsageError for a bad command line, where argparse prints the usage and exits."""

    def error(self, message: str) -> Any:
        """Raises UsageError."""
        raise UsageError(f"{message}; see --help")


def add_options(add: Any, options: Options, defaults: Mapping[str, Any]) -> None:
    """Add options to a parser or a group of options.

    add: `add_argument` of the parser or group. defaults: name of an option's value (`num_layers`) -> default; options
    without an entry have None, or False for a switch.
    """
    for option, details in options.items():
        name = option.removeprefix("--").replace("-", "_")
        known = {"default": defaults[name]} if name in defaults else {}
        add(option, **known, **details)


def field_defaults(dataclass: type) -> dict[str, Any]:
    """Name -> default of the fields of a dataclass that have a default."""
    return {field.name: field.default for field in fields(dataclass) if field.default is not MISSING}


def named_path(text: str) -> Path:
    """A path of the command line. Raises ArgumentTypeError for an empty text, which would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; leave the option out, or give one")
    return Path(text)


def degrees(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas, each once, in order. Raises ArgumentTypeError for anything else."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 1,2,4") from None


def sweep_of(arguments: argparse.Namespace) -> Sweep:
    """The sweep of a parsed command line; fields that it has no option for keep their defaults. Raises UsageError."""
    values = vars(arguments)
    return Sweep(**{name: values[name] for name in Sweep.__dataclass_fields__ if name in values})


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once, in order."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def token_of(arguments: argparse.Namespace) -> str | None:
    """The access token of the Hugging Face Hub: that of `--hf-token`, else that of HF_TOKEN, else None."""
    return arguments.hf_token or os.environ.get("HF_TOKEN") or None


PAGE_ENDINGS = (".html", ".htm")
"""What the name of a page may end in, so that no page takes the place of a table."""


def check_page_name(option: str, path: Path) -> None:
    """Raises UsageError for a path that no page may be written to."""
    if path.suffix.lower() not in PAGE_ENDINGS:
        raise UsageError(f"{option} {path}: the name of a page must end in {' or '.join(PAGE_ENDINGS)}")
