"""Rows whose time follows one number of a step: the tokens fed, or the number of sequences. No torch.

A packed pass of T tokens launches for its dense layers what a prompt of T tokens launches. So the prompts of a table
give the time along the number, with its steps, and the measured compositions the ratio to it, which is about 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llm_profile.serving.composition import FloatArray
from llm_profile.serving.curve import LengthCurve

NEIGHBOURS = 7
"""Measured compositions, nearest by their number, whose median ratio counts."""


@dataclass(frozen=True)
class CountedRow:
    """One row. prompts: its time along the number in prompts. numbers, ratios: of compositions, shape [compositions];
    ascending."""

    prompts: LengthCurve
    numbers: FloatArray
    ratios: FloatArray

    @classmethod
    def of(cls, prompts: Mapping[int, int], compositions: list[tuple[int, int]]) -> "CountedRow":
        """prompts: number -> ns. compositions: (number, ns) of each. One of them may be empty."""
        known = prompts if len(prompts) > 1 and any(prompts.values()) else _medians(compositions)
        lengths = sorted(known)
        curve = LengthCurve(np.array(lengths), np.array([known[length] for length in lengths]))
        pairs = sorted((number, time_ns / shape) for number, time_ns in compositions if (shape := _at(curve, number)))
        numbers, ratios = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        return cls(curve, numbers, ratios)

    def ratio(self, number: int) -> float:
        """What compositions near this number take over prompts of it; 1 where there are none."""
        if not self.numbers.size:
            return 1.0
        distance = np.abs(np.log(self.numbers / number))
        reach = np.sort(distance)[min(NEIGHBOURS, distance.size) - 1]
        return float(np.median(self.ratios[distance <= reach]))

    def at(self, number: int) -> float:
        """Time in ns."""
        return _at(self.prompts, number) * self.ratio(number)


def _at(curve: LengthCurve, number: int) -> float:
    return curve.at(number) if len(curve.lengths) > 1 else float(curve.times_ns[0])


def _medians(compositions: list[tuple[int, int]]) -> dict[int, int]:
    times: dict[int, list[int]] = {}
    for number, time_ns in compositions:
        times.setdefault(number, []).append(time_ns)
    return {number: round(float(np.median(found))) for number, found in times.items()}
