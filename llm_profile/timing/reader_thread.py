"""A thread that reads the events of one profiling session while the next session runs. Imports no torch."""

import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

SWITCH_S = 1e-4
"""Switch interval of Python's threads in seconds: the launching thread waits so long at most for the reading one."""


@contextmanager
def reader_thread() -> Iterator[Executor]:
    """An executor with one thread. While it is open, Python's threads take turns every SWITCH_S seconds."""
    with ThreadPoolExecutor(1, "read-events") as reader, switching_every(SWITCH_S):
        yield reader


@contextmanager
def switching_every(seconds: float) -> Iterator[None]:
    """Context in which Python lets another thread run after so many seconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
