"""Command lines whose options are data. Imports no torch."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError

Options = Mapping[str, Mapping[str, Any]]
"""Option (`--num-layers`) -> keyword arguments of `add_argument`, the default left out."""

SWITCH = {"action": "store_true"}
"""An option without a value."""

COUNT = {"type": int, "metavar": "N"}
"""An option that takes a whole number."""


class OneLineParser(argparse.ArgumentParser):
    """Raises UsageError for a bad command line, without the usage text around it."""

    def error(self, message: str) -> Any:
        """Raises UsageError."""
        raise UsageError(f"{message}; see --help")


def add_options(add: Any, options: Options, defaults: Mapping[str, Any]) -> None:
    """Add options to a parser or to a group of it.

    add: its `add_argument`. defaults: by the name of the option's value (`num_layers`); None where there is no entry.
    """
    for option, details in options.items():
        name = option.removeprefix("--").replace("-", "_")
        known = {"default": defaults[name]} if name in defaults else {}
        add(option, **known, **details)


def field_defaults(dataclass: type) -> dict[str, Any]:
    """The defaults of a dataclass's fields, of those that have one."""
    return {field.name: field.default for field in fields(dataclass) if field.default is not MISSING}


def named_path(text: str) -> Path:
    """A path of the command line; an empty one would be the current folder. Raises ArgumentTypeError for that."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; leave the option out, or give one")
    return Path(text)


def token_of(arguments: argparse.Namespace) -> str | None:
    """The access token of the Hugging Face Hub: that of the command line, else that of the environment."""
    return arguments.hf_token or os.environ.get("HF_TOKEN") or None
