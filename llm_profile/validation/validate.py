"""A table compared with the real model: steps timed, ways of scaling fitted on some and judged on others. No torch.

One model is in memory at a time; what depends on its depth is measured at several and extrapolated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.request import ScalingRequest
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Pair
from llm_profile.validation.estimate import Estimate, check_pairs, model_depth
from llm_profile.validation.judgement import Errors, judge_batches, judge_pairs, judge_recombination
from llm_profile.validation.measured_steps import MeasuredSteps, time_steps
from llm_profile.validation.real_steps import Reality
from llm_profile.validation.report import PairResult, StepResult, ValidationReport, mean_spread
from llm_profile.validation.report_text import warnings_of
from llm_profile.validation.scaling import SCALING_MODES, Scaling, at_depth, kernels_ns
from llm_profile.validation.step_plan import StepPlan, plan_steps

BATCHES = (1, 4, 16, 64)
"""Sequences of the batched decode steps that composed ones are compared with."""


def fit_and_judge(
    table: LatencyTable,
    reality: Reality,
    pairs: Sequence[Pair],
    *,
    depth: int | None = None,
    mode: str = ScalingRequest.mode,
    tolerance: float = ScalingRequest.tolerance,
    repeat: int = ScalingRequest.repeat,
    other_depths: Mapping[int, MeasuredSteps] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ValidationReport:
    """Time the real model's steps, fit every way of scaling on some of them and judge it on the others.

    reality: the real model with `depth` blocks (None: all), already under the table's conditions. pairs: (input,
    output) lengths. mode: the way of scaling to apply, one of SCALING_MODES. tolerance: held-out mean error that is
    accepted, a ratio. repeat: timings of each step. other_depths: fitted steps measured at other depths
    (`measure_fitted`): with a depth below the model's, the excess of steps is extrapolated to the full model; at full
    depth and with two others, that extrapolation is judged. provenance: recorded as it is. Steps of several sequences
    are timed too, to compare them with composed ones. Raises UsageError for pairs beyond the table, before anything
    runs.
    """
    estimate, (fit_plan, held_plan) = _plan(table, pairs, depth)
    fitted, held_out = time_steps(reality, [fit_plan, held_plan], repeat)
    batched = {step.point: step.wall_ns for step in reality.batched(batched_points(pairs, estimate), repeat)}
    scalings, not_fitted = fitted_ways(estimate, fitted, fit_plan.pairs, mode)
    scaled = {name: scaling.applied_to(estimate) for name, scaling in scalings.items()}
    real = [held_out.pair(pair) for pair in held_plan.pairs]
    of_plans = ((False, fit_plan, fitted), (True, held_plan, held_out))
    pair_results = [result for of in of_plans for result in _pair_results(*of, estimate, scaled[mode])]
    judged = [result for result in pair_results if result.held_out] or pair_results
    other = {of: steps for of, steps in (other_depths or {}).items() if of != estimate.depth}
    applied, depth_errors = over_depths(table, estimate, fitted, other, scalings[mode], fit_plan.pairs)
    report = ValidationReport(
        hardware=table.hardware,
        model=table.model,
        clock=table.meta["clock"],
        runtime=reality.runtime,
        depth=estimate.depth,
        model_depth=model_depth(table),
        measured_depths=tuple(sorted({*other, estimate.depth})),
        repeat=repeat,
        mode=mode,
        tolerance=tolerance,
        scaling=applied,
        scalings=scalings,
        not_fitted=not_fitted,
        pairs=tuple(pair_results),
        steps=tuple(result for of in of_plans for result in _step_results(*of, estimate, scaled[mode])),
        errors={name: judge_pairs([of.pair(p) for p in held_plan.pairs], real) for name, of in scaled.items()},
        spread=mean_spread([result.spread for result in judged]),
        spread_between=mean_spread([result.spread_between for result in judged]),
        processes=len({*fitted.processes}) or 1,
        recombination=judge_recombination(scaled[mode], held_out),
        batched=tuple(judge_batches(scaled[mode], batched)),
        depth_errors=depth_errors,
        provenance={**(provenance or {}), "seconds": dict(reality.seconds)},
    )
    drift = max(fitted.drift, held_out.drift)
    return replace(report, warnings=(*reality.notices, *warnings_of(report, drift, estimate.interpolated)))


def fitted_ways(
    estimate: Estimate, fitted: MeasuredSteps, pairs: Sequence[Pair], mode: str
) -> tuple[dict[str, Scaling], dict[str, str]]:
    """Every way of scaling that can be fitted, and why others cannot. Raises UsageError if `mode` is one of those."""
    scalings: dict[str, Scaling] = {}
    not_fitted: dict[str, str] = {}
    for name, fit in SCALING_MODES.items():
        try:
            scalings[name] = fit(estimate, fitted, pairs)
        except UsageError as error:
            if name == mode:
                raise
            not_fitted[name] = str(error)
    return scalings, not_fitted


def over_depths(
    table: LatencyTable,
    estimate: Estimate,
    fitted: MeasuredSteps,
    other_depths: Mapping[int, MeasuredSteps],
    scaling: Scaling,
    pairs: Sequence[Pair],
) -> tuple[Scaling, dict[str, Errors | None] | None]:
    """The scaling to apply to the full model, and the errors of extrapolating over depth where they can be judged.

    scaling: fitted at the estimate's depth, and applied as it is unless that depth is below the model's and others were
    measured.
    """
    other = [(Estimate.of(table, depth), steps) for depth, steps in other_depths.items()]
    errors = None
    if estimate.depth < model_depth(table) and other:
        full = Estimate.of(table)
        scaling = SCALING_MODES[scaling.mode](full, at_depth(full, [*other, (estimate, fitted)]), pairs)
    elif len(other) > 1:
        guessed = at_depth(estimate, other)
        errors = judge_pairs(*([steps.pair(pair) for pair in pairs] for steps in (guessed, fitted)))
    depths = sorted({*other_depths, estimate.depth})
    return replace(scaling, parameters=scaling.parameters | {"measured_depths": depths}), errors


def _pair_results(
    held_out: bool, plan: StepPlan, steps: MeasuredSteps, estimate: Estimate, scaled: Estimate
) -> Iterator[PairResult]:
    for pair in plan.pairs:
        latencies = (steps.pair(pair), estimate.pair(pair), scaled.pair(pair))
        yield PairResult(held_out, *latencies, steps.spread(pair), steps.spread_between(pair))


def _step_results(
    held_out: bool, _plan: StepPlan, steps: MeasuredSteps, estimate: Estimate, scaled: Estimate
) -> Iterator[StepResult]:
    points = sorted(steps.steps)
    for point, kernels, guess in zip(points, kernels_ns(estimate, points), kernels_ns(scaled, points), strict=True):
        yield StepResult(point, held_out, steps.steps[point], float(kernels), float(guess))


def _plan(table: LatencyTable, pairs: Sequence[Pair], depth: int | None) -> tuple[Estimate, tuple[StepPlan, StepPlan]]:
    check_pairs(pairs, table.records, table.missing)
    estimate = Estimate.of(table, depth)
    return estimate, plan_steps(pairs, estimate, table.missing)


def batched_points(pairs: Sequence[Pair], estimate: Estimate) -> list[SweepPoint]:
    """Decode steps of several sequences, at the shortest and the longest prompt, as far as the table's rows go."""
    kv_lens = sorted({min(pairs)[0], max(pairs)[0]})
    return [SweepPoint(1, kv, n) for n in BATCHES if n <= estimate.prefill.lens[-1] for kv in kv_lens]


