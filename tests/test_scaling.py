import json
import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.sweep import Sweep
from llm_profile.validation.estimate import Estimate, decode_lens
from llm_profile.validation.judgement import Errors, judge_batches, judge_pairs, judge_recombination
from llm_profile.validation.measured_steps import MeasuredSteps, relative_spread, time_steps
from llm_profile.validation.real_steps import StepTimes
from llm_profile.validation.scaling import (
    LEAST_STEP_FACTOR,
    SCALING_MODES,
    at_depth,
    average_factor,
    fit_curve,
    fit_global,
    fit_phase,
    kernels_ns,
    prefill_excess_ns,
    scaling_of,
)
from llm_profile.validation.step_plan import WINDOW_STEPS, WINDOWS, StepPlan, decode_windows, plan_steps, windows_beyond
from tests.fake_reality import FakeReality, make_table, true_kernels_ns
from tests.table_samples import NOT_FLAT

TABLE = make_table()
ESTIMATE = Estimate.of(TABLE)
PAIRS = [(i, o) for i in (32, 64, 96, 128) for o in (16, 32, 48, 64)]


def measured(overhead_ns, pairs=PAIRS, depth=6, estimate=None, **options):
    """Fitted and held-out steps of a fake model, and the pairs of each."""
    estimate = estimate or Estimate.of(TABLE, depth)
    plans = plan_steps(pairs, estimate)
    reality = FakeReality(overhead_ns, depth, **options)
    return list(zip(time_steps(reality, plans, 3), [plan.pairs for plan in plans], strict=True))


def worst(scaling, steps, pairs):
    """The largest held-out error of each quantity."""
    scaled = scaling.applied_to(ESTIMATE)
    errors = judge_pairs([scaled.pair(pair) for pair in pairs], [steps.pair(pair) for pair in pairs])
    return {quantity: of.worst for quantity, of in errors.items()}


# ---- which steps are timed


@given(st.integers(1, 5_000), st.integers(0, 5_000))
def test_windows_alternate_and_never_meet(first, more):
    last = first + more
    windows = decode_windows(first, last)
    assert len(windows) % 2 == 1 and len(windows) <= WINDOWS
    assert windows[0].start == first and windows[-1].stop == last + 1
    assert all(low.stop <= high.start and len(low) for low, high in zip(windows, windows[1:], strict=False))
    assert more < WINDOWS or len(windows) == WINDOWS
    assert more < WINDOWS * WINDOW_STEPS or {len(window) for window in windows} == {WINDOW_STEPS}
    if more < WINDOWS * WINDOW_STEPS:
        assert sum(map(len, windows)) == more + 1, "every step of a short range"


@given(st.integers(1, 3_000), st.integers(0, 3_000), st.integers(0, 3_000))
def test_windows_beyond_reach_the_tables_ends(first, more, beyond):
    last, table_last = first + more, first + more + beyond
    windows = windows_beyond(first, last, table_last)
    covered = [kv_len for window in windows for kv_len in window]
    assert len(covered) == len(set(covered))
    assert not set(covered) & set(range(first, last + 1))
    assert min([first, *covered]) == 1 and max([last, *covered]) == table_last


@settings(deadline=None)
@given(
    st.integers(1, 120),
    st.integers(0, 120),
    st.integers(1, 130),
    st.integers(1, 60),
    st.integers(0, 20),
    st.integers(1, 21),
)
def test_no_step_is_both_fitted_and_held_out(low, width, step, out_low, out_width, out_step):
    pairs = [
        (i, o) for i in range(low, low + width + 1, step) for o in range(out_low, out_low + out_width + 1, out_step)
    ]
    fitted, held_out = plan_steps(pairs, ESTIMATE)
    assert not fitted.points & held_out.points
    assert {(1, 0), (256, 0)} <= {(point.input_len, point.kv_len) for point in fitted.points}
    assert SweepPoint(1, 1) in fitted.points and SweepPoint(1, 320) in fitted.points
    assert {*fitted.pairs, *held_out.pairs} >= {*pairs} or not held_out.windows
    for plan in (fitted, held_out):
        assert {pair[0] for pair in plan.pairs} <= {*plan.input_lens}
        assert plan.windows or not any(decode_lens(pair) for pair in plan.pairs)
        assert all(pair[0] + pair[1] - 2 <= 320 for pair in plan.pairs)
    if low >= 4:
        assert held_out.pairs


