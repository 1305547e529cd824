"""How far estimates of steps lie from measured ones that they were not fitted to. No torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from llm_profile.records import INTERVAL_COVERS
from llm_profile.serving.composition import FloatArray

FEWEST_OF_A_KIND = 10
"""Fewest held-out steps of a kind that give it an interval of its own; fewer have that of all steps."""


@dataclass(frozen=True)
class HeldOut:
    """Estimates of steps of one kind. log_ratios: logarithms of estimated / measured. Shape [steps]."""

    log_ratios: FloatArray

    @property
    def errors(self) -> FloatArray:
        """|estimated / measured - 1| of each step."""
        return np.abs(np.expm1(self.log_ratios))

    @property
    def reach(self) -> float:
        """|log ratio| that INTERVAL_COVERS of further steps stay within (split conformal: Lei et al. 2018)."""
        steps = len(self.log_ratios)
        rank = min(steps, int(np.ceil((steps + 1) * INTERVAL_COVERS)))
        return float(np.sort(np.abs(self.log_ratios))[rank - 1])

    def __str__(self) -> str:
        median, high, highest = 100 * np.quantile(self.errors, (0.5, 0.9, 0.99))
        return (
            f"{len(self.errors)} steps, error mean {100 * self.errors.mean():.1f} %, median {median:.1f}, "
            f"p90 {high:.1f}, p99 {highest:.1f}, worst {100 * self.errors.max():.1f}"
        )


def lines_of(errors: Mapping[str, HeldOut], what: str) -> Iterator[str]:
    """A line a kind. what: `attention` or `step`."""
    for kind, held_out in errors.items():
        yield f"held-out {what}, {kind}: {held_out}"