def measure_fitted(
    table: LatencyTable, reality: Reality, pairs: Sequence[Pair], depth: int, repeat: int = ScalingRequest.repeat
) -> MeasuredSteps:
    """Time only the steps that scaling is fitted on, of a real model with `depth` blocks, for `other_depths` above."""
    _estimate, (fit_plan, _held_plan) = _plan(table, pairs, depth)
    return time_steps(reality, [fit_plan], repeat)[0]


def depths_to_time(full: int, depth: int | None, other_depths: Sequence[int] | None) -> tuple[int, list[int]]:
    """The depth that is validated, and the others that are timed before it, in their order.

    full: blocks of the model. Both others as asked for: None for the full depth, and for half of a smaller one. Raises
    UsageError for other depths that the model does not have.
    """
    depth = full if depth is None else depth
    if other_depths is None:
        other_depths = [depth // 2] if 1 < depth < full else []
    if too_deep := [other for other in other_depths if other > full]:
        raise UsageError(f"--scaling-other-depths {too_deep[0]}: the model has {full} layers; choose 1..{full}")
    return depth, sorted({*other_depths} - {depth})


def validate_over_depths(
    table: LatencyTable,
    open_at: Callable[[int], Reality],
    pairs: Sequence[Pair],
    *,
    depth: int | None = None,
    other_depths: Sequence[int] | None = None,
    repeat: int = ScalingRequest.repeat,
    **options: Any,
) -> ValidationReport:
    """`fit_and_judge` with models opened and closed one after the other, so that one at a time is in memory.

    open_at: opens the real model with so many blocks. other_depths: depths to be measured beside `depth`; by default
    half of it where the full model is deeper, none otherwise. options: as for `fit_and_judge`.
    """
    full = model_depth(table)
    depth, other_depths = depths_to_time(full, depth, other_depths)
    _plan(table, pairs, depth)  # refuses what cannot be estimated before a model is opened
    others: dict[int, MeasuredSteps] = {}
    for other in other_depths:
        reality = open_at(other)
        try:
            others[other] = measure_fitted(table, reality, pairs, other, repeat)
        finally:
            reality.close()
    reality = open_at(depth)
    try:
        return fit_and_judge(table, reality, pairs, depth=depth, other_depths=others, repeat=repeat, **options)
    finally:
        reality.close()