def test_the_documented_grid_is_fitted_whole_and_judged_between():
    pairs = [(i, o) for i in range(128, 1025, 128) for o in range(128, 1025, 128)]
    estimate = Estimate.of(make_table(Sweep(prefill_max=2048, decode_max=2048, prefill_step=64, decode_step=64)))
    fitted, held_out = plan_steps(pairs, estimate)
    assert fitted.pairs == tuple(pairs)
    assert fitted.input_lens == (1, 2, 4, 8, 16, 32, 64, *range(128, 1025, 128), 2048)
    assert held_out.input_lens == tuple(range(192, 1024, 128))
    assert len(held_out.pairs) == 49
    steps = sum(map(len, fitted.windows)) + sum(map(len, held_out.windows))
    assert steps < 150, "a pair's steps are shared, or validation takes an hour"


def test_missing_points_are_never_run():
    gone = {SweepPoint(256, 0), SweepPoint(1, 320), SweepPoint(80, 0)}
    fitted, held_out = plan_steps(PAIRS, ESTIMATE, gone)
    assert not gone & (fitted.points | held_out.points)
    assert 80 in plan_steps(PAIRS, ESTIMATE)[1].input_lens


# ---- what was timed


def test_a_pair_is_composed_from_medians_of_its_steps():
    steps = MeasuredSteps.of(
        {SweepPoint(8, 0): (90, 100, 170), SweepPoint(1, 8): (10, 12, 11), SweepPoint(1, 10): (31, 40, 29)}
    )
    pair = steps.pair((8, 4))
    assert (pair.ttft_ns, pair.tpot_ns, pair.total_ns) == (100, (11 + 21 + 31) / 3, 100 + 11 + 21 + 31)
    assert steps.spread((8, 4)) == {
        "ttft": 80 / 100,
        "tpot": pytest.approx((26 - 20) / 20.5),
        "total": pytest.approx((230 - 90 - 61.5) / 178),
    }
    assert steps.pair((8, 1)).tpot_ns is None and steps.spread((8, 1))["tpot"] is None
    assert relative_spread([2, 3, 4]) == pytest.approx(2 / 3)


PROMPT, STEP = SweepPoint(8, 0), SweepPoint(1, 8)


def test_spreads_and_drift_of_several_processes():
    """Three rounds in each of two processes, then two in a third, of a prompt and a step of eight tokens."""
    steps = MeasuredSteps(
        {PROMPT: (100, 110, 120, 200, 200, 240, 160, 176), STEP: (10, 10, 11, 20, 22, 24, 30, 33)},
        ((8,),),
        (0, 0, 0, 1, 1, 1, 2, 2),
    )
    pair = steps.pair((8, 2))
    assert (pair.ttft_ns, pair.tpot_ns, pair.total_ns) == (168, 21, 189), "medians over all rounds"
    within = steps.spread((8, 2))
    assert within["ttft"] == pytest.approx((20 / 110 + 40 / 200 + 16 / 168) / 3)
    assert within["tpot"] == pytest.approx((1 / 10 + 4 / 22 + 3 / 31.5) / 3)
    assert within["total"] == pytest.approx((21 / 120 + 44 / 222 + 19 / 199.5) / 3)
    between = steps.spread_between((8, 2))
    assert between["ttft"] == pytest.approx((200 - 110) / 168)
    assert between["tpot"] == pytest.approx((31.5 - 10) / 22)
    assert between["total"] == pytest.approx((222 - 120) / 199.5)
    # last / first of each process: 1.2, 1.2 and 1.1 of the prompt, 1.1, 1.2 and 1.1 of the step
    assert steps.drift == pytest.approx(0.15)
    assert steps.spread_between((8, 1))["tpot"] is steps.spread((8, 1))["tpot"] is None


