"""A thread that reads the events of one profiling session while the next session runs. Imports no torch."""

import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

SWITCH_S = 1e-4
"""Longest time that the reading thread keeps the interpreter while the thread that launches passes waits for it."""


@contextmanager
def reader_thread() -> Iterator[Executor]:
    """Runs what is submitted to it in one other thread; meanwhile Python's threads take turns every SWITCH_S."""
    with ThreadPoolExecutor(1, "read-events") as reader, switching_every(SWITCH_S):
        yield reader


@contextmanager
def switching_every(seconds: float) -> Iterator[None]:
    """Set the time after which Python lets another thread run."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
