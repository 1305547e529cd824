"""The numbers that a page draws, as JSON for its script. Imports no torch.

Lists of many whole numbers are packed (packing.py). Latencies are those of the table, in ns, one call or one block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_profile.report.curves import Curve, SeriesCurves, head_row
from llm_profile.report.layer_groups import colours, stacked
from llm_profile.report.packing import packed
from llm_profile.report.roofline import Roofline
from llm_profile.report.validation_files import ValidationFile
from llm_profile.validation.estimate import PairLatency
from llm_profile.validation.measured_steps import QUANTITIES, quantity_ns

CLOCK_STEPS_PER_MHZ = 4
"""Clocks are medians of a few whole numbers of MHz."""

NOT_THERE = 0
"""In place of a clock or a latency that there is none of."""


@dataclass
class Kernels:
    """Names of kernels, and the lists of them that rows launch, each once and by number."""

    names: dict[str, int] = field(default_factory=dict[str, int])
    sets: dict[tuple[int, ...], int] = field(default_factory=dict[tuple[int, ...], int])

    def number_of(self, names: Sequence[str]) -> int:
        """The number of a list of kernels, a new one where it is new."""
        members = tuple(self.names.setdefault(name, len(self.names)) for name in names)
        return self.sets.setdefault(members, len(self.sets))


def page_data(
    curves: Sequence[SeriesCurves],
    weight: Mapping[str, int],
    one_logit: bool,
    roofs: Roofline,
    validations: Sequence[ValidationFile],
) -> dict[str, Any]:
    """All that the script of a page reads. weight: how often each row counts in a pass."""
    rows = stacked(dict.fromkeys(row for of in curves for row in of.rows))
    colour, kernels = colours(rows), Kernels()
    series = [_series(of, rows, head_row(of, one_logit), kernels) for of in curves]
    return {
        "rows": [{"name": row, "colour": colour[row], "weight": weight[row]} for row in rows],
        "series": series,
        "kernels": {"names": list(kernels.names), "sets": [list(members) for members in kernels.sets]},
        "roofline": _roofline(roofs, rows),
        "validations": [_validation(validation) for validation in validations],
    }


def _series(curves: SeriesCurves, rows: Sequence[str], head: str | None, kernels: Kernels) -> dict[str, Any]:
    clocks = [round(CLOCK_STEPS_PER_MHZ * clock) if clock else NOT_THERE for clock in curves.clock_mhz]
    return {
        "name": curves.name,
        "lengths": packed(curves.lengths),
        "every": curves.every,
        "head": None if head is None else rows.index(head),
        "rows": [_curve(curves.rows[row], kernels) if row in curves.rows else None for row in rows],
        "pass": _curve(curves.whole_pass, kernels),
        "clock": packed(clocks) if any(clocks) else None,
        "slow": packed(curves.slow),
        "again": packed(curves.again),
        "filled": packed(curves.filled),
    }


def _curve(curve: Curve, kernels: Kernels) -> dict[str, Any]:
    return {
        "ns": packed(curve.latency_ns),
        "below": packed(curve.band.below_ns),
        "above": packed(curve.band.above_ns),
        "starts": packed(stretch.start for stretch in curve.stretches),
        "launches": packed(stretch.launches for stretch in curve.stretches),
        "sets": packed(kernels.number_of(stretch.kernels) for stretch in curve.stretches),
    }


def _roofline(roofs: Roofline, rows: Sequence[str]) -> dict[str, Any]:
    """Places are [length, FLOP per byte, FLOP/s], in four figures."""
    roof = roofs.roof
    return {
        "roof": roof and {"flops": roof.flops_per_sec, "bandwidth": roof.bandwidth_bytes_per_sec},
        "places": [
            {
                "row": rows.index(row),
                "phase": phase,
                "at": [[p.length, _four(p.intensity), _four(p.flops_per_sec)] for p in places],
            }
            for row, by_phase in roofs.places.items()
            if row in rows
            for phase, places in by_phase.items()
        ],
    }


def _validation(validation: ValidationFile) -> dict[str, Any]:
    """Pairs as columns; times of QUANTITIES one behind the other, in whole ns."""
    return {
        "runtime": validation.runtime,
        "mode": validation.mode,
        "tolerance": validation.tolerance,
        "inputs": packed(pair.input_len for pair in validation.measured),
        "outputs": packed(pair.output_len for pair in validation.measured),
        "held_out": packed(map(int, validation.held_out)),
        "measured": _times(validation.measured),
        "estimates": {way: _times(pairs) for way, pairs in validation.estimates.items()},
    }


def _times(pairs: Sequence[PairLatency]) -> dict[str, str]:
    return {
        quantity: packed(round(quantity_ns(pair, quantity) or NOT_THERE) for pair in pairs) for quantity in QUANTITIES
    }


def _four(value: float) -> float:
    return float(f"{value:.4g}")