def test_one_process_has_no_spread_to_another():
    walls = {PROMPT: (100, 130, 110), STEP: (10, 12, 11)}
    for steps in (MeasuredSteps(walls, ((8,),)), MeasuredSteps(walls, ((8,),), (0, 0, 0))):
        assert steps.spread_between((8, 2)) == {"ttft": None, "tpot": None, "total": None}
        assert steps.spread((8, 2))["ttft"] == pytest.approx(30 / 110)
        assert steps.drift == pytest.approx(0.1)


def test_one_round_in_each_process_has_no_spread_inside():
    steps = MeasuredSteps({PROMPT: (100, 130), STEP: (10, 12)}, ((8,),), (0, 1))
    assert steps.spread((8, 2)) == {"ttft": 0, "tpot": 0, "total": 0}
    assert steps.spread_between((8, 2))["ttft"] == pytest.approx(30 / 115)
    assert steps.drift == 0


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=5), st.integers(1, 4))
def test_processes_that_differ_by_a_factor_differ_between_and_not_within(speeds, repeat):
    plans = plan_steps(PAIRS, ESTIMATE)
    reality = FakeReality(lambda *_: 0, process_speeds=tuple(speeds))
    for steps, plan in zip(time_steps(reality, plans, repeat), plans, strict=True):
        assert steps.processes == tuple(number for number in range(len(speeds)) for _ in range(repeat))
        for quantity, within in steps.spread(plan.pairs[0]).items():
            assert within == pytest.approx(0, abs=1e-9)
            between = steps.spread_between(plan.pairs[0])[quantity]
            assert between == pytest.approx(relative_spread(speeds), rel=1e-3, abs=1e-3)
        assert steps.drift == pytest.approx(0, abs=1e-9)


def test_only_steps_of_every_process_are_kept():
    """Of processes that timed anything: one without memory for a single step says nothing of the others."""
    times = [
        StepTimes(PROMPT, (1, 2), 2),
        StepTimes(STEP, (3, 4), 0),
        StepTimes(PROMPT, (5, 6), 0),
    ]
    (steps,) = time_steps(SimpleNamespace(steps=lambda *_: iter(times)), [StepPlan((), (8,), (range(8, 9),))], 2)
    assert steps.steps == {PROMPT: (5, 6, 1, 2)} and steps.windows == ()
    assert steps.processes == (0, 0, 2, 2)


def test_a_window_is_the_mean_of_its_steps():
    steps = MeasuredSteps({SweepPoint(1, kv): (kv * 10.0, kv * 20.0, kv * 12.0) for kv in (4, 5, 6)}, ((4, 5, 6),))
    assert steps.window_kv.tolist() == [5] and steps.window_ns.tolist() == [60]


def test_steps_that_ran_out_of_memory_are_left_out_and_named_when_needed():
    plan, _held_out = plan_steps(PAIRS, ESTIMATE)
    lost = frozenset({SweepPoint(128, 0), SweepPoint(1, 40)})
    (steps,) = time_steps(FakeReality(lambda *_: 0, fails=lost), [plan], 3)
    assert not lost & set(steps.steps)
    assert all(40 not in window for window in steps.windows)
    with pytest.raises(UsageError, match="prefill of 128 tokens.*--scaling-input-max"):
        steps.pair((128, 4))
    with pytest.raises(UsageError, match="--scaling-num-layers"):
        time_steps(FakeReality(lambda *_: 0, fails=frozenset(plan.points)), [plan], 3)


# ---- the ways of scaling recover what they can


@pytest.mark.parametrize("mode", SCALING_MODES)
def test_every_mode_recovers_a_real_model_that_is_its_kernels(mode):
    (fitted, pairs), (held_out, held_pairs) = measured(lambda *_: 0)
    scaling = SCALING_MODES[mode](ESTIMATE, fitted, pairs)
    assert np.allclose(scaling.prefill.step, 1, atol=1e-5) and np.allclose(scaling.decode.step, 1, atol=1e-5)
    assert max(worst(scaling, held_out, held_pairs).values()) < 1e-4


