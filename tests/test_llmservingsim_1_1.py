"""Bundles for LLMServingSim v1.1.0 to main: what the simulator makes of them is what was measured."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import run_profile
from llm_profile.errors import EXIT_COMPLETE, UsageError
from llm_profile.exporters import BUNDLES
from llm_profile.exporters.bundle import Bundle, ExportRequest, LayerTime, Target
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from tests.exported_tables import DEPTH, NUM_EXPERTS, PER_TOKEN, made_up_table, ns

ROOT = Path(__file__).parent.parent
FORM = BUNDLES["llmservingsim-1.1"]
VERSIONS = FORM.versions
SMALL = ExportRequest(max_tokens=96, max_sequences=16, max_kv=128)
FAMILIES = ("llama", "qwen3", "mixtral", "phimoe", "qwen3_moe")
LLAMA, PHI = "meta-llama/Llama-3.1-8B", "microsoft/Phi-mini-MoE-instruct"


@cache
def table_of(family: str) -> LatencyTable:
    return made_up_table(family)


@cache
def bundle_of(family: str) -> Bundle:
    return FORM.export([table_of(family)], SMALL)


@cache
def committed(model: str) -> Bundle:
    return FORM.export([read_table(ROOT / f"H200/{model}.csv")], ExportRequest())


def layers_of(bundle: Bundle, point: SweepPoint, version: str) -> list[LayerTime]:
    return FORM.step(bundle.files.__getitem__, point, replace(bundle.targets[0], version=version))


def total_ns(bundle: Bundle, point: SweepPoint, version: str = "main") -> int:
    return sum(layer.total_ns for layer in layers_of(bundle, point, version))


def csv_of(bundle: Bundle, name: str) -> pandas.DataFrame:
    (content,) = (content for path, content in bundle.files.items() if path.endswith(f"/{name}.csv"))
    return pandas.read_csv(io.BytesIO(content))


@st.composite
def steps(draw: st.DrawFn) -> SweepPoint:
    """Decodes, prompts and chunks together, beyond the tables' lengths too."""
    decodes = draw(st.lists(st.tuples(st.just(1), st.integers(1, 300)), max_size=24))
    prompts = st.tuples(st.integers(1, 150), st.integers(0, 300))
    return SweepPoint.of(decodes + draw(st.lists(prompts, min_size=not decodes, max_size=3)))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("model", "tokens", "ms", "within"),
    [(LLAMA, 128, 8.257, 0.0006), (LLAMA, 2048, 56.691, 0.0006), (PHI, 128, 12.434360, 0.000032)],
)
def test_prompts_are_the_lines_of_the_csv_and_what_the_simulator_gave(
    model: str, tokens: int, ms: float, within: float, version: str
) -> None:
    """Of the committed tables, unscaled, without the sampler.

    Phi-mini-MoE's number is the one of the simulator's own front end. Llama's are the lines of the CSV at that
    length, those of the block 32 times, with `lm_head` of one token. Such sums of an earlier table were what the front
    end gave for it, to 0.001 ms.
    """
    times = layers_of(committed(model), SweepPoint(tokens, 0), version)
    assert times[-1] == LayerTime("sampler", 1, 1)
    assert sum(layer.total_ns for layer in times[:-1]) / 1e6 == pytest.approx(ms, abs=within)


@pytest.mark.parametrize(("history", "real_ms"), [(128, 8.687), (1024, 11.532)])
def test_batches_are_near_real_ones(history: int, real_ms: float) -> None:
    """64 decodes of Llama-3.1-8B, timed as CUDA graphs; composed ones have no gaps between kernels."""
    assert total_ns(committed(LLAMA), SweepPoint(1, history, 64)) / 1e6 == pytest.approx(real_ms, rel=0.1)


def blanks(table: LatencyTable) -> int:
    """ns by which a step may differ: rows of 0 are 1 ns, and each time is rounded."""
    return DEPTH * (len(table.row_names()) + 4)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [16, 32, 64, 96])
def test_prompts_are_the_measured_rows(family: str, tokens: int, version: str) -> None:
    table, prompt = table_of(family), SweepPoint(tokens, 0)
    expected = sum(ns(table, row, prompt) for row in table.row_names() if row != "lm_head")
    expected += ns(table, "lm_head", SweepPoint(1, 0))
    assert total_ns(bundle_of(family), prompt, version) == pytest.approx(expected, abs=blanks(table))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("history", [16, 32, 64])
