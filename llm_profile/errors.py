"""Errors that a user can fix, helpers for their messages, and the exit codes (docs/options.md, "Exit codes")."""

import re
from contextlib import suppress
from decimal import Decimal
from math import nan
from numbers import Real

EXIT_COMPLETE = 0
EXIT_USAGE = 2
EXIT_POINTS_MISSING = 3
EXIT_OVER_TOLERANCE = 4
EXIT_SLOWER = 5
EXIT_INTERRUPTED = 130


def one_line(error: object, most: int = 300) -> str:
    """An error's text with every run of white space as one space, cut to `most` characters."""
    return " ".join(str(error).split())[:most]


CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, without tab and end of line, and what stands for bytes of a file name that are no text."""


def harmless(text: str) -> str:
    """`text` with CONTROLS in the form \\x1b: a terminal does nothing on it, and every file can hold it."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def type_and_text(error: BaseException) -> str:
    """`KeyError: 'relu7'`: the type stands in front because the text alone may be empty or a bare value."""
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")


CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""Part of torch's message when the host's memory is used up. torch raises it as a plain RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the host or of a GPU (torch.OutOfMemoryError) was used up."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or CPU_OUT_OF_MEMORY in str(error)
    )


class UsageError(Exception):
    """An error that the user can fix. Its text is one line: what was wrong, what is allowed, which option to change.

    The commands print that line to stderr without a traceback and exit with 2.
    """


class CheckpointError(UsageError):
    """Real weights that cannot be used; `--load-format auto` then uses random weights instead."""


def check_at_least_one(field: str, value: object) -> None:
    """Raise UsageError where the value of a config.json's field is no number or is below 1.

    For fields that no model can be built with otherwise, such as the number of blocks.
    """
    if not isinstance(value, int | float) or not value >= 1:
        raise UsageError(f"--model: its {field} is {shown(value)}, and must be at least 1; correct its config.json")


def number_between(what: str, value: object, least: float, most: float) -> float:
    """A number of any numeric type (numpy's and Decimal included) as a float.

    what: how the message calls the value. Raises UsageError for what is no number or lies outside `least`..`most`.
    """
    number = nan
    if type(value) is not bool and isinstance(value, Real | Decimal):
        with suppress(OverflowError, ValueError):  # an integer too large for a float; a signalling NaN of Decimal
            number = float(value)
    if not least <= number <= most:
        raise UsageError(f"{what} {shown(value)}: must be a number from {least:g} to {most:g}")
    return number


def shown(value: object) -> str:
    """A value as messages show it: its repr, cut to 80 characters."""
    try:
        return one_line(repr(value), 80)
    except ValueError:  # Python converts no integer of more than some thousands of digits to text
        return f"of type {type(value).__name__}"
