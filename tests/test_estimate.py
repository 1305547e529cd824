import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.sweep import Sweep
from llm_profile.validation.estimate import Estimate, check_pairs, decode_lens, is_request_row, model_depth
from tests.fake_reality import BLOCK_ROWS, ROWS, make_table, row_ns, true_kernels_ns

TABLE = make_table()
ESTIMATE = Estimate.of(TABLE)


@given(st.integers(1, 256), st.integers(0, 320), st.integers(1, 6))
def test_a_pass_is_model_rows_and_block_rows_times_their_blocks(input_len, kv_len, depth):
    estimate = Estimate.of(TABLE, depth) if depth < 6 else ESTIMATE
    assert estimate.prefill_ns(input_len) == true_kernels_ns(SweepPoint(input_len, 0), depth)
    assert estimate.decode_ns(kv_len) == true_kernels_ns(SweepPoint(1, kv_len), depth)


def test_a_prompt_pays_lm_head_for_one_token():
    whole = sum((3 if row in BLOCK_ROWS else 1) * row_ns(row, SweepPoint(200, 0)) for row in ROWS)
    assert ESTIMATE.prefill_ns(200) == whole - 60 * 199


def test_a_prompt_pays_lm_head_for_all_tokens_where_the_model_computes_all_logits():
    table = make_table()
    table.meta["runs"][0]["logits_to_keep"] = False
    estimate = Estimate.of(table)
    assert estimate.prefill_ns(200) == ESTIMATE.prefill_ns(200) + 60 * 199
    assert estimate.decode_ns(9) == ESTIMATE.decode_ns(9)
    assert estimate.composed_ns(9, 4) == ESTIMATE.composed_ns(9, 4)


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(1, 100))
def test_a_pair_is_its_prefill_and_its_steps(input_len, output_len):
    pair = ESTIMATE.pair((input_len, output_len))
    steps = [true_kernels_ns(SweepPoint(1, input_len + step - 1), 6) for step in range(1, output_len)]
    assert pair.ttft_ns == true_kernels_ns(SweepPoint(input_len, 0), 6)
    assert pair.total_ns == pytest.approx(pair.ttft_ns + sum(steps))
    if steps:
        assert pair.tpot_ns == pytest.approx(sum(steps) / len(steps))
    else:
        assert pair.tpot_ns is None


@given(st.integers(1, 256), st.integers(0, 320))
def test_a_composed_step_adds_requests_to_one_step(sequences, kv_len):
    point, once = SweepPoint(1, kv_len), SweepPoint(sequences, 0)
    expected = sum(
        (3 if row in BLOCK_ROWS else 1) * (sequences * row_ns(row, point) if is_request_row(row) else row_ns(row, once))
        for row in ROWS
    )
    assert ESTIMATE.composed_ns(kv_len, sequences) == expected


def test_decode_steps_start_with_the_prompt_in_the_cache():
    assert list(decode_lens((10, 4))) == [10, 11, 12]
    assert list(decode_lens((10, 1))) == []


def test_only_rope_and_attn_are_paid_per_request():
    assert [row for row in ROWS if is_request_row(row)] == ["full.rope", "full.attn", "sliding.rope", "sliding.attn"]
    assert is_request_row("attn") and not is_request_row("attn_other")


def test_nothing_is_extrapolated():
    with pytest.raises(LookupError):
        ESTIMATE.prefill_ns(257)
    with pytest.raises(LookupError):
        ESTIMATE.decode_ns([1, 321])
    with pytest.raises(LookupError):
        ESTIMATE.pair((256, 67))


def test_a_sparse_table_is_interpolated_between_its_points_only():
    sparse = Estimate.of(make_table(Sweep(prefill_max=256, decode_max=320, prefill_step=8, decode_step=8)))
    assert sparse.interpolated and not ESTIMATE.interpolated
    # Rows of the fake are nearly linear in the length, up to whole numbers.
    np.testing.assert_allclose(sparse.decode_ns(np.arange(321)), ESTIMATE.decode_ns(np.arange(321)), atol=2)
    with pytest.raises(LookupError):
        sparse.decode_ns(321)


def test_a_row_that_launched_nothing_at_a_point_adds_nothing_there():
    table = make_table(Sweep(prefill_max=4, decode_max=4))
    point = SweepPoint(1, 2)
    before = float(Estimate.of(table).decode_ns(2))
    del table.records[point].rows["embedding"]
    assert Estimate.of(table).decode_ns(2) == before - row_ns("embedding", point)
    assert Estimate.of(table).decode_ns(3) == true_kernels_ns(SweepPoint(1, 3), 6)


@pytest.mark.parametrize("depth", [0, 7])
def test_a_depth_that_the_model_lacks_is_refused(depth):
    with pytest.raises(UsageError, match="--scaling-num-layers.*1..6"):
        Estimate.of(TABLE, depth)
    assert model_depth(TABLE) == 6


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        ((257, 1), r"input 257, output 1.*--prefill-max"),
        ((256, 67), r"input 256, output 67.*kv_cache 321.*320.*--decode-max"),
        ((40, 22), r"input 40, output 22.*kv_cache 60.*out of memory"),
        ((50, 1), r"input 50, output 1.*input 50.*out of memory"),
    ],
)
def test_pairs_beyond_the_table_are_refused_by_name(pair, named):
    missing = {SweepPoint(1, 60): "out of memory", SweepPoint(50, 0): "out of memory"}
    points = Sweep(prefill_max=256, decode_max=320).points()
    check_pairs([(256, 66), (40, 21), (49, 1)], points, missing)
    with pytest.raises(UsageError, match=named):
        check_pairs([(1, 1), pair], points, missing)


def test_a_table_without_decode_has_pairs_of_one_token_only():
    points = Sweep("prefill", prefill_max=256).points()
    check_pairs([(256, 1)], points, {})
    with pytest.raises(UsageError, match="--mode both"):
        check_pairs([(128, 2)], points, {})


def test_a_table_without_the_shared_point_estimates_nothing():
    with pytest.raises(UsageError, match=r"input 1, kv_cache 0.*out of memory"):
        check_pairs([(1, 1)], [SweepPoint(1, 0), SweepPoint(2, 0)], {SweepPoint(1, 0): "out of memory"})
    with pytest.raises(UsageError, match="input 1, kv_cache 0"):
        Estimate.of(make_table(Sweep(prefill_max=4, decode_max=4), missing=[SweepPoint(1, 0)]))


def test_an_unfinished_table_estimates_nothing():
    table = make_table(Sweep(prefill_max=4, decode_max=4))
    del table.meta["block_rows"]
    with pytest.raises(UsageError, match="unfinished"):
        Estimate.of(table)


def test_no_torch():
    modules = [
        "estimate",
        "step_plan",
        "measured_steps",
        "scaling",
        "judgement",
        "scaled_table",
        "report",
        "report_text",
    ]
    code = f"import {', '.join(f'llm_profile.validation.{module}' for module in modules)}, validation, sys; "
    code += "sys.exit(bool({'torch', 'transformers', 'pandas', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
