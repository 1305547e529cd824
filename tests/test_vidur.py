"""Bundles for Vidur: files like those of its profiler, with the measured rows in them."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.exporters import BUNDLES
from llm_profile.exporters.bundle import Bundle, ExportRequest, LayerTime, Target
from llm_profile.measurement import Measurement
from llm_profile.points import SweepPoint
from llm_profile.records import FILLED
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from tests.exported_tables import DEPTH, MODEL_ROWS, made_up_table, ns

ROOT = Path(__file__).parent.parent
FORM = BUNDLES["vidur"]
SMALL = ExportRequest(max_tokens=96, max_sequences=16, max_kv=192)
FAMILIES = ("llama", "qwen3", "opt")
LLAMA = "meta-llama/Llama-3.1-8B"

OPERATIONS = {
    "input_layernorm": ("input_layernorm",),
    "attn_pre_proj": ("q_proj", "k_proj", "v_proj"),
    "attn_rope": ("rope", "q_norm", "k_norm"),
    "attn_kv_cache_save": ("attn_other",),
    "attn_prefill": ("attn",),
    "attn_decode": ("attn",),
    "attn_post_proj": ("o_proj",),
    "post_attention_layernorm": ("post_layernorm",),
    "mlp_up_proj": ("gate_proj", "up_proj", "fc1"),
    "mlp_act": ("act_fn", "mlp_other"),
    "mlp_down_proj": ("down_proj", "fc2"),
    "add": ("block_other",),
}
OF_ATTENTION = ("attn_kv_cache_save", "attn_prefill", "attn_decode")


@cache
def table_of(family: str) -> LatencyTable:
    return made_up_table(family)


@cache
def bundle_of(family: str) -> Bundle:
    return FORM.export([table_of(family)], SMALL)


@cache
def committed() -> Bundle:
    return FORM.export([read_table(ROOT / f"H200/{LLAMA}.csv")], FORM.defaults)


def csv_of(bundle: Bundle, name: str) -> pandas.DataFrame:
    (content,) = (content for path, content in bundle.files.items() if path.endswith(f"/{name}.csv"))
    return pandas.read_csv(io.BytesIO(content))


def times_of(bundle: Bundle, point: SweepPoint) -> dict[str, LayerTime]:
    return {layer.layer: layer for layer in FORM.step(bundle.files.__getitem__, point, bundle.targets[0])}


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_hold_every_row_of_a_block_once(family: str) -> None:
    rows = [row for name, rows in OPERATIONS.items() for row in rows if name != "attn_decode"]
    assert {*table_of(family).row_names()} - {*MODEL_ROWS} <= {*rows} and len({*rows}) == len(rows)


@pytest.mark.parametrize("family", FAMILIES)
@given(tokens=st.integers(1, 12).map(lambda eighth: 8 * eighth))
@settings(deadline=None)
def test_prompts_are_the_measured_rows(family: str, tokens: int) -> None:
    """At multiples of 8, to which Vidur rounds the tokens of a step; blocks only."""
    table, prompt, found = table_of(family), SweepPoint(tokens, 0), times_of(bundle_of(family), SweepPoint(tokens, 0))
    for name, rows in OPERATIONS.items():
        expected = sum(ns(table, row, prompt) for row in rows if row in table.row_names())
        assert found[name].times == DEPTH
        if name == "attn_decode":
            assert found[name].total_ns == 0
        else:
            assert found[name].total_ns == pytest.approx(max(expected, DEPTH), abs=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_single_decodes_are_the_measured_rows(family: str) -> None:
    """The cache is rounded up to 64 tokens, the step's token to 8."""
    table = table_of(family)
    for history in (1, 63, 64):
        found = times_of(bundle_of(family), SweepPoint(1, history))
        assert found["attn_decode"].total_ns == pytest.approx(max(ns(table, "attn", SweepPoint(1, 64)), DEPTH), abs=1)
        assert found["attn_prefill"].total_ns == 0
        for name, rows in OPERATIONS.items():
            if name not in OF_ATTENTION:
                expected = sum(ns(table, row, SweepPoint(8, 0)) for row in rows if row in table.row_names())
                assert found[name].total_ns == pytest.approx(max(expected, DEPTH), abs=1)


@st.composite
def steps(draw: st.DrawFn) -> SweepPoint:
    decodes = draw(st.lists(st.tuples(st.just(1), st.integers(1, 300)), max_size=24))
    prompts = st.tuples(st.integers(2, 150), st.integers(0, 300))
    return SweepPoint.of(decodes + draw(st.lists(prompts, min_size=not decodes, max_size=3)))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=30, deadline=None)  # each reads whole files
