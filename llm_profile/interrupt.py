"""Ctrl-C before and after the `main` of a command, which handles it: no traceback then either.

Only for the script that runs: importing a command changes no handler. Where SIGINT is ignored (`nohup`, jobs in the
background of a script), it stays ignored.
"""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def end_quietly() -> None:
    """From here on SIGINT ends the process at once."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_again() -> None:
    """From here on SIGINT raises KeyboardInterrupt, as Python has it at its start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command that handles KeyboardInterrupt, and exit with its code."""
    raise_again()
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done: a second Ctrl-C has nothing left to stop
    sys.exit(code)