def test_single_decodes_are_the_measured_rows(family: str, history: int, version: str) -> None:
    """Attention with what it writes at the cache, all other layers at one token: they have no other key."""
    table, attention = table_of(family), ("attn", "attn_other")
    expected = sum(ns(table, row, SweepPoint(1, 0)) for row in table.row_names() if row not in attention)
    expected += sum(ns(table, row, SweepPoint(1, history)) for row in attention)
    assert total_ns(bundle_of(family), SweepPoint(1, history), version) == pytest.approx(expected, abs=blanks(table))


OF_LAYERS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "rotary_emb": ("rope",),
    "qk_norm": ("q_norm", "k_norm"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "act_fn": ("act_fn", "mlp_other"),
    "down_proj": ("down_proj",),
    "moe": ("gate", "experts", "mlp_other"),
    "embedding": ("embedding", "model_other"),
    "final_layernorm": ("final_layernorm",),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=30, deadline=None)  # each reads whole files
@given(point=steps())
def test_any_step_finds_every_layer(family: str, version: str, point: SweepPoint) -> None:
    """None is skipped; where the tokens have keys, layers are the measured rows."""
    table = table_of(family)
    layers = layers_of(bundle_of(family), point, version)
    assert all(layer.times > 0 and layer.total_ns >= layer.times for layer in layers)
    names = [layer.layer for layer in layers]
    assert names.count("layernorm") == 2 and len({*names}) == len(names) - 1
    rows = {row for name in names for row in OF_LAYERS.get(name, ())}
    apart = {"input_layernorm", "post_layernorm", "block_other", "attn", "attn_other", "lm_head"}
    assert {*table.row_names()} == (rows & {*table.row_names()}) | apart
    if point.tokens not in (*range(1, 16), *range(16, 64, 4), 64, 80, 96):
        return
    step = SweepPoint(point.tokens, 0)
    for layer in layers:
        if layer.layer in OF_LAYERS:
            held = [row for row in OF_LAYERS[layer.layer] if row in table.row_names()]
            expected = sum(ns(table, row, step) for row in held)
            assert layer.total_ns == pytest.approx(max(layer.times, expected), abs=1)


@pytest.mark.parametrize("tokens", range(1, 16))
def test_the_norms_of_a_block_and_its_additions_are_read_twice(tokens: int) -> None:
    table, step = table_of("llama"), SweepPoint(tokens, 0)
    layers = layers_of(bundle_of("llama"), step, "main")
    norms = [layer.total_ns for layer in layers if layer.layer == "layernorm"]
    expected = sum(ns(table, row, step) for row in ("input_layernorm", "post_layernorm", "block_other"))
    assert sum(norms) == pytest.approx(max(expected, 2 * DEPTH), abs=DEPTH)


def test_lm_head_is_read_at_the_sequences() -> None:
    table = table_of("llama")
    layers = {layer.layer: layer for layer in layers_of(bundle_of("llama"), SweepPoint(3, 9, 5), "main")}
    assert layers["lm_head"].total_ns == max(1, ns(table, "lm_head", SweepPoint(5, 0)))


def test_tables_have_the_grid_of_the_simulators_profiler() -> None:
    """152 token points of 9 layers, 40 of sequences, 99 + 96 + 8,448 of attention."""
    bundle = committed(LLAMA)
    dense, per_sequence, attention = (csv_of(bundle, name) for name in ("dense", "per_sequence", "attention"))
    tokens = [*range(1, 16), *range(16, 64, 4), *range(64, 2049, 16)]
    assert len(tokens) == 152
    assert {layer: of_layer.tokens.tolist() for layer, of_layer in dense.groupby("layer")} == dict.fromkeys(
        ["act_fn", "down_proj", "embedding", "final_layernorm", "gate_up_proj", "layernorm", "o_proj", "qkv_proj"]
        + ["rotary_emb"],
        tokens,
    )
    assert len(per_sequence) == 2 * 40 and set(per_sequence.layer) == {"lm_head", "sampler"}
    alone, prompts = attention.prefill_chunk == 0, attention.n_decode == 0
    assert (alone.sum(), prompts.sum(), len(attention)) == (99, 96, 8643)
    assert set(attention.source) == {"measured", "composed", "extrapolated"}
    measured = attention[attention.source == "measured"]
    assert len(measured) == 16 and set(measured.n_decode + (measured.prefill_chunk > 0)) == {1}
    assert set(attention[attention.source == "extrapolated"][["kv_prefill", "kv_decode"]].max(axis=1)) == {
        4096,
        8192,
        16384,
    }


def test_experts_are_those_that_even_routing_reaches() -> None:
    moe = csv_of(committed(PHI), "moe")
    assert len(moe) == 152
    assert (moe.activated_experts == (2 * moe.tokens).clip(upper=16)).all()