@given(point=steps())
def test_any_step_finds_every_operation(family: str, point: SweepPoint) -> None:
    found = times_of(bundle_of(family), point)
    assert found.keys() == OPERATIONS.keys()
    decodes = sum(tokens == 1 for tokens, _ in point.sequences)
    absent = set() if decodes else {"attn_decode"}
    absent |= {"attn_prefill"} if decodes == point.batch else set()
    assert {name for name, time in found.items() if time.total_ns == 0} == absent


@settings(max_examples=30, deadline=None)
@given(max_tokens=st.integers(1, 96), max_sequences=st.integers(1, 40), max_kv=st.integers(1, 500))
def test_any_reach_can_be_asked_for(max_tokens: int, max_sequences: int, max_kv: int) -> None:
    bundle = FORM.export([table_of("llama")], ExportRequest(max_tokens, max_sequences, max_kv))
    for point in (SweepPoint(max_tokens, 0), SweepPoint(1, max_kv, max_sequences), SweepPoint(2, 1)):
        assert sum(time.total_ns > 0 for time in times_of(bundle, point).values()) == len(OPERATIONS) - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_files_have_the_columns_that_vidur_reads(family: str) -> None:
    bundle = bundle_of(family)
    mlp, attention = csv_of(bundle, "mlp"), csv_of(bundle, "attention")
    statistics = ("min", "max", "mean", "median", "std")
    for name in OPERATIONS:
        frame = attention if name in OF_ATTENTION else mlp
        assert {f"time_stats.{name}.{statistic}" for statistic in statistics} <= {*frame.columns}
    shape = {"n_head": 4, "n_kv_head": 2, "n_embd": 64, "n_expanded_embd": 128, "vocab_size": 1000}
    for column, value in (shape | {"use_gated_mlp": family != "opt", "num_tensor_parallel_workers": 1}).items():
        assert set(mlp[column]) == {value}
    for column, value in {"n_q_head": 4, "n_kv_head": 2, "n_embd": 64, "block_size": 16}.items():
        assert set(attention[column]) == {value}
    assert (attention.is_prefill == (attention.prefill_chunk_size > 0)).all()
    assert set(attention[attention.is_prefill].batch_size) == {1}


@pytest.mark.parametrize("family", FAMILIES)
def test_vidur_has_a_median_wherever_it_trains(family: str) -> None:
    """None is missing and none is 0; each key is there once."""
    mlp, attention = csv_of(bundle_of(family), "mlp"), csv_of(bundle_of(family), "attention")
    of_phase = {"attn_prefill": attention.is_prefill, "attn_decode": ~attention.is_prefill}
    for name in OPERATIONS:
        frame = attention if name in OF_ATTENTION else mlp
        medians = frame[f"time_stats.{name}.median"][of_phase.get(name, slice(None))]
        assert len(medians) and medians.notna().all() and (medians >= 1e-6).all()
    for name, of_other in (("attn_prefill", ~attention.is_prefill), ("attn_decode", attention.is_prefill)):
        assert attention[f"time_stats.{name}.median"][of_other].isna().all()
    assert not mlp.duplicated("num_tokens").any()
    assert not attention.duplicated(["batch_size", "prefill_chunk_size", "kv_cache_size"]).any()


def test_statistics_are_those_of_the_passes() -> None:
    """Sums over rows; a deviation from the quartiles of each: (q3 - q1) / 1.349, roots of sums of squares."""
    table = made_up_table("llama")
    record = table.records[SweepPoint(8, 0)]
    statistics = {"q_proj": (6, 10.0, 1, 8, 9, 11, 20), "k_proj": (6, 100.0, 10, 90, 95, 94, 200)}
    rows = {row: replace(record.rows[row], measurement=Measurement(*values)) for row, values in statistics.items()}
    none = replace(record.rows["v_proj"], measurement=Measurement(6, 0.0, 0, 0, 0, 0, 0))
    table.records[SweepPoint(8, 0)] = replace(record, rows=record.rows | rows | {"v_proj": none})
    frame = csv_of(FORM.export([table], SMALL), "mlp").set_index("num_tokens").loc[8]
    found = {name: frame[f"time_stats.attn_pre_proj.{name}"] * 1e6 for name in ("min", "max", "mean", "median", "std")}
    assert found == pytest.approx({"min": 11, "max": 220, "mean": 110, "median": 104, "std": 5 / 1.349})


