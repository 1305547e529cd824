"""What can go wrong for a user, and the exit code that says so (README, "Exit codes")."""

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


def check_at_least_one(field: str, value: object) -> None:
    """Raise UsageError for a field of a config.json that makes no model when it is less, or no number."""
    if not isinstance(value, int | float) or not value >= 1:
        raise UsageError(
            f"--model: its {field} is {one_line(value, 80)}, and has to be at least 1; mend its config.json"
        )
