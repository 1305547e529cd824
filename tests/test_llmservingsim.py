"""Bundles for LLMServingSim v0.2.1 and v1.0.0: what the simulators make of them is what was measured."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.exporters import BUNDLES
from llm_profile.exporters.bundle import Bundle, ExportRequest, Target
from llm_profile.points import SweepPoint
from llm_profile.records import FILLED
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from tests.exported_tables import DEPTH, NUM_EXPERTS, PER_TOKEN, made_up_table, ns

ROOT = Path(__file__).parent.parent
QUICK = settings(max_examples=40, deadline=None)  # an example reads whole files
OLD, NEW = "llmservingsim-0.2", "llmservingsim-1.0"
SMALL = ExportRequest(max_tokens=96, max_sequences=16, max_kv=128)
WITH_EXPERTS = ExportRequest(max_tokens=96 * PER_TOKEN // NUM_EXPERTS, max_sequences=16, max_kv=128)
HELD = {OLD: ("llama", "qwen3", "opt", "mixtral"), NEW: ("llama", "qwen3", "mixtral")}
"""Families that a format can hold."""


@cache
def table_of(family: str) -> LatencyTable:
    return made_up_table(family)


@cache
def bundle_of(form: str, family: str) -> Bundle:
    wanted = WITH_EXPERTS if (form, family) == (NEW, "mixtral") else SMALL
    return BUNDLES[form].export([table_of(family)], wanted)


def total_ns(form: str, bundle: Bundle, point: SweepPoint, target: Target | None = None) -> int:
    """What a simulator of this format makes of a step."""
    layers = BUNDLES[form].step(bundle.files.__getitem__, point, target or bundle.targets[0])
    return sum(layer.total_ns for layer in layers)


def csv_of(bundle: Bundle, ending: str) -> pandas.DataFrame:
    (content,) = (content for path, content in bundle.files.items() if path.endswith(ending))
    return pandas.read_csv(io.BytesIO(content))


@st.composite
def steps(draw: st.DrawFn, most_tokens: int = SMALL.max_tokens) -> SweepPoint:
    """Prompts and decodes together, up to 16 sequences and `most_tokens` tokens."""
    decodes = draw(st.lists(st.integers(1, SMALL.max_kv - 1), max_size=8))
    left = most_tokens - len(decodes)
    prompts: list[int] = []
    for _ in range(draw(st.integers(0 if decodes else 1, 4))):
        if left > 0:
            prompts.append(draw(st.integers(1, left)))
            left -= prompts[-1]
    return SweepPoint.of([(1, history) for history in decodes] + [(prompt, 0) for prompt in prompts])


@cache
def committed_table(name: str) -> LatencyTable:
    return read_table(ROOT / f"H200/{name}.csv")


@cache
def committed(name: str, form: str, most_tokens: int = 2048) -> Bundle:
    return BUNDLES[form].export([committed_table(name)], ExportRequest(max_tokens=most_tokens, max_kv=2048))


@pytest.mark.parametrize(
    ("form", "point", "ms"),
    [
        (OLD, SweepPoint(128, 0), 8.285),
        (OLD, SweepPoint(2048, 0), 59.151),
        (NEW, SweepPoint(128, 0), 8.257),
        (NEW, SweepPoint(2048, 0), 56.691),
    ],
)
def test_prompts_are_the_lines_of_the_csv(form: str, point: SweepPoint, ms: float) -> None:
    """Of the committed table of Llama-3.1-8B, unscaled: its lines at that length, those of the block 32 times.

    `lm_head` is that of all tokens in v0.2.1, that of one in v1.0.0. Such sums of an earlier table were what the
    simulators' own front ends gave for it, to 0.001 ms.
    """
    assert total_ns(form, committed("meta-llama/Llama-3.1-8B", form), point) / 1e6 == pytest.approx(ms, abs=0.0006)


def test_a_decode_step_is_short_by_what_it_reads_at_one_token() -> None:
    """The pass at (1, 1024) takes 6.469 ms; v0.2.1 reads all layers but attention at (1, 0): 0.2 % less."""
    ms = total_ns(OLD, committed("meta-llama/Llama-3.1-8B", OLD), SweepPoint(1, 1024)) / 1e6
    assert ms == pytest.approx(6.469 * 0.998, rel=0.0005)


@pytest.mark.parametrize(("form", "most_tokens"), [(OLD, 2048), (NEW, 256)])
def test_experts_are_what_a_later_simulator_gave(form: str, most_tokens: int) -> None:
    """Phi-mini-MoE, `gate` and `experts` read by a later version at P:128; v0.2.1 adds `lm_head` at 128 tokens."""
    bundle = committed("microsoft/Phi-mini-MoE-instruct", form, most_tokens)
    head = committed_table("microsoft/Phi-mini-MoE-instruct").latency_ns
    more = head("lm_head", SweepPoint(128, 0)) - head("lm_head", SweepPoint(1, 0)) if form == OLD else 0
    assert total_ns(form, bundle, SweepPoint(128, 0)) - more == pytest.approx(12_434_360, abs=300)


@pytest.mark.parametrize(("history", "real_ms"), [(128, 8.687), (1024, 11.532)])
def test_v1_0_batches_are_near_real_ones(history: int, real_ms: float) -> None:
    """64 decodes of Llama-3.1-8B, timed as CUDA graphs; composed ones have no gaps between kernels."""
    bundle = committed("meta-llama/Llama-3.1-8B", NEW)
    ms = total_ns(NEW, bundle, SweepPoint(1, history, 64)) / 1e6
    assert ms == pytest.approx(real_ms, rel=0.13)


@pytest.mark.parametrize("family", HELD[OLD])
@QUICK
@given(point=steps())
def test_v0_2_adds_up_the_measured_rows(family: str, point: SweepPoint) -> None:
    table = table_of(family)
    step = SweepPoint(point.tokens, 0)
    expected = sum(ns(table, row, step) for row in table.row_names() if row != "attn")
    expected += sum(ns(table, "attn", SweepPoint(*lengths)) for lengths in point.sequences)
    blanks = DEPTH * (len(table.row_names()) + 3 * point.batch)  # layers without a row, and rows of 0 ns
    assert 0 <= total_ns(OLD, bundle_of(OLD, family), point) - expected <= blanks


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@QUICK
@given(point=steps())
def test_v1_0_adds_up_the_measured_rows(family: str, point: SweepPoint) -> None:
    table = table_of(family)
    apart = ("attn", "lm_head")
    expected = sum(ns(table, row, SweepPoint(point.tokens, 0)) for row in table.row_names() if row not in apart)
    expected += ns(table, "lm_head", SweepPoint(point.batch, 0)) + attention_ns(family, point)
    found = total_ns(NEW, bundle_of(NEW, family), point)
    assert 0 <= found - expected <= DEPTH * len(table.row_names())


def attention_ns(family: str, point: SweepPoint) -> int:
    """Prompts at the root of the sum of squares, decodes at their mean with the step's token, both rounded up."""
    table = table_of(family)
    histories = [history for _, history in point.sequences if history]
    total = 0
    if len(histories) < point.batch:
        stand_in = math.ceil(round(math.sqrt(sum(tokens**2 for tokens, _ in point.sequences))) / 32) * 32
        total += ns(table, "attn", SweepPoint(stand_in, 0))
    if histories:
        kv = math.ceil(int(sum(history + 1 for history in histories) / len(histories)) / 64) * 64
        if len(histories) == 1:
            return total + ns(table, "attn", SweepPoint(1, kv - 1))
        predictions = csv_of(bundle_of(NEW, family), "attn_decode_predictions.csv")
        found = predictions.query(
            "batch_size == @n and kv_cache_size == @kv", local_dict={"n": len(histories), "kv": kv}
        )
        total += DEPTH * int(found.prediction.item())
    return total