kernels = cache(true_kernels_ns)


@pytest.mark.parametrize("mode", SCALING_MODES)
def test_every_mode_recovers_one_factor(mode):
    (fitted, pairs), (held_out, held_pairs) = measured(lambda point, depth: 1.7 * kernels(point, depth))
    scaling = SCALING_MODES[mode](ESTIMATE, fitted, pairs)
    assert max(worst(scaling, held_out, held_pairs).values()) < 2e-3
    if mode == "global":
        assert scaling.parameters["factor"] == pytest.approx(2.7, rel=1e-4)


def test_phase_recovers_a_factor_per_phase_and_global_does_not():
    def overhead_ns(point, depth):
        return (0.1 if point.input_len > 1 else 2.2) * kernels(point, depth)

    (fitted, pairs), (held_out, held_pairs) = measured(overhead_ns)
    phase, one = fit_phase(ESTIMATE, fitted, pairs), fit_global(ESTIMATE, fitted, pairs)
    assert phase.parameters["decode_factor"] == pytest.approx(3.2, rel=1e-4)
    assert max(worst(phase, held_out, held_pairs).values()) < 0.03
    errors = worst(one, held_out, held_pairs)
    assert errors["ttft"] > 1, "one average makes prompts far too long"


def eager_like(point, depth):
    """A host that takes 3 ms to launch a step, however short its kernels."""
    return max(3e6 - kernels(point, depth), 0.05 * kernels(point, depth))


def test_curve_recovers_a_constant_step_and_the_others_do_not():
    (fitted, pairs), (held_out, held_pairs) = measured(eager_like)
    errors = {mode: worst(fit(ESTIMATE, fitted, pairs), held_out, held_pairs) for mode, fit in SCALING_MODES.items()}
    assert max(errors["curve"].values()) < 1e-3
    assert errors["phase"]["ttft"] > 0.02 < errors["global"]["ttft"]


def test_the_average_factor_is_the_mean_over_pairs_of_total_ratios():
    (fitted, pairs), _held_out = measured(eager_like)
    ratios = [fitted.pair(pair).total_ns / ESTIMATE.pair(pair).total_ns for pair in pairs]
    assert average_factor(ESTIMATE, fitted, pairs) == pytest.approx(math.fsum(ratios) / len(ratios))
    assert fit_global(ESTIMATE, fitted, pairs).parameters["factor"] == average_factor(ESTIMATE, fitted, pairs)


@settings(max_examples=25, deadline=None)
@given(st.floats(1e3, 1e7), st.floats(-0.3, 4.0), st.integers(1, 6), st.randoms(use_true_random=False))
def test_a_curve_gives_fitted_prompts_back_exactly(constant_ns, share, depth, random):
    estimate = Estimate.of(TABLE, depth)

    def overhead_ns(point, depth):
        return constant_ns + share * kernels(point, depth) * random.uniform(0.9, 1.1)

    (fitted, pairs), _held_out = measured(overhead_ns, depth=depth)
    curve = fit_curve(estimate, fitted, pairs)
    scaled = curve.applied_to(estimate)
    for input_len in fitted.input_lens[1:]:
        assert float(scaled.prefill_ns(input_len)) == pytest.approx(fitted.prefill_ns(input_len), rel=1e-9)
    assert set(curve.prefill.request) == set(curve.decode.request) == {1.0}


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1e7), st.floats(0, 5e5), st.integers(1, 6))
def test_a_decode_curve_recovers_what_is_linear_in_the_logarithm(constant_ns, slope_ns, depth):
    estimate = Estimate.of(TABLE, depth)
    (fitted, pairs), (held_out, _) = measured(
        lambda point, _depth: constant_ns + slope_ns * math.log(point.total_len), depth=depth
    )
    for steps in (fitted, held_out):
        scaled = fit_curve(estimate, fitted, pairs).applied_to(estimate)
        guesses = [np.mean(scaled.decode_ns(np.array(window))) for window in steps.windows]
        np.testing.assert_allclose(guesses, steps.window_ns, rtol=2e-3)


