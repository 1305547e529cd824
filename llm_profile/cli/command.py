"""How a command ends: its exit code, and the line that says what was wrong. Imports no torch."""

from collections.abc import Callable

from llm_profile import versions
from llm_profile.cli import summary
from llm_profile.errors import EXIT_INTERRUPTED, EXIT_USAGE, UsageError


def exit_code_of(command: str, run: Callable[[], int], interrupted: str) -> int:
    """Run a command and return its exit code.

    A UsageError is printed as one line and gives 2. Ctrl-C prints `interrupted`, what was kept, and gives 130.
    """
    try:
        with versions.possible_cause_noted():
            return run()
    except UsageError as error:
        for text in (f"{command}: {error}", *getattr(error, "__notes__", ())):
            summary.notice(text)
        return EXIT_USAGE
    except KeyboardInterrupt:
        summary.notice(f"{command}: interrupted; {interrupted}")
        return EXIT_INTERRUPTED