@QUICK
@given(tokens=st.integers(1, WITH_EXPERTS.max_tokens * PER_TOKEN // NUM_EXPERTS))
def test_v1_0_adds_up_experts_that_get_even_numbers_of_tokens(tokens: int) -> None:
    """Steps in which each expert gets the same number; all other steps lie between two of them."""
    table, routed = table_of("mixtral"), SweepPoint(tokens * NUM_EXPERTS // PER_TOKEN, 0)
    layers = BUNDLES[NEW].step(bundle_of(NEW, "mixtral").files.__getitem__, routed, Target("H200", table.model))
    found = sum(layer.total_ns for layer in layers if layer.layer.startswith("expert."))
    assert found == pytest.approx(ns(table, "experts", routed), abs=DEPTH * NUM_EXPERTS * 3)


@QUICK
@given(point=steps(most_tokens=WITH_EXPERTS.max_tokens))
def test_v1_0_finds_every_key_of_experts(point: SweepPoint) -> None:
    assert total_ns(NEW, bundle_of(NEW, "mixtral"), point) > 0


FILES = [(form, family) for form, families in HELD.items() for family in families]


@pytest.mark.parametrize(("form", "family"), FILES)
def test_simulators_can_read_every_file(form: str, family: str) -> None:
    """Whole numbers of at least 1, each key once."""
    for path, content in bundle_of(form, family).files.items():
        if path.endswith(".csv"):
            frame = pandas.read_csv(io.BytesIO(content))
            *keys, value = frame.columns
            assert frame[value].dtype == "int64" and frame[value].min() >= 1
            assert not frame.duplicated(keys).any()
            assert b"\r" not in content


@pytest.mark.parametrize("family", HELD[OLD])
def test_v0_2_has_every_key_up_to_the_last(family: str) -> None:
    frame = csv_of(bundle_of(OLD, family), "H200.csv")
    per_sequence = {"rope", "attn", "qk_matmul", "softmax", "sv_matmul"}
    for layer, of_layer in frame.groupby("layer_name"):
        keys = set(zip(of_layer["input"], of_layer["kv_cache"], strict=True))
        decodes = {(1, kv) for kv in range(1, 129)} if layer in per_sequence else set()
        assert keys == {(tokens, 0) for tokens in range(1, 97)} | decodes


def test_v1_0_has_the_keys_that_the_simulator_forms() -> None:
    bundle = committed("meta-llama/Llama-3.1-8B", NEW)
    prefill, decode = (csv_of(bundle, f"attn_{phase}_predictions.csv") for phase in ("prefill", "decode"))
    assert prefill.prefill_chunk_size.tolist() == [*range(32, 2049, 32)] and set(prefill.kv_cache_size) == {0}
    keys = {*zip(decode.batch_size, decode.kv_cache_size, strict=True)}
    assert keys == {(number, kv) for number in range(1, 257) for kv in range(0, 2049, 64)}
    layers = csv_of(bundle, "layers.csv")
    assert len(layers) == 14 * 2048 and set(layers.tp_size) == {1}


@pytest.mark.parametrize(("form", "family"), FILES)
@QUICK
@given(data=st.data())
def test_a_table_that_lacks_a_point_is_refused_by_its_name(form: str, family: str, data: st.DataObject) -> None:
    whole = table_of(family)
    needed = [point for point in whole.points() if point.input_len <= WITH_EXPERTS.max_tokens]
    point = data.draw(st.sampled_from(needed))
    records = {known: record for known, record in whole.records.items() if known != point}
    table = LatencyTable(whole.hardware, whole.model, whole.meta, records)
    varies = f"input 1, kv_cache {point.kv_len} " if point.kv_len else f"input {point.input_len} "
    with pytest.raises(UsageError, match="lacks") as refused:
        BUNDLES[form].export([table], WITH_EXPERTS)
    assert varies in str(refused.value)


def changed(family: str, **changes: object) -> LatencyTable:
    whole = table_of(family)
    of = {"hardware": whole.hardware, "model": whole.model} | changes
    return LatencyTable(
        str(of["hardware"]),
        str(of["model"]),
        whole.meta | {"kinds": of.get("kinds", whole.meta["kinds"])},
        whole.records,
    )


@pytest.mark.parametrize(
    ("form", "tables", "said"),
    [
        (OLD, lambda: [changed("opt", model="org/opt-llama")], "by its name"),
        (OLD, lambda: [table_of("llama"), changed("opt", hardware="H100")], "one GPU"),
        (OLD, lambda: [table_of("llama"), table_of("llama")], "two tables"),
        (OLD, lambda: [changed("llama", hardware="3090")], "would not read it as text"),
        (OLD, lambda: [changed("llama", hardware="NA")], "would not read it as text"),
        (OLD, lambda: [changed("llama", kinds=[{"name": "a"}, {"name": "b"}])], "kinds a, b"),
        (NEW, lambda: [changed("llama", kinds=[{"name": "a"}, {"name": "b"}])], "kinds a, b"),
        (NEW, lambda: [table_of("opt")], "no layer for the row fc1, fc2"),
        (NEW, lambda: [changed("llama", hardware="TPUv4")], "leaves out rope"),
        (NEW, lambda: [table_of("llama"), table_of("qwen3")], "one model"),
    ],
)
def test_what_a_simulator_would_misread_is_refused(
    form: str, tables: Callable[[], list[LatencyTable]], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        BUNDLES[form].export(tables(), SMALL)


def test_experts_beyond_the_table_are_refused_with_how_far_it_reaches() -> None:
    with pytest.raises(UsageError, match=r"input 100, 104, .*--max-tokens 24"):
        BUNDLES[NEW].export([table_of("mixtral")], SMALL)


def test_a_configuration_without_a_size_is_refused() -> None:
    config = {name: value for name, value in table_of("llama").meta["config"].items() if name != "vocab_size"}
    for form in (OLD, NEW):
        with pytest.raises(UsageError, match="lacks vocab_size"):
            BUNDLES[form].export([made_up_table("llama", config=config)], SMALL)


def test_one_file_of_v0_2_holds_several_models() -> None:
    bundle = BUNDLES[OLD].export([table_of(family) for family in HELD[OLD]], SMALL)
    assert {target.model for target in bundle.targets} == {
        "org/llama-8b",
        "org/qwen3-8b-as-llama",
        "org/opt-7b",
        "org/mixtral-8x7b-as-llama",
    }
    for family, target in zip(HELD[OLD], bundle.targets, strict=True):
        alone = total_ns(OLD, bundle_of(OLD, family), SweepPoint(8, 0), target)
        assert total_ns(OLD, bundle, SweepPoint(8, 0), target) == alone
        assert json.loads(bundle.files[f"model_configs/{target.model}.json"])["num_hidden_layers"] == DEPTH


@pytest.mark.parametrize(("form", "family"), FILES)
def test_notes_say_where_rows_went(form: str, family: str) -> None:
    notes = "\n".join(bundle_of(form, family).notes)
    table = table_of(family)
    layers = csv_of(bundle_of(form, family), "layers.csv" if form == NEW else "H200.csv").layer_name.unique()
    apart = {"attn", "experts"} if form == NEW else set()  # they have tables of their own, or notes
    unsaid = [row for row in table.row_names() if row not in layers and row not in apart and row not in notes]
    assert not unsaid


def test_filled_points_are_told() -> None:
    table = made_up_table("llama")
    table.records[SweepPoint(5, 0)] = replace(table.records[SweepPoint(5, 0)], source=FILLED)
    for form in (OLD, NEW):
        assert "1 of 223 points are interpolated" in BUNDLES[form].export([table], SMALL).notes[0]


def broken(form: str, ending: str, before: str, after: str) -> Callable[[str], bytes]:
    """The files of Llama, one of them changed at its first place that matches."""
    files = dict(bundle_of(form, "llama").files)
    (path,) = (path for path in files if path.endswith(ending))
    assert before in files[path].decode()
    files[path] = files[path].decode().replace(before, after, 1).encode()
    return files.__getitem__


@pytest.mark.parametrize(
    ("form", "ending", "before", "after", "said"),
    [
        (OLD, "H200.csv", ",embedding,7,0,", ",embedding,7,0,0.5", "no whole number"),
        (OLD, "H200.csv", ",lm_head,96,0,", ",lm_head,96,0,nan", "no whole number"),
        (OLD, "H200.csv", ",rope,7,0,", ",rope,700,0,", r"no rope of org/llama-8b at \(7, 0\)"),
        (OLD, "H200.csv", ",latency(ns)", ",latency", "lacks the columns"),
        (NEW, "layers.csv", "gate_proj,7,", "gate_proj,700,", "no entry for gate_proj, 7, 0, 1"),
        (NEW, "layers.csv", ",tp_size", "", "lacks the columns tp_size"),
        (NEW, "attn_prefill_predictions.csv", "0,32,", "0,33,", "no entry for 0, 32"),
    ],
)
def test_a_check_names_what_a_simulator_would_stop_at(
    form: str, ending: str, before: str, after: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        BUNDLES[form].step(broken(form, ending, before, after), SweepPoint(7, 0), bundle_of(form, "llama").targets[0])


@pytest.mark.parametrize(
    ("form", "ending", "line"), [(OLD, "H200.csv", "H200,org/llama-8b,q_proj,7,0"), (NEW, "layers.csv", "q_proj,7,0,1")]
)
def test_of_a_key_that_is_there_twice_the_first_counts(form: str, ending: str, line: str) -> None:
    target = bundle_of(form, "llama").targets[0]

    def q_proj_ns(read: Callable[[str], bytes]) -> int:
        return next(x.total_ns for x in BUNDLES[form].step(read, SweepPoint(7, 0), target) if x.layer == "q_proj")

    assert q_proj_ns(broken(form, ending, f"\n{line},", f"\n{line},5\n{line},")) == DEPTH * 5
    assert q_proj_ns(bundle_of(form, "llama").files.__getitem__) != DEPTH * 5


def test_v0_2_divides_by_the_gpus_and_deals_out_sequences() -> None:
    """Two GPUs: half of each layer, and the longer attention of the two prompts."""
    table, bundle = table_of("llama"), bundle_of(OLD, "llama")
    point = SweepPoint.of([(5, 0), (9, 0)])
    step = SweepPoint(14, 0)
    layers = sum(ns(table, row, step) for row in table.row_names() if row != "attn") / 2
    longer = max(ns(table, "attn", SweepPoint(tokens, 0)) for tokens in (5, 9))
    found = total_ns(OLD, bundle, point, Target("H200", "org/llama-8b", tp=2))
    assert found == pytest.approx(layers + longer, abs=DEPTH * 20)


@pytest.mark.parametrize("form", [OLD, NEW])
def test_prompts_in_chunks_are_refused(form: str) -> None:
    with pytest.raises(UsageError, match="chunks"):
        total_ns(form, bundle_of(form, "llama"), SweepPoint(8, 16))
