"""The ratio of two tables' times with its confidence interval, and what that says. Imports no torch.

The ratio is R = sum b_i / sum a_i of the nanoseconds a_i and b_i that A and B took at the common lengths. Two things
make it uncertain:

* the passes of each point: the standard error of its trimmed mean, from the quartiles that a table keeps;
* what differs from length to length, such as another kernel, or where in memory a run had its weights. Neighbouring
  lengths are alike, so they are put into blocks, g of them, BLOCKS at most. The jackknife leaves out one block at a
  time: the variance of log R is (g - 1) / g * sum (log R_j - mean)^2, and the interval has Student's quantile of g - 1
  degrees of freedom.

What the second one sees has the noise of the passes in it, so the wider of the two intervals is taken, not their sum.
Both are of log R, so that the interval of A/B is the inverse of that of B/A. They tell nothing of what a whole run had
in common, such as a lower clock.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.99
"""Of an interval: with 40 rows, one in 20 wrong at 95 % would be two wrong verdicts in every comparison."""

BLOCKS = 64
"""Most blocks of neighbouring lengths."""

STUDENT_T = {1: 63.66, 2: 9.925, 3: 5.841, 4: 4.604, 5: 4.032, 7: 3.499, 10: 3.169, 15: 2.947, 20: 2.845, 30: 2.750}
"""Degrees of freedom -> two-sided quantile of Student's distribution at CONFIDENCE; for others, the next lower."""

WIDEST = 10.0
"""Half the width of an interval of log R beyond which nothing is known: a factor of 22,000 to each side."""

NORMAL = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2)

Times = NDArray[np.float64]


class Verdict(StrEnum):
    """Of B against A."""

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    SAME = "SAME"
    UNDECIDED = "UNDECIDED"


@dataclass(frozen=True)
class Ratio:
    """B / A. low, high: of the confidence interval, 0 and inf where nothing is known of the noise.

    least, most: of the blocks of neighbouring lengths, which tell whether the ratio depends on the length.
    """

    value: float
    low: float
    high: float
    least: float
    most: float

    def verdict(self, tolerance: float) -> Verdict:
        """tolerance: how far apart times may be that count as the same, as a ratio (0.02).

        UNDECIDED where the interval crosses a bound of the tolerance, which are 1 / (1 + tolerance) and 1 + tolerance.
        """
        if self.slower_by(tolerance):
            return Verdict.SLOWER
        if self.high < 1 / (1 + tolerance):
            return Verdict.FASTER
        within = 1 / (1 + tolerance) <= self.low and self.high <= 1 + tolerance
        return Verdict.SAME if within else Verdict.UNDECIDED

    def slower_by(self, share: float) -> bool:
        """Whether B is decidedly slower by more than `share` (0.05): its whole interval lies above."""
        return self.low > 1 + share


def ratio_of_sums(a_ns: Times, b_ns: Times, a_error_ns: Times, b_error_ns: Times) -> Ratio:
    """B / A over all lengths, each length with the same weight. All arrays have shape [lengths], by length.

    Errors: standard errors of the times; NaN where there was one pass only. Raises ValueError for sums of 0.
    """
    a_sum, b_sum = float(a_ns.sum()), float(b_ns.sum())
    if not (a_sum > 0 and b_sum > 0):
        raise ValueError("no ratio of times of 0")
    value = b_sum / a_sum
    blocks = np.array_split(np.arange(len(a_ns)), min(len(a_ns), BLOCKS))
    a_blocks, b_blocks = (np.array([times[block].sum() for block in blocks]) for times in (a_ns, b_ns))
    widths = (_of_passes(a_sum, b_sum, a_error_ns, b_error_ns), _of_lengths(a_blocks, b_blocks))
    width = max((width for width in widths if width is not None), default=math.inf)
    of_blocks = b_blocks[a_blocks > 0] / a_blocks[a_blocks > 0]
    least, most = float(of_blocks.min()), float(of_blocks.max())
    if width > WIDEST:
        return Ratio(value, 0.0, math.inf, least, most)
    return Ratio(value, value * math.exp(-width), value * math.exp(width), least, most)


def _of_passes(a_sum: float, b_sum: float, a_error_ns: Times, b_error_ns: Times) -> float | None:
    """Half the interval of log R by the noise of the passes; None where that is not known of any length."""
    relative = [np.nansum(error**2) / total**2 for error, total in ((a_error_ns, a_sum), (b_error_ns, b_sum))]
    if np.isnan(a_error_ns).all() or np.isnan(b_error_ns).all():
        return None
    return NORMAL * math.sqrt(sum(relative))


def _of_lengths(a_blocks: Times, b_blocks: Times) -> float | None:
    """Half the interval of log R by what differs between blocks of lengths; None for a single one."""
    count = len(a_blocks)
    if count < 2:
        return None
    a_others, b_others = a_blocks.sum() - a_blocks, b_blocks.sum() - b_blocks
    if not (a_others.min() > 0 and b_others.min() > 0):  # all of the time is in one block
        return math.inf
    left_out = np.log(b_others / a_others)
    error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    return STUDENT_T[max(known for known in STUDENT_T if known <= count - 1)] * error