def test_noise_of_single_windows_is_smoothed():
    (fitted, pairs), _ = measured(lambda *_: 400_000, noise=0.05, seed=3)
    curve = fit_curve(ESTIMATE, fitted, pairs)
    truth = 1 + 400_000 / (ESTIMATE.decode.step_ns + ESTIMATE.decode.head_ns)
    walls = np.abs(fitted.window_ns / [np.mean(ESTIMATE.decode_ns(w)) + 400_000 for w in fitted.windows] - 1)
    assert len(curve.parameters["decode_knots"]) < len(fitted.windows) / 2
    assert np.mean(np.abs(curve.decode.step / truth - 1)[32:200]) < np.mean(walls)


def test_the_shared_point_is_a_decode_step_and_steps_recombine():
    """`generate` takes longer to begin than to go on; the rows at (1, 0) are those of a step that goes on."""

    def overhead_ns(point, _depth):
        return 900_000 if point.kv_len == 0 else 400_000

    (fitted, pairs), (held_out, held_pairs) = measured(overhead_ns)
    curve = fit_curve(ESTIMATE, fitted, pairs)
    assert curve.prefill.step[0] == curve.decode.step[0]
    assert max(worst(curve, held_out, held_pairs).values()) < 1e-5
    errors = judge_recombination(curve.applied_to(ESTIMATE), held_out)
    assert errors["own_point"].worst < 1e-5 and errors["recombined"].worst < 1e-5


def test_recombination_shows_what_varies_along_the_cache():
    (fitted, pairs), (held_out, _held_pairs) = measured(lambda point, _depth: 400_000 + 3_000 * point.kv_len)
    errors = judge_recombination(fit_curve(ESTIMATE, fitted, pairs).applied_to(ESTIMATE), held_out)
    assert errors["own_point"].worst < 0.05 < 0.1 < errors["recombined"].mean


def test_a_phase_that_cannot_be_fitted_says_so():
    (fitted, pairs), _held_out = measured(lambda *_: 0, pairs=[(i, 1) for i in (32, 64)])
    with pytest.raises(UsageError, match="--scaling-output-max"):
        fit_phase(ESTIMATE, fitted, pairs)
    assert fit_curve(ESTIMATE, fitted, pairs).parameters["decode_knots"]


def test_a_curve_on_a_table_without_decode_uses_its_own_first_pass():
    estimate = Estimate.of(make_table(Sweep("prefill", prefill_max=64)))
    pairs = [(8, 1), (16, 1)]
    (fitted, _), _held_out = measured(lambda *_: 70_000, pairs, estimate=estimate)
    curve = fit_curve(estimate, fitted, pairs)
    assert curve.parameters["shared_excess_ns"] == 70_000
    assert float(curve.applied_to(estimate).prefill_ns(1)) == pytest.approx(kernels(SweepPoint(1, 0), 6) + 70_000)


def test_rows_are_never_scaled_to_nothing():
    (fitted, pairs), _held_out = measured(lambda point, depth: -0.95 * kernels(point, depth))
    curve = fit_curve(ESTIMATE, fitted, pairs)
    assert curve.factor_range[0] == LEAST_STEP_FACTOR > 0


def test_beyond_the_last_step_that_ran_the_excess_is_held():
    lost = frozenset({SweepPoint(256, 0), *(SweepPoint(1, kv) for kv in range(250, 321))})
    (fitted, pairs), _held_out = measured(lambda *_: 80_000, fails=lost)
    curve = fit_curve(ESTIMATE, fitted, pairs)
    assert curve.parameters["held_beyond"]["input"] == 128
    assert curve.parameters["held_beyond"]["kv_cache"] < 250
    scaled = curve.applied_to(ESTIMATE)
    assert float(scaled.prefill_ns(256)) == pytest.approx(kernels(SweepPoint(256, 0), 6) + 80_000)