@settings(max_examples=30, deadline=None)
@given(max_tokens=st.integers(1, 96), max_sequences=st.integers(1, 40), max_kv=st.integers(1, 500))
def test_any_reach_can_be_asked_for(max_tokens: int, max_sequences: int, max_kv: int) -> None:
    bundle = FORM.export([table_of("llama")], ExportRequest(max_tokens, max_sequences, max_kv))
    for point in (SweepPoint(max_tokens, 0), SweepPoint(1, max_kv, max_sequences), SweepPoint(2, 1)):
        assert all(layer.times and layer.total_ns for layer in layers_of(bundle, point, "main"))


@pytest.mark.parametrize("family", FAMILIES)
def test_simulators_can_read_every_file(family: str) -> None:
    """Numbers of at least 1 ns, none missing, each key once and in order."""
    for path, content in bundle_of(family).files.items():
        if path.endswith(".csv"):
            frame = pandas.read_csv(io.BytesIO(content))
            keys = [name for name in frame.columns if name not in ("time_us", "source")]
            assert frame.notna().all(axis=None) and (frame.time_us >= 0.001).all()
            assert not frame.duplicated(keys).any()
            assert frame[keys].sort_values(keys).index.tolist() == frame.index.tolist()
            assert b"\r" not in content


def test_meta_yaml_says_what_the_simulator_reads() -> None:
    bundle = bundle_of("llama")
    (text,) = (content for path, content in bundle.files.items() if path.endswith("meta.yaml"))
    meta = yaml.safe_load(text)
    assert meta["skew_fit"] == {"enabled": True, "alpha_default": 0.0}
    assert meta["engine_effective"] == {"max_num_batched_tokens": 96, "max_num_seqs": 16}
    assert (meta["hardware"], meta["model"], meta["architecture"]) == ("H200", "org/llama-8b", "llama")


def test_the_configuration_has_what_others_leave_out() -> None:
    """head_dim and the data type, which names the folder."""
    bundle = committed(LLAMA)
    config = json.loads(bundle.files[f"configs/model/{LLAMA}.json"])
    assert (config["head_dim"], config["num_key_value_heads"], config["torch_dtype"]) == (128, 8, "bfloat16")
    assert f"profiler/perf/H200/{LLAMA}/bf16/tp1/dense.csv" in bundle.files


def test_one_bundle_holds_several_models() -> None:
    bundle = FORM.export([table_of(family) for family in FAMILIES], SMALL)
    for family, target in zip(FAMILIES, bundle.targets, strict=True):
        layers = FORM.step(bundle.files.__getitem__, SweepPoint(8, 0), target)
        assert layers == layers_of(bundle_of(family), SweepPoint(8, 0), "main")


@pytest.mark.parametrize("family", FAMILIES)
def test_notes_say_where_rows_went(family: str) -> None:
    notes = "\n".join(bundle_of(family).notes)
    unnamed = [row for row in table_of(family).row_names() if row.endswith("_other") and row not in notes]
    assert not unnamed and "sampler was not measured" in notes


