"""The clock of CUPTI's records, and how its times become those of time.time_ns. Imports no torch.

By default CUPTI gives times by the system's clock, in ns. But torch's profiler has CUPTI take the processor's cycle
counter instead, for as long as the process lives. On an H200 whose host counts 2.1 cycles a ns, all kernels seemed to
take 2.1 times as long in a process in which that profiler had run.
"""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RATE_INTERVAL_S = 0.02
"""Seconds between the two readings of the clock from which its rate is known: 1 us more or less is 0.005 %."""

READINGS = 20
"""How often both clocks are read at once. The reading that took least counts: others may have been interrupted."""

IN_NS = 1e-3
"""A rate this close to 1 is that of a clock in ns, so its times are taken as they are."""

TOLERANCE_NS = 1_000_000_000
"""How far times may lie outside of the time in which they were recorded: system clocks are adjusted at times."""


class StrangeClockError(RuntimeError):
    """Records lie outside of the time in which they were made, so their clock is not the one that was asked."""


class RecordClock:
    """Converts times of records. ticks: reads CUPTI's clock (cuptiGetTimestamp). Making one takes RATE_INTERVAL_S."""

    def __init__(self, ticks: Callable[[], int]) -> None:
        self._first_ticks, self._first_ns = _read_both(ticks)
        time.sleep(RATE_INTERVAL_S)
        last_ticks, last_ns = _read_both(ticks)
        rate = (last_ns - self._first_ns) / max(last_ticks - self._first_ticks, 1)
        self._ns_per_tick = None if abs(rate - 1) < IN_NS else rate

    def to_ns(self, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times by time.time_ns. Raises StrangeClockError for times before this clock was made, or in the future."""
        since = ticks - self._first_ticks
        if self._ns_per_tick is not None:
            since = np.rint(since * self._ns_per_tick).astype(np.int64)
        elapsed = time.time_ns() - self._first_ns
        if len(since) and (since.min() < -TOLERANCE_NS or since.max() > elapsed + TOLERANCE_NS):
            raise StrangeClockError("records lie outside of the time in which they were made")
        return np.asarray(since + self._first_ns, dtype=np.int64)


def _read_both(ticks: Callable[[], int]) -> tuple[int, int]:
    """CUPTI's clock and the system's in ns, at the same time."""
    readings = []
    for _ in range(READINGS):
        before_ns = time.time_ns()
        now = ticks()
        after_ns = time.time_ns()
        readings.append((after_ns - before_ns, now, (before_ns + after_ns) // 2))
    _, now, at_ns = min(readings)
    return now, at_ns