def test_factors_of_lines_follow_their_row_and_length():
    (fitted, pairs), _held_out = measured(eager_like)
    curve = fit_curve(ESTIMATE, fitted, pairs)
    rows = ["full.attn", "full.q_proj", "sliding.rope", "lm_head"]
    for point, step in (
        (SweepPoint(9, 0), curve.prefill.step[8]),
        (SweepPoint(1, 0), curve.prefill.step[0]),
        (SweepPoint(1, 7), curve.decode.step[7]),
    ):
        assert curve.of_rows(rows, point).tolist() == [1, step, 1, step]


@pytest.mark.parametrize("point", [SweepPoint(257, 0), SweepPoint(1, 321), *NOT_FLAT], ids=str)
def test_nothing_is_scaled_that_was_not_fitted(point):
    with pytest.raises(LookupError, match=str(point)):
        fit_global(ESTIMATE, *measured(eager_like)[0]).of_rows(["lm_head"], point)
    with pytest.raises(LookupError):
        kernels_ns(ESTIMATE, [point])


# ---- depth


def test_excess_is_extrapolated_linearly_in_depth():
    def overhead_ns(point, depth):
        return 50_000 + 9_000 * depth + point.total_len

    fits = {depth: measured(overhead_ns, depth=depth)[0][0] for depth in (2, 4, 6)}
    shallow = [(Estimate.of(TABLE, depth), fits[depth]) for depth in (2, 4)]
    guessed = at_depth(ESTIMATE, shallow)
    for pair in PAIRS:
        assert guessed.pair(pair).total_ns == pytest.approx(fits[6].pair(pair).total_ns, rel=1e-6)
    with pytest.raises(ValueError, match="two different depths"):
        at_depth(ESTIMATE, [shallow[0], shallow[0]])


def test_depths_share_the_steps_that_ran_at_all_of_them():
    shallow = measured(lambda *_: 1_000, depth=2)[0][0]
    deeper = measured(lambda *_: 1_000, depth=4, fails=frozenset({SweepPoint(128, 0), SweepPoint(1, 33)}))[0][0]
    guessed = at_depth(ESTIMATE, [(Estimate.of(TABLE, 2), shallow), (Estimate.of(TABLE, 4), deeper)])
    assert SweepPoint(128, 0) not in guessed.steps and SweepPoint(64, 0) in guessed.steps
    assert all(33 not in window for window in guessed.windows)


# ---- judging


def test_errors_are_sizes():
    assert Errors.of([90, 110, 120], [100, 100, 100]) == Errors(
        pytest.approx(0.4 / 3), pytest.approx(0.18), pytest.approx(0.2), 3
    )
    assert Errors.of([], []) is None


def test_a_batched_step_is_composed_as_simulators_do():
    (fitted, pairs), _held_out = measured(lambda *_: 500_000)
    scaled = fit_curve(ESTIMATE, fitted, pairs).applied_to(ESTIMATE)
    one, four = judge_batches(scaled, {SweepPoint(1, 100, 4): (3e6, 2e6, 4e6), SweepPoint(1, 100, 1): (1e6, 1e6, 1e6)})
    assert (one.sequences, four.sequences, four.measured_ns) == (1, 4, 3e6)
    assert one.composed_ns == pytest.approx(kernels(SweepPoint(1, 100), 6) + 500_000, rel=1e-3)
    assert four.request_ns == 4 * one.request_ns
    assert four.error == four.composed_ns / 3e6 - 1


def test_what_is_judged_never_changes_the_fit():
    (fitted, pairs), (held_out, held_pairs) = measured(eager_like)
    before = {mode: fit(ESTIMATE, fitted, pairs).parameters for mode, fit in SCALING_MODES.items()}
    doubled = {point: tuple(2 * wall for wall in walls) for point, walls in held_out.steps.items()}
    wrong = replace(held_out, steps=doubled)
    for mode, fit in SCALING_MODES.items():
        scaling = fit(ESTIMATE, fitted, pairs)
        assert scaling.parameters == before[mode]
        assert worst(scaling, wrong, held_pairs) != worst(scaling, held_out, held_pairs)