def test_of_filled_points_only_the_mean_is_known() -> None:
    table = made_up_table("llama")
    record = table.records[SweepPoint(8, 0)]
    unknown = [float("nan")] * 5
    rows = {row: replace(kept, measurement=Measurement(0, 1000.0, *unknown)) for row, kept in record.rows.items()}
    table.records[SweepPoint(8, 0)] = replace(record, rows=rows, source=FILLED)
    bundle = FORM.export([table], SMALL)
    frame = csv_of(bundle, "mlp").set_index("num_tokens").loc[8]
    assert frame["time_stats.attn_pre_proj.median"] == frame["time_stats.attn_pre_proj.mean"] == 0.003
    assert pandas.isna(frame["time_stats.attn_pre_proj.std"])
    assert "1 of 223 points are interpolated" in bundle.notes[0]


def test_the_committed_table_gives_what_was_measured() -> None:
    """A prompt of 128 tokens of Llama-3.1-8B takes 8.257 ms, less what is outside of its blocks."""
    table, prompt = read_table(ROOT / f"H200/{LLAMA}.csv"), SweepPoint(128, 0)
    outside = sum(table.latency_ns(row, prompt) for row in ("embedding", "model_other", "final_layernorm"))
    outside += table.latency_ns("lm_head", SweepPoint(1, 0))
    blocks = sum(time.total_ns for time in times_of(committed(), prompt).values())
    assert (blocks + outside) / 1e6 == pytest.approx(8.257, rel=0.003)  # medians, and a mean of cache writes


@pytest.mark.parametrize(("history", "real_ms"), [(128, 8.687), (1024, 11.532)])
def test_batches_are_near_real_ones(history: int, real_ms: float) -> None:
    """64 decodes of Llama-3.1-8B, timed as CUDA graphs. Vidur adds a tenth to attention of several sequences."""
    blocks = sum(time.total_ns for time in times_of(committed(), SweepPoint(1, history, 64)).values())
    assert blocks / 1e6 == pytest.approx(real_ms, rel=0.12)


def test_several_prompts_are_one_of_the_root_of_their_squares_and_a_tenth() -> None:
    table = table_of("llama")
    found = times_of(bundle_of("llama"), SweepPoint.of([(48, 0), (64, 0)]))  # 80 tokens
    expected = 1.1 * max(ns(table, "attn", SweepPoint(80, 0)), DEPTH)
    assert found["attn_prefill"].total_ns == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (lambda: [made_up_table("mixtral")], "no layer for the row experts, gate"),
        (lambda: [table_of("llama"), table_of("qwen3")], "one model"),
        (lambda: [made_up_table("llama", prefill=80)], r"lacks input 88, 96 \(2 in all\)"),
        (lambda: [made_up_table("llama", decode=0)], "two decode steps"),
        (lambda: [made_up_table("llama", config={"model_type": "llama"})], "lacks num_attention_heads"),
    ],
)
def test_what_vidur_cannot_hold_is_refused(tables: Callable[[], list[LatencyTable]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        FORM.export(tables(), SMALL)


def test_notes_say_what_is_in_no_file_and_where_other_rows_went() -> None:
    notes = "\n".join(bundle_of("qwen3").notes)
    for word in (
        "embedding",
        "lm_head",
        "block_other",
        "mlp_other",
        "attn_other",
        "q_norm",
        "composed",
        "extrapolated",
    ):
        assert word in notes


def changed(name: str, before: str, after: str) -> Mapping[str, bytes]:
    files = dict(bundle_of("llama").files)
    (path,) = (path for path in files if path.endswith(f"/{name}.csv"))
    assert before in files[path].decode()
    files[path] = files[path].decode().replace(before, after).encode()
    return files


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        ("mlp", "attn_rope.median", "attn_rope.other", "no time_stats.attn_rope.median"),
        ("attention", "attn_prefill.median", "attn_prefill.other", "no time_stats.attn_prefill.median"),
        ("mlp", "num_tensor_parallel_workers", "workers", "no line of num_tensor_parallel_workers 1"),
    ],
)
def test_a_check_names_what_vidur_would_stop_at(name: str, before: str, after: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        FORM.step(changed(name, before, after).__getitem__, SweepPoint(8, 0), bundle_of("llama").targets[0])


def test_operations_that_may_be_absent_take_no_time() -> None:
    files = changed("mlp", "time_stats.add.", "time_stats.sum.")
    found = FORM.step(files.__getitem__, SweepPoint(8, 0), bundle_of("llama").targets[0])
    assert next(layer.total_ns for layer in found if layer.layer == "add") == 0


def test_files_that_do_not_tell_the_depth_are_of_one_block() -> None:
    files = changed("mlp", "num_layers", "depth")
    found = FORM.step(files.__getitem__, SweepPoint(8, 0), Target("h200", "org/llama-8b"))
    assert {layer.times for layer in found} == {1}
