"""What can go wrong for a user, and the exit code that says so (docs/options.md, "Exit codes")."""

from contextlib import suppress
from decimal import Decimal
from math import nan
from numbers import Real

EXIT_COMPLETE = 0
EXIT_USAGE = 2
EXIT_POINTS_MISSING = 3
EXIT_OVER_TOLERANCE = 4
EXIT_INTERRUPTED = 130


def one_line(error: object, most: int = 300) -> str:
    """An error's text without line breaks, cut to `most` characters."""
    return " ".join(str(error).split())[:most]


def typed_line(error: BaseException) -> str:
    """An error's type and text: many texts are a mere value, or nothing."""
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")


CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""What torch says, in an error of no type of its own, when the host has no memory left."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: the host's, or that of a GPU (torch.OutOfMemoryError)."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or CPU_OUT_OF_MEMORY in str(error)
    )


class UsageError(Exception):
    """A mistake that the user can mend: one line with what was wrong, what is allowed and which option to change.

    Commands print it to stderr without a traceback and exit with 2.
    """


class CheckpointError(UsageError):
    """Real weights that cannot be used: `--load-format auto` takes random ones in their place."""


def check_at_least_one(field: str, value: object) -> None:
    """Raise UsageError for a field of a config.json that makes no model when it is less, or no number."""
    if not isinstance(value, int | float) or not value >= 1:
        raise UsageError(f"--model: its {field} is {shown(value)}, and has to be at least 1; mend its config.json")


def number_between(what: str, value: object, least: float, most: float) -> float:
    """A number that a caller gave, of whatever type (numpy's and Decimal too), as a float.

    Raises UsageError, naming it, for what is no number or lies outside `least`..`most`.
    """
    number = nan
    if type(value) is not bool and isinstance(value, Real | Decimal):
        with suppress(OverflowError, ValueError):  # a whole number beyond any float, a signalling nan
            number = float(value)
    if not least <= number <= most:
        raise UsageError(f"{what} {shown(value)}: must be a number from {least:g} to {most:g}")
    return number


def shown(value: object) -> str:
    """A value as an error names it."""
    try:
        return one_line(repr(value), 80)
    except ValueError:  # whole numbers of thousands of digits
        return f"of type {type(value).__name__}"