# ---- prompts that the host is too slow for


HOST_NS = 500_000


def rough_estimate(bump_ns):
    """The fake model's, but that prompts of 48 tokens take `bump_ns` longer, as a library's bad choice makes them."""
    rough = replace(ESTIMATE, prefill=replace(ESTIMATE.prefill, step_ns=ESTIMATE.prefill.step_ns.copy()))
    rough.prefill.step_ns[47] += bump_ns
    return rough


@pytest.mark.parametrize(("host_ns", "share"), [(10 * HOST_NS, 0), (0, 1)])
def test_kernels_off_the_line_count_where_the_gpu_is_the_slower_one(host_ns, share):
    estimate, lens, bump_ns = rough_estimate(80_000), [2, 32, 64, 128], 80_000
    kernels = estimate.prefill_ns(lens)
    walls = np.maximum(host_ns, kernels + 1_000)
    guess = prefill_excess_ns(estimate, lens, walls) + estimate.prefill_ns(estimate.prefill.lens)
    smooth = prefill_excess_ns(ESTIMATE, lens, walls) + ESTIMATE.prefill_ns(ESTIMATE.prefill.lens)
    assert guess[47] - smooth[47] == pytest.approx(share * bump_ns)
    assert guess[[1, 31, 63, 127]] == pytest.approx(walls), "measured lengths are given back"


@given(st.lists(st.integers(0, 2_000_000), min_size=4, max_size=4), st.integers(0, 300_000))
def test_a_guess_lies_between_the_host_and_the_gpu(extra_ns, bump_ns):
    """At any length: between the line of the walls beside it, and that line moved by all that its kernels are off."""
    estimate, lens = rough_estimate(bump_ns), [2, 32, 64, 128]
    walls = estimate.prefill_ns(lens) + np.array(extra_ns)
    guess = prefill_excess_ns(estimate, lens, walls)[47] + estimate.prefill_ns(48)
    line = np.interp(np.log(48), np.log(lens), walls)
    off = estimate.prefill_ns(48) - np.interp(np.log(48), np.log(lens), estimate.prefill_ns(lens))
    assert min(0, off) - 1e-3 <= guess - line <= max(0, off) + 1e-3


def test_a_machine_that_slows_down_is_no_error_of_the_estimate():
    """Fitted and judged steps are timed in the same rounds."""
    (fitted, pairs), (held_out, held_pairs) = measured(lambda _point, _depth: 0, slower_per_repeat=0.2)
    assert worst(fit_curve(ESTIMATE, fitted, pairs), held_out, held_pairs)["ttft"] < 1e-3


# ---- a scaling from its parameters


@pytest.mark.parametrize("mode", SCALING_MODES)
def test_a_scaling_is_made_again_from_what_its_json_says(mode):
    (fitted, pairs), (held_out, held_out_pairs) = measured(lambda point, _depth: 300_000 + 40 * point.total_len)
    scaling = SCALING_MODES[mode](ESTIMATE, fitted, pairs)
    again = scaling_of(ESTIMATE, mode, json.loads(json.dumps(scaling.parameters)))
    for phase in ("prefill", "decode"):
        for factors in ("step", "request"):
            before, after = (getattr(getattr(of, phase), factors) for of in (scaling, again))
            np.testing.assert_allclose(after, before, rtol=1e-12)
    assert worst(again, held_out, held_out_pairs) == pytest.approx(worst(scaling, held_out, held_out_pairs), rel=1e-9)


def test_parameters_of_no_scaling_are_refused():
    for mode, parameters in (("none", {"factor": 2.0}), ("phase", {"factor": 2.0}), ("curve", {})):
        with pytest.raises((KeyError, ValueError)):
            scaling_of(ESTIMATE, mode, parameters)
