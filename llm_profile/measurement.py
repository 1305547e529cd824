"""What one point's passes gave, and whether that is enough. Imports no torch.

Everything is kept per pass until a statistic is asked for: a trimmed mean of sums is not the sum of trimmed means.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llm_profile.points import SweepPoint

MIN_PASSES = 6
"""Fewest passes before a point may stop early: two of each of the graphs that a GPU's passes are shared out among.

Of 48 random lengths in each phase on an H200 (Llama-3.1-8B, a hundred passes of four graphs, twice), the rows of six
passes of three graphs were off those of all by 0.53 % (median; 99th percentile 4.8 %) in decode and 0.28 % (2.6 %) in
prefill, and 99.8 and 100 % of them at most 5 % or 100 ns; against a hundred passes in another process, 98.6 and 99.1 %.
Eight passes of four graphs (0.34 and 0.20 %, within bounds 100 and 100 %) take a third longer; of four passes, one
each, 98.1 and 99.6 % are within bounds.
"""

LONG_PASS_NS = 1_500_000
MIN_LONG_PASSES = 3
"""Fewest passes if a pass takes at least LONG_PASS_NS: one of each of the graphs. Long kernels vary less with the place
of their tensors in memory, and take most of the time of a sweep."""

FEW_PASSES_CLOSENESS = 0.25
"""Share of the precision that fewer than the usual passes have to reach. Three of them may be close by chance."""

TRIMMED = 10
"""Of every so many passes the fastest and the slowest are left out of a mean; of fewer, one each.

Why no median: on an H200 the passes of kernels of 1 to 3 us have two modes (`mlp_other`: 1.25 and 1.45 us), and the
median of ten flips between them. Over repeated sweeps (64 decode points of a Llama-3.1-8B block, ten passes) 98.1 % of
rows agreed within 5 % or 100 ns by their trimmed means, 96.3 % by their medians.
"""

IQR_TO_SIGMA = 1.349
"""Interquartile range of a normal distribution in standard deviations; outliers do not move it."""


@dataclass(frozen=True)
class RowSample:
    """GPU time of one row in each pass of a point.

    pass_ns: per pass, the sum over all `blocks` profiled blocks, in whole nanoseconds.
    blocks: how many profiled blocks that sum covers (1 for a row outside blocks). launches: kernels, copies and
    memsets per pass. kernels: their distinct names, in launch order.
    """

    pass_ns: tuple[int, ...]
    blocks: int = 1
    launches: int = 0
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class PointSample:
    """All that a backend saw at one point.

    rows: by row name; for each pass they add up to `pass_ns` exactly. pass_ns: device time of each whole pass.
    timed_by: how passes were run (`graph-replay`, `eager`, `cpu-wall`, `fake`). sm_clock_mhz: median while they ran.
    overlap: share of device time in which kernels ran side by side. notes: what makes the numbers doubtful.
    """

    point: SweepPoint
    rows: Mapping[str, RowSample]
    pass_ns: tuple[int, ...]
    timed_by: str
    sm_clock_mhz: float | None = None
    overlap: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PointFailure:
    """A point that could not be measured, and why (`out of memory`)."""

    point: SweepPoint
    reason: str


def trimmed_mean(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without the lowest and the highest tenth, see TRIMMED; of one or two values, of all.

    So three values give their median. Whole nanoseconds are added up exactly, in whichever order they come.
    """
    n = times.shape[-1]
    dropped = max(1, n // TRIMMED) if n >= 3 else 0
    return np.asarray(np.sort(times)[..., dropped : n - dropped].mean(axis=-1))


@dataclass(frozen=True)
class Measurement:
    """Statistics of one quantity over a point's passes, in nanoseconds (per block for rows of blocks).

    trimmed_mean_ns: without the fastest and the slowest tenth of the passes. The others are quantiles.
    interval_ns: of a prediction only, which has no passes: between which times a measurement lies, in 9 of 10 cases.
    """

    n: int
    trimmed_mean_ns: float
    min_ns: float
    q1_ns: float
    median_ns: float
    q3_ns: float
    max_ns: float
    interval_ns: tuple[float, float] | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, pass_ns: Sequence[float], blocks: int = 1) -> "Measurement":
        """Raises ValueError for no passes: nothing measured is not zero."""
        if not pass_ns:
            raise ValueError("no passes to summarise")
        times = np.asarray(pass_ns, dtype=np.float64)
        quantiles = np.quantile(times / blocks, (0.0, 0.25, 0.5, 0.75, 1.0))
        return cls(len(pass_ns), float(trimmed_mean(times)) / blocks, *(float(q) for q in quantiles))

    @property
    def latency_ns(self) -> int:
        """The number that tables carry: the trimmed mean, rounded half up."""
        return math.floor(self.trimmed_mean_ns + 0.5)

    @property
    def statistics_ns(self) -> tuple[float, ...]:
        """What is known of passes: all fields but `n` and the interval, in their order."""
        return self.trimmed_mean_ns, self.min_ns, self.q1_ns, self.median_ns, self.q3_ns, self.max_ns

    @property
    def relative_error(self) -> float:
        """Standard error of the trimmed mean over itself, from the interquartile range (0 for a mean of 0)."""
        if self.trimmed_mean_ns <= 0:
            return 0.0
        sigma = (self.q3_ns - self.q1_ns) / IQR_TO_SIGMA
        return sigma / math.sqrt(self.n) / self.trimmed_mean_ns


@dataclass(frozen=True)
class StoppingRule:
    """When a point has been measured enough: a pure function of its pass times.

    repeat: most passes. precision: relative standard error of the mean pass to reach; 0 asks for exactly `repeat`.
    min_passes: fewest passes before stopping early; of long passes MIN_LONG_PASSES, if that is fewer.
    """

    repeat: int = 100
    precision: float = 0.01
    min_passes: int = field(default=MIN_PASSES)

    @property
    def first_passes(self) -> int:
        """How many passes to run before asking for the first time."""
        return self.repeat if self.precision == 0 else min(self.repeat, self.min_passes, MIN_LONG_PASSES)

    def passes_wanted(self, pass_ns: Sequence[int]) -> int:
        """How many more passes to run: 0 when the mean is known to `precision` or `repeat` is reached.

        Noise that would need more than `repeat` gets `repeat` and no more, so hopeless noise ends too.
        """
        done = len(pass_ns)
        if done >= self.repeat:
            return 0
        if done < self.first_passes:
            return self.first_passes - done
        if self.precision == 0:
            return self.repeat - done
        error = Measurement.of(pass_ns).relative_error
        if done < min(self.min_passes, self.repeat):
            close = error <= FEW_PASSES_CLOSENESS * self.precision
            long = statistics.median(pass_ns) >= LONG_PASS_NS
            return 0 if close and long else min(self.min_passes, self.repeat) - done
        if error <= self.precision:
            return 0
        needed = math.ceil(done * (error / self.precision) ** 2)
        return min(needed, self.repeat) - done
