"""How far scaled estimates are from the real model. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm_profile.points import SweepPoint
from llm_profile.validation.estimate import Estimate, PairLatency
from llm_profile.validation.measured_steps import QUANTITIES, MeasuredSteps, quantity_ns


@dataclass(frozen=True)
class Errors:
    """Sizes of relative errors, |estimated - measured| / measured, over `n` cases."""

    mean: float
    p90: float
    worst: float
    n: int

    @classmethod
    def of(cls, estimated: Sequence[float], measured: Sequence[float]) -> "Errors | None":
        """None where there is nothing to judge."""
        if not len(measured):
            return None
        sizes = np.abs(np.asarray(estimated) / np.asarray(measured) - 1)
        return cls(float(np.mean(sizes)), float(np.quantile(sizes, 0.9)), float(np.max(sizes)), len(sizes))


def judge_pairs(estimated: Sequence[PairLatency], measured: Sequence[PairLatency]) -> dict[str, Errors | None]:
    """Errors of TTFT, TPOT and total over pairs; None for TPOT where no pair has a decode step."""
    pairs = list(zip(estimated, measured, strict=True))
    errors: dict[str, Errors | None] = {}
    for quantity in QUANTITIES:
        values = [(quantity_ns(guess, quantity), quantity_ns(real, quantity)) for guess, real in pairs]
        both = [(guess, real) for guess, real in values if guess is not None and real is not None]
        errors[quantity] = Errors.of([guess for guess, _real in both], [real for _guess, real in both])
    return errors


def judge_recombination(scaled: Estimate, measured: MeasuredSteps) -> dict[str, Errors | None]:
    """Errors of decode steps read from a scaled table in the two ways that consumers do.

    own_point: every row at (1, k). recombined: rows paid per step at (1, 0), `rope` and `attn` at (1, k).
    """
    ways = {"own_point": scaled.decode_ns, "recombined": scaled.composed_ns}
    windows = [np.asarray(window) for window in measured.windows]
    real = [float(value) for value in measured.window_ns] if windows else []
    return {
        way: Errors.of([float(np.mean(step_ns(window))) for window in windows], real) for way, step_ns in ways.items()
    }


@dataclass(frozen=True)
class BatchedStep:
    """A decode step of n sequences of one length, composed as simulators do, and the real one.

    request_ns: the part of `composed_ns` that is `rope` and `attn` of one sequence, n times: the simulators' own
    approximation, as a real batched step attends to n caches in one kernel.
    """

    sequences: int
    kv_len: int
    measured_ns: float
    composed_ns: float
    request_ns: float

    @property
    def error(self) -> float:
        """composed / measured - 1."""
        return self.composed_ns / self.measured_ns - 1


def judge_batches(scaled: Estimate, steps: Mapping[SweepPoint, Sequence[float]]) -> list[BatchedStep]:
    """Hold composed steps against real ones. steps: wall times of points (1, k) with `batch` sequences, per repeat.

    Raises ValueError for other points.
    """
    if others := [point for point in steps if point.input_len > 1]:
        raise ValueError(f"{others[0]}: only decode steps are composed")
    return [
        BatchedStep(
            point.batch,
            point.kv_len,
            float(np.median(walls)),
            float(scaled.composed_ns(point.kv_len, point.batch)),
            point.batch * float(scaled.decode.at(point.kv_len, scaled.decode.request_ns)),
        )
        for point, walls in sorted(steps.items())
    ]
