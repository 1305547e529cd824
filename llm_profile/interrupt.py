"""Ctrl-C (SIGINT) while a command is starting or ending: the process ends without a traceback.

`main` handles KeyboardInterrupt itself. These functions are for the script that runs: importing a command changes no
signal handler. Where SIGINT is ignored (`nohup`, background jobs of a script), it stays ignored.
"""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def end_quietly() -> None:
    """From now on SIGINT ends the process at once, without a KeyboardInterrupt and its traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_keyboard_interrupt() -> None:
    """From now on SIGINT raises KeyboardInterrupt, Python's default; undoes `end_quietly`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main`, which handles KeyboardInterrupt, and exit with the code that it returns."""
    raise_keyboard_interrupt()
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # while Python exits, a Ctrl-C could only add a traceback
    sys.exit(code)
