"""From kernel time to real time: three ways of scaling a table. No torch.

A step of the real model takes longer than the sum of its kernels: launches, gaps, Python. That is paid once per step,
so the `curve` puts it on the rows that consumers add once per step and leaves `rope` and `attn` at kernel time.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.sweep import DECODE, PREFILL, Pair
from llm_profile.validation.estimate import Estimate, Factors, FloatArray, Passes, is_request_row
from llm_profile.validation.measured_steps import MeasuredSteps

LEAST_STEP_FACTOR = 0.1
"""Where a noisy table leaves a step less than its rope and attn rows alone, the other rows keep this share: rows of
nothing, or less, would break simulators."""

OCTAVE = math.log(2)


@dataclass(frozen=True)
class Scaling:
    """Factors for every row and length of a table, of a model of `depth` blocks at batch 1.

    parameters: what they were computed from, as JSON: one factor, one per phase, or the curve's knots.
    """

    mode: str
    depth: int
    prefill: Factors
    decode: Factors
    parameters: dict[str, Any]

    def applied_to(self, estimate: Estimate) -> Estimate:
        """What the scaled table implies, before its numbers are rounded. estimate: of the table it was fitted on."""
        return estimate.times(self.prefill, self.decode)

    def of_rows(self, rows: Sequence[str], point: SweepPoint) -> FloatArray:
        """The factor of each of these rows at a point. Shape [rows].

        Raises LookupError for a point that the fitted table does not have, and for what is no step of one sequence.
        """
        for series, factors in ((PREFILL, self.prefill), (DECODE, self.decode)):
            if series.has(point):
                (at,) = np.nonzero(factors.lens == series.length(point))
                if at.size:
                    return np.array([(factors.request if is_request_row(row) else factors.step)[at[0]] for row in rows])
        raise LookupError(f"{point}: the scaling was not fitted for it")

    @property
    def factor_range(self) -> tuple[float, float]:
        """The smallest factor of any row, and the largest."""
        factors = np.concatenate([values for of in (self.prefill, self.decode) for values in (of.step, of.request)])
        return float(factors.min()), float(factors.max())


def constant(passes: Passes, factor: float) -> Factors:
    """One factor for every row and length of a phase."""
    values = np.full(len(passes.lens), factor)
    return Factors(passes.lens, values, values)


def global_scaling(estimate: Estimate, factor: float) -> Scaling:
    """Every row of a table times one factor."""
    factors = {"prefill": constant(estimate.prefill, factor), "decode": constant(estimate.decode, factor)}
    return Scaling("global", estimate.depth, **factors, parameters={"factor": factor})


def average_factor(estimate: Estimate, measured: MeasuredSteps, pairs: Sequence[Pair]) -> float:
    """Mean over pairs of measured / estimated total latency."""
    return float(np.mean([measured.pair(pair).total_ns / estimate.pair(pair).total_ns for pair in pairs]))


def fit_global(estimate: Estimate, measured: MeasuredSteps, pairs: Sequence[Pair]) -> Scaling:
    """The documented one average: mean over pairs of measured / estimated total."""
    return global_scaling(estimate, average_factor(estimate, measured, pairs))


def fit_phase(estimate: Estimate, measured: MeasuredSteps, pairs: Sequence[Pair]) -> Scaling:
    """One factor per phase: means over pairs of measured / estimated TPOT and TTFT.

    (1, 0) takes the decode factor: consumers look up the rows of a decode step there. `lm_head` of a prompt is one of
    them, so the prefill factor is of what remains. Raises UsageError where no pair has a decode step to fit.
    """
    both = [(measured.pair(pair), estimate.pair(pair)) for pair in pairs]
    ratios = [real.tpot_ns / kernels.tpot_ns for real, kernels in both if real.tpot_ns and kernels.tpot_ns]
    if not ratios:
        raise UsageError("--scaling-mode phase: no pair has a decode step; raise --scaling-output-max to 2 or more")
    decode = float(np.mean(ratios))
    head_ns = estimate.prefill.head_ns[0]
    rests = [
        (real.ttft_ns - decode * head_ns) / (kernels.ttft_ns - head_ns) for real, kernels in both if real.input_len > 1
    ]
    return phase_scaling(estimate, float(np.mean(rests)) if rests else decode, decode)


def phase_scaling(estimate: Estimate, prefill: float, decode: float) -> Scaling:
    """One factor for prompts and one for decode steps, which (1, 0) has too."""
    of_prefill = np.where(estimate.prefill.lens == 1, decode, prefill)
    return Scaling(
        "phase",
        estimate.depth,
        Factors(estimate.prefill.lens, of_prefill, of_prefill),
        constant(estimate.decode, decode),
        {"prefill_factor": prefill, "decode_factor": decode},
    )


def fit_curve(estimate: Estimate, measured: MeasuredSteps, pairs: Sequence[Pair]) -> Scaling:
    """What a step costs beyond its kernels, linear over log(input + kv_cache) between knots, by phase.

    Prefill has a knot at each measured length, where the scaled estimate is the measured step, `lm_head` of one token
    included; `prefill_excess_ns` is for those between. Decode has a knot an octave, least squares over all windows: its
    excess hardly varies, single steps do. Beyond the ends, which are the table's unless a step there could not run, the
    excess is held.

    (1, 0) is one point of both phases. Simulators look up the rows that decode steps pay once there, so its excess is
    the median of what decode steps lack when recombined from it; a prompt of one token would add what `generate` does
    before its first step. Raises UsageError where the model gave neither a decode step nor a prompt of one token.
    """
    lens = [input_len for input_len in measured.input_lens if input_len > 1]
    windows = [np.asarray(window) for window in measured.windows]
    if windows:
        lacking = measured.window_ns - [np.mean(estimate.composed_ns(window)) for window in windows]
        shared = float(np.median(lacking))
    else:
        shared = measured.prefill_ns(1) - float(estimate.prefill_ns(1))
    prefill_excess = np.array([measured.prefill_ns(value) for value in lens]) - estimate.prefill_ns(lens)
    decode_knots, decode_excess = _decode_curve(estimate, measured) if windows else (np.zeros(1), np.array([shared]))
    last_input, last_kv = (lens or [1])[-1], int(windows[-1][-1]) if windows else 0
    parameters = {
        "shared_excess_ns": shared,
        "prefill_knots": _knots("input", lens, prefill_excess),
        "decode_knots": _knots("kv_cache", np.expm1(decode_knots).tolist(), decode_excess),
        "held_beyond": {
            "input": last_input if estimate.prefill.lens[-1] > last_input else None,
            "kv_cache": last_kv if estimate.decode.lens[-1] > last_kv else None,
        },
    }
    return _curve_scaling(estimate, shared, (lens, prefill_excess), (decode_knots, decode_excess), parameters)


def _curve_scaling(
    estimate: Estimate,
    shared: float,
    of_prefill: tuple[Sequence[float], FloatArray],
    of_decode: tuple[FloatArray, FloatArray],
    parameters: dict[str, Any],
) -> Scaling:
    """The factors that put an excess in nanoseconds on the rows of a step.

    shared: that of (1, 0). of_prefill: lengths in tokens, and the excess there. of_decode: log(1 + kv_cache), likewise.
    """
    prefill, decode = estimate.prefill, estimate.decode
    lens, prefill_excess = of_prefill
    excess = np.full(len(prefill.lens), shared)
    if lens:
        excess = prefill_excess_ns(estimate, lens, estimate.prefill_ns(lens) + prefill_excess)
    excess[0] = shared
    head_ns = prefill.head_ns[0]
    first = 1 + shared / (prefill.step_ns[0] + head_ns)
    # `lm_head` of a prompt is looked up at (1, 0) and comes with that point's factor: the other rows make up the rest.
    prefill_step = 1 + (excess - (first - 1) * head_ns) / prefill.step_ns
    decode_step = 1 + np.interp(np.log1p(decode.lens), *of_decode) / (decode.step_ns + decode.head_ns)
    prefill_step[0] = decode_step[0] = first
    return Scaling(
        "curve",
        estimate.depth,
        Factors(prefill.lens, np.maximum(prefill_step, LEAST_STEP_FACTOR), np.ones_like(prefill_step)),
        Factors(decode.lens, np.maximum(decode_step, LEAST_STEP_FACTOR), np.ones_like(decode_step)),
        parameters,
    )


def prefill_excess_ns(estimate: Estimate, lens: Sequence[float], walls_ns: FloatArray) -> FloatArray:
    """What the prompts of a table cost beyond their kernels, from those of `lens` tokens. Shape [input lengths].

    Linear over log(input) between them, and held beyond. But where the host is slower than the GPU, a step takes as
    long as the host does, whatever its kernels take: so a length whose kernels lie off the line between those beside it
    is moved from the line between their walls by as much of that as walls follow kernels there, from none to all.
    """
    kernels = estimate.prefill_ns(estimate.prefill.lens)
    x, knots, known = np.log(estimate.prefill.lens), np.log(lens), estimate.prefill_ns(lens)
    longer, more_work = np.diff(walls_ns), np.diff(known)
    follows = np.clip(np.divide(longer, more_work, out=np.ones_like(longer), where=more_work > 0), 0, 1)
    between = np.searchsorted(knots, x, side="right")  # 0 and len(knots) are beyond the ends
    share = np.concatenate([[1.0], follows, [1.0]])[between]
    off_line = kernels - np.interp(x, knots, known)
    return np.asarray(np.interp(x, knots, walls_ns - known) + (share - 1) * off_line)


def _decode_curve(estimate: Estimate, measured: MeasuredSteps) -> tuple[FloatArray, FloatArray]:
    """Knots in log(1 + kv_cache) and the excess there in nanoseconds, both of shape [knots].

    Knots are windows at least an octave apart, so each has a window of its own, and both ends.
    """
    excess = measured.window_ns - [np.mean(estimate.decode_ns(np.asarray(window))) for window in measured.windows]
    x = np.array([np.mean(np.log1p(window)) for window in measured.windows])  # [windows]
    knots = [x[0]]
    for inner in x[1:-1]:
        if inner - knots[-1] >= OCTAVE and x[-1] - inner >= OCTAVE / 2:
            knots.append(inner)
    if len(x) > 1:
        knots.append(x[-1])
    shape = np.array([np.interp(x, knots, hat) for hat in np.eye(len(knots))]).T  # [windows, knots]
    weight = np.sqrt([len(window) for window in measured.windows])
    at_knots, *_ = np.linalg.lstsq(shape * weight[:, None], excess * weight)
    return np.array(knots), np.asarray(at_knots, dtype=np.float64)


def _knots(length: str, lens: Sequence[float], excess_ns: FloatArray) -> list[dict[str, float]]:
    return [{length: at, "excess_ns": float(value)} for at, value in zip(lens, excess_ns, strict=True)]


SCALING_MODES: dict[str, Callable[[Estimate, MeasuredSteps, Sequence[Pair]], Scaling]] = {
    "global": fit_global,
    "phase": fit_phase,
    "curve": fit_curve,
}
"""The ways of scaling, by the name that --scaling-mode gives them."""


def scaling_of(estimate: Estimate, mode: str, parameters: Mapping[str, Any]) -> Scaling:
    """The scaling that was fitted with these parameters, as `Scaling.parameters` has them.

    estimate: of the same table and depth. Raises KeyError, TypeError and ValueError for parameters of no such mode.
    """
    if mode == "global":
        return global_scaling(estimate, parameters["factor"])
    if mode == "phase":
        return phase_scaling(estimate, parameters["prefill_factor"], parameters["decode_factor"])
    if mode != "curve":
        raise ValueError(f"{mode}: no way of scaling")

    def knots(phase: str, length: str) -> tuple[list[float], FloatArray]:
        found = parameters[f"{phase}_knots"]
        return [knot[length] for knot in found], np.array([knot["excess_ns"] for knot in found], dtype=np.float64)

    lens, excess = knots("decode", "kv_cache")
    of_decode = (np.log1p(lens), excess)
    return _curve_scaling(
        estimate, parameters["shared_excess_ns"], knots("prefill", "input"), of_decode, dict(parameters)
    )


def at_depth(target: Estimate, shallower: Sequence[tuple[Estimate, MeasuredSteps]]) -> MeasuredSteps:
    """Steps of a model of `target.depth` blocks, from steps measured at two or more other depths.

    A step's excess over its kernels is taken as linear in depth (least squares, exact for two) and put on the target's
    kernels. Steps that were not measured at every depth are left out; what remains has one repeat.
    Raises ValueError for fewer than two different depths.
    """
    depths = [estimate.depth for estimate, _measured in shallower]
    if len(set(depths)) < 2:
        raise ValueError(f"a line in depth needs two different depths, not {depths}")
    shared = set.intersection(*(set(measured.steps) for _estimate, measured in shallower))
    points = sorted(shared)
    excess = [
        np.array([np.median(measured.steps[point]) for point in points]) - kernels_ns(estimate, points)
        for estimate, measured in shallower
    ]  # [depths][points]
    slope, start = np.polyfit(depths, np.array(excess), deg=1)
    steps = kernels_ns(target, points) + start + slope * target.depth
    windows = [tuple(kv for kv in window if SweepPoint(1, kv) in shared) for window in shallower[0][1].windows]
    return MeasuredSteps(
        {point: (float(step),) for point, step in zip(points, steps, strict=True)},
        tuple(window for window in windows if window),
    )


def kernels_ns(estimate: Estimate, points: Iterable[SweepPoint]) -> FloatArray:
    """The estimate of single steps, prefill with `lm_head` of one token. Shape [points].

    Raises LookupError for what is no step of one sequence, and beyond the table.
    """

    def step_ns(point: SweepPoint) -> float:
        if PREFILL.has(point):
            return float(estimate.prefill_ns(point.input_len))
        if DECODE.has(point):
            return float(estimate.decode_ns(point.kv_len))
        raise LookupError(f"{point}: an estimate has prefill and decode steps of one sequence")

    return np.array([step_ns(point) for point in points])
