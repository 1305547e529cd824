"""Times along a length that some points of a table have. No torch."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LengthCurve:
    """Time in ns over a length: linear between known lengths; beyond the longest, each one more adds `slope_ns`."""

    lengths: NDArray[np.int_]  # [known], ascending
    times_ns: NDArray[np.int_]  # [known]

    @property
    def longest(self) -> int:
        """The longest known length."""
        return int(self.lengths[-1])

    @cached_property
    def slope_ns(self) -> float:
        """Median over all pairs of lengths that are half of the curve apart, which single slow lengths do not move."""
        half = len(self.lengths) // 2
        rises = (self.times_ns[half:] - self.times_ns[:-half]) / (self.lengths[half:] - self.lengths[:-half])
        return max(0.0, float(np.median(rises)))

    @property
    def pair_ns(self) -> float:
        """Time over the pairs of a query and a key that it covers: the median over the longer half of all prompts."""
        lengths, times_ns = (values[len(self.lengths) // 2 :] for values in (self.lengths, self.times_ns))
        return float(np.median(times_ns * 2 / (lengths * (lengths + 1))))

    def at(self, length: int) -> float:
        """Time at a length in ns."""
        known = float(np.interp(length, self.lengths, self.times_ns))
        return known + self.slope_ns * max(0, length - self.longest)