def changed(family: str, **changes: object) -> LatencyTable:
    whole = table_of(family)
    of = {"hardware": whole.hardware, "model": whole.model, "records": whole.records, "meta": {}} | changes
    return LatencyTable(of["hardware"], of["model"], whole.meta | of["meta"], of["records"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (lambda: [table_of("opt")], "no models of the type opt; it has llama, qwen3"),
        (lambda: [changed("llama", hardware="TPUv4")], "leaves out rotary_emb"),
        (lambda: [table_of("llama"), table_of("llama")], "two tables"),
        (lambda: [changed("llama", meta={"kinds": [{"name": "a"}, {"name": "b"}]})], "kinds a, b"),
        (lambda: [changed("llama", meta={"config": {"model_type": "qwen3"}})], "as qwen3: no row q_norm"),
        (lambda: [changed("qwen3", meta={"config": {"model_type": "llama"}})], "no layer for the row k_norm, q_norm"),
        (lambda: [changed("llama", meta={"config": {"model_type": "llama"}})], "lacks hidden_size"),
        (lambda: [made_up_table("llama", prefill=64)], r"lacks input 80, 96 \(2 in all\), kv_cache 0"),
        (lambda: [made_up_table("llama", decode=0)], "two decode steps"),
    ],
)
def test_what_a_simulator_would_misread_is_refused(tables: Callable[[], list[LatencyTable]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        FORM.export(tables(), SMALL)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_table_that_lacks_a_point_is_refused_by_its_name(data: st.DataObject) -> None:
    whole = table_of("llama")
    tokens = data.draw(st.sampled_from([*range(1, 16), *range(16, 64, 4), 64, 80, 96]))
    point = data.draw(st.sampled_from([SweepPoint(tokens, 0), *(SweepPoint(1, k) for k in (16, 32, 64))]))
    records = {known: record for known, record in whole.records.items() if known != point}
    varies = f"input 1, kv_cache {point.kv_len} " if point.kv_len else f"input {point.input_len} "
    with pytest.raises(UsageError, match="lacks") as refused:
        FORM.export([changed("llama", records=records)], SMALL)
    assert varies in str(refused.value)


ATTENTION = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n"


def others(attention: str = "0,0,1,16,1\n", dense: str = "", meta: str = "", **files: str) -> Mapping[str, bytes]:
    """A bundle as another profiler writes it. Each layer takes 1 us at any length, unless said."""
    names = ("embedding", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")
    ones = "".join(f"{name},1,1\n" for name in (*names, "final_layernorm") if f"{name}," not in dense)
    folder = "profiler/perf/card/org/m/bf16"
    content = {
        "configs/model/org/m.json": '{"model_type": "llama", "num_hidden_layers": 1}',
        f"{folder}/meta.yaml": meta,
        f"{folder}/tp1/dense.csv": f"layer,tokens,time_us\n{ones}{dense}",
        f"{folder}/tp1/per_sequence.csv": "layer,sequences,time_us\nlm_head,1,1\nsampler,1,1\n",
        f"{folder}/tp1/attention.csv": ATTENTION + attention,
        **{f"{folder}/{path}": text for path, text in files.items()},
    }
    return {path: text.encode() for path, text in content.items()}


def layer_ns(files: Mapping[str, bytes], layer: str, point: SweepPoint, version: str = "main") -> int:
    found = FORM.step(files.__getitem__, point, Target("card", "org/m", version=version))
    return next(time.total_ns for time in found if time.layer == layer)


def test_layers_beyond_a_table_lie_on_the_line_of_its_last_two_keys() -> None:
    """Numbers of the simulator for a table of its own."""
    files = others(dense="qkv_proj,1,50\nqkv_proj,2032,302.742\nqkv_proj,2048,302.965\n")
    assert layer_ns(files, "qkv_proj", SweepPoint(4096, 0)) == pytest.approx(331_509, abs=1)
    assert layer_ns(files, "qkv_proj", SweepPoint(2048, 0)) == 302_965


@pytest.mark.parametrize(("version", "us"), [("main", 15.0), ("1.1.0", 15.849)])
def test_versions_interpolate_attention_differently(version: str, us: float) -> None:
    files = others("64,0,0,0,10\n128,0,0,0,20\n")
    assert layer_ns(files, "attention", SweepPoint(96, 0), version) == pytest.approx(us * 1000, abs=1)


def test_attention_of_a_pair_that_was_not_profiled_is_that_of_the_nearest() -> None:
    """A chunk with 129 to 255 decodes takes what it takes with 128."""
    lines = "".join(f"0,0,{n},512,{n}\n" for n in (1, 128, 256))
    lines += "2048,0,0,0,700\n" + "".join(f"2048,0,{n},512,{700 + n}\n" for n in (1, 128))
    files = others(lines)
    times = [layer_ns(files, "attention", SweepPoint.of({(2048, 0): 1, (1, 512): n})) for n in (64, 128, 200, 255)]
    assert times[0] < times[1] == times[2] == times[3]


def test_chunks_are_added_up_and_caches_averaged() -> None:
    files = others("".join(f"{c},{h},{n},{k},{c + h + n + k}\n" for c, h, n, k in [(64, 32, 2, 20), (64, 32, 2, 21)]))
    point = SweepPoint.of([(30, 10), (34, 22), (1, 20), (1, 21)])
    assert layer_ns(files, "attention", point) == (64 + 32 + 2 + 20) * 1000


SKEW_FIT = """skew_fit:
  enabled: true
  bucket_axes:
    n_bins: [0, 2, 4]
    n_labels: [n<=2, n<=4]
    skew_rate_bins: [-0.01, 0.4, 0.7, 1.01]
    skew_rate_labels: [sr<=40%, sr<=70%, sr>70%]
    kv_big_bins: [0, 1024, 4096]
    kv_big_labels: [kvB<=1k, kvB<=4k]
    kp_bins: [-1, 0, 512]
    kp_labels: [kp=0, kp<=512]
  per_tp:
    1: {alpha_default: 0.0543, bucket_table: tp1/skew_fit.csv}
"""
SKEWED = SweepPoint.of([(1, 128), (1, 512)])
SKEW_CSV = "pc,n_label,skew_rate_label,kv_big_label,kp_label,alpha,n_samples\n"


@pytest.mark.parametrize(
    ("meta", "line", "version", "alpha"),
    [
        (SKEW_FIT, "0,n<=2,sr<=70%,kvB<=1k,kp=0,0.2194,4\n", "main", 0.2194),
        (SKEW_FIT, "0,n<=4,sr<=70%,kvB<=1k,kp=0,0.2194,4\n", "main", 0.0543),
        ("skew_fit: {enabled: true, alpha_default: 0.5}", "", "1.1.0", 0.5),
        ("skew_fit: {enabled: true, alpha_default: 0.0}", "", "1.1.0", 0.0),
        ("skew_fit: {enabled: false}", "", "1.1.0", 0.093),
        ("", "", "1.1.0", 0.093),
        ("", "", "main", 0.0),
    ],
)
def test_uneven_decodes_take_a_part_of_the_longest(meta: str, line: str, version: str, alpha: float) -> None:
    """Times of one of the simulator's own shots: 46.497 us at the mean of both caches, 50.143 us at the longer."""
    files = others("0,0,2,320,46.497\n0,0,2,512,50.143\n", meta=meta, **{"tp1/skew_fit.csv": SKEW_CSV + line})
    expected = 46_497 + alpha * (50_143 - 46_497)
    assert layer_ns(files, "attention", SKEWED, version) == pytest.approx(expected, abs=1)


def test_the_check_tells_of_layers_that_a_simulator_skips() -> None:
    files = {path: content.replace(b"o_proj", b"oh_proj") for path, content in others().items()}
    layers = FORM.step(files.__getitem__, SweepPoint(7, 0), Target("card", "org/m"))
    assert [layer for layer in layers if layer.layer == "o_proj"] == [LayerTime("o_proj", 0, 0)]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("sampler,", "sample,", "no sampler"),
        ("embedding,", "emb,", "no embedding"),
        (",time_us", ",time", "lacks the columns time_us"),
        (ATTENTION + "0,0,1,16,1\n", ATTENTION, "attention.csv has no line"),
        ('"llama"', '"opt"', "no models of the type opt"),
    ],
)
def test_a_check_names_what_a_simulator_would_stop_at(before: str, after: str, said: str) -> None:
    files = {path: content.decode().replace(before, after).encode() for path, content in others().items()}
    with pytest.raises(UsageError, match=said):
        FORM.step(files.__getitem__, SweepPoint(7, 0), Target("card", "org/m"))


def test_a_check_names_experts_that_are_not_there() -> None:
    bundle = bundle_of("mixtral")
    files = dict(bundle.files)
    (path,) = (path for path in files if path.endswith("/moe.csv"))
    files[path] = b"tokens,activated_experts,time_us\n"
    with pytest.raises(UsageError, match="moe.csv has no line"):
        FORM.step(files.__getitem__, SweepPoint(7, 0), bundle.targets[0])


def test_experts_between_keys_are_interpolated_over_tokens_and_experts() -> None:
    """9 tokens of two experts each reach all eight; three tokens reach six, between four and eight."""
    bundle = bundle_of("mixtral")
    assert (NUM_EXPERTS, PER_TOKEN) == (8, 2)
    files = dict(bundle.files)
    (path,) = (path for path in files if path.endswith("/moe.csv"))
    files[path] = b"tokens,activated_experts,time_us\n2,4,10\n4,4,20\n4,8,40\n8,8,80\n16,8,100\n"
    times = {
        tokens: next(
            layer.total_ns
            for layer in FORM.step(files.__getitem__, SweepPoint(tokens, 0), bundle.targets[0])
            if layer.layer == "moe"
        )
        for tokens in (3, 12)
    }
    assert times == {3: DEPTH * (15_000 + 40_000) // 2, 12: DEPTH * 90_000}


def test_the_command_puts_a_bundle_where_the_simulator_looks_and_reads_it_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulator = tmp_path / "simulator"
    (simulator / "serving/core").mkdir(parents=True)
    (simulator / FORM.marker).touch()
    words = ["export", "--format", "llmservingsim-1.1", "--check", "P:128"]
    assert run_profile.main([*words, "--into", str(simulator), f"{ROOT}/H200/{LLAMA}.csv"]) == EXIT_COMPLETE
    exported = capsys.readouterr().out.splitlines()
    assert (
        run_profile.main([*words, "--bundle", str(simulator), "--hardware", "H200", "--model", LLAMA]) == EXIT_COMPLETE
    )
    read = capsys.readouterr().out.splitlines()
    assert read and exported[-len(read) :] == read and "8.257 ms" in read[0]
