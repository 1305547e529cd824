"""Ctrl-C before and after the `main` of a command, which handles it: no traceback then either.

Only for the script that runs: importing a command changes no handler. Where SIGINT is ignored (`nohup`, jobs in the
background of a script), it stays ignored.
"""

import signal


def end_quietly() -> None:
    """From here on SIGINT ends the process at once."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_again() -> None:
    """From here on SIGINT raises KeyboardInterrupt, as Python has it at its start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore() -> None:
    """From here on nothing is left that SIGINT could stop: all is said and done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
