"""LLMServingSim v1.1.0 to main: a folder per GPU, model and data type, with tables of fused layers. No torch.

Its step adds the layers of a block at the tokens of all sequences (`layernorm` twice), `attention` at its chunk, the
chunk's history, the number of decodes and their mean cache, `lm_head` and `sampler` at the number of sequences, and
`moe` at the tokens and the experts that they reach. Times are microseconds. It interpolates between keys, so the tables
have the grid of its own profiler.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from llm_profile import __version__
from llm_profile.errors import UsageError
from llm_profile.exporters.bundle import Bundle, ExportRequest, Target
from llm_profile.exporters.csv_text import csv_bytes
from llm_profile.exporters.simulated_layers import (
    BLANK_NS,
    LayerRows,
    choose_layout,
    degree_of,
    degrees_note,
    filled_notes,
    layer_ns,
    model_config,
    model_of,
    moved_text,
    require_lengths,
)
from llm_profile.exporters.step_attention import StepAttention
from llm_profile.points import SweepPoint
from llm_profile.records import MEASURED
from llm_profile.store.storage import to_json
from llm_profile.store.table import LatencyTable

_SIMULATOR = "LLMServingSim v1.1.0 to main"

_DENSE: LayerRows = {
    "embedding": ("embedding", "model_other", "embed_positions"),
    "layernorm": ("input_layernorm", "post_layernorm", "block_other"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "rotary_emb": ("rope",),
    "o_proj": ("o_proj",),
    "final_layernorm": ("final_layernorm",),
}
_QK_NORM: LayerRows = {"qk_norm": ("q_norm", "k_norm")}
_MLP: LayerRows = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "act_fn": ("act_fn", "mlp_other"),
    "down_proj": ("down_proj",),
}
_ATTENTION: LayerRows = {"attention": ("attn", "attn_other")}
_PER_SEQUENCE: LayerRows = {"lm_head": ("lm_head",), "sampler": ()}
_EXPERTS: LayerRows = {"moe": ("gate", "experts", "mlp_other")}

_DENSE_LAYERS: dict[str, LayerRows] = {
    "llama": {**_DENSE, **_MLP},
    "qwen3": {**_DENSE, **_QK_NORM, **_MLP},
    "mixtral": _DENSE,
    "phimoe": _DENSE,
    "qwen3_moe": {**_DENSE, **_QK_NORM},
}
"""Layers that are read at the tokens of a step, by the model types that the simulator has a description of."""

_WITH_EXPERTS = ("mixtral", "phimoe", "qwen3_moe")

_TIMES_A_BLOCK = {"layernorm": 2}
"""Layers that it adds more than once for a block: each time has its part."""

_SKIPPED_ROTARY = "TPU"
"""The simulator leaves out `rotary_emb` where this is in the hardware's name."""

_VARIANTS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Data type -> the simulator's short name of it, which its folder has."""

_CONFIG_FIELDS = (
    ("hidden_size",),
    ("num_attention_heads",),
    ("num_hidden_layers",),
    ("intermediate_size",),
    ("vocab_size",),
    ("max_position_embeddings",),
)
_NUM_EXPERTS = ("num_local_experts", "num_experts")
_EXPERTS_PER_TOKEN = "num_experts_per_tok"

_SHORTEST = 16
"""Tokens of the first chunk, history and cache of the attention grid; each next one is twice as long."""

_SKEW_FIT = {"enabled": True, "alpha_default": 0.0}
"""Decodes on caches of different lengths take the time of their mean. v1.1.0 would add a part of the longest cache's
time if this were not said."""

_CURE = "ask for less with --max-tokens and --max-sequences"


def export(tables: Sequence[LatencyTable], wanted: ExportRequest) -> Bundle:
    """The folder of each model, at each tensor parallel degree that has a table, and its configuration.

    Raises UsageError for models and names that the simulator cannot hold or would read in part, and for missing points.
    """
    files: dict[str, bytes] = {}
    notes: list[str] = []
    seen: list[LatencyTable] = []
    for table in tables:
        if any(model_of(other) == model_of(table) and degree_of(other) == degree_of(table) for other in seen):
            raise UsageError(f"{table.model}: two tables of one model; {_SIMULATOR} has one configuration of it")
        seen.append(table)
        same = [other for other in tables if _folder(other) == _folder(table)]
        if all(degree_of(other) > 1 for other in same):
            raise UsageError(
                f"{table.model}: {_SIMULATOR} reads some layers of one GPU at any tensor parallel degree; export it "
                f"together with the table of --tp 1, {model_of(table)}.csv"
            )
        made, told = _files_of(table, wanted, sorted(map(degree_of, same)))
        files |= made
        notes += told
    return Bundle(
        files=files,
        notes=(*notes, *_NOTES, degrees_note(tables)),
        targets=tuple(Target(table.hardware, model_of(table), degree_of(table), wanted.version) for table in tables),
        about=f"{_folder(tables[0])}/llm-profile.json",
    )


_NOTES = (
    "attention of several prompts is that of one prompt with the tokens of all of them, as the simulator looks it up",
    "attention of a prompt with more decodes than the grid has is that of the most that it has, as in the simulator's "
    "own profiles",
    "caches of different lengths: decodes take the time of their mean, no other was measured (skew_fit, alpha 0)",
    f"sampler was not measured: it is {BLANK_NS} ns, since the simulator stops without it",
)
"""What holds for every model."""


def token_grid(most: int) -> list[int]:
    """Keys of tables over tokens or sequences: 1..15, 16..60 in steps of 4, from 64 on in steps of 16, and `most`."""
    lengths = [*range(1, 16), *range(16, 64, 4), *range(64, most, 16)]
    return [*(length for length in lengths if length < most), most]


def attention_grid(wanted: ExportRequest) -> Iterator[tuple[int, int, int, int]]:
    """Keys of the attention table in order: (chunk, its history, decodes, cache of each).

    A chunk is one of the sequences. Without a chunk or without decodes, their other length is 0.
    """
    caches = _doubling(_SHORTEST, wanted.max_kv)
    chunks = _doubling(_SHORTEST, wanted.max_tokens)
    decodes = _doubling(1, wanted.max_sequences)
    for chunk, history in [(0, 0), *((chunk, history) for chunk in chunks for history in (0, *caches))]:
        if chunk:
            yield chunk, history, 0, 0
        for number in decodes:
            if number + (chunk > 0) <= wanted.max_sequences:
                yield from ((chunk, history, number, cache) for cache in caches)


def _doubling(first: int, most: int) -> list[int]:
    """first, twice that and so on, and `most`."""
    lengths = []
    while first < most:
        lengths.append(first)
        first *= 2
    return [*lengths, most]


def _files_of(table: LatencyTable, wanted: ExportRequest, degrees: Sequence[int]) -> tuple[dict[str, bytes], list[str]]:
    """The files of one model at one tensor parallel degree, and what has to be known of them.

    degrees: all of the model's. Experts are read at degree 1 only.
    """
    dense = _dense_layers(table)
    has_experts = table.meta["config"]["model_type"] in _WITH_EXPERTS
    layout = dense | _ATTENTION | _PER_SEQUENCE | (_EXPERTS if has_experts else {})
    choose_layout(table, {table.meta["config"]["model_type"]: layout}, _SIMULATOR)
    config = _config(table, has_experts)
    _require_points(table, wanted)
    attention = StepAttention(table)
    attention_lines = list(_attention_lines(attention, wanted))
    dense_lines = _layer_lines(table, dense, token_grid(wanted.max_tokens))
    sequence_lines = _layer_lines(table, _PER_SEQUENCE, token_grid(wanted.max_sequences))
    folder = _folder(table)
    of_degree = f"{folder}/tp{degree_of(table)}"
    files = {
        f"{folder}/meta.yaml": _meta(table, wanted, degrees),
        f"{of_degree}/dense.csv": csv_bytes(("layer", "tokens", "time_us"), dense_lines),
        f"{of_degree}/per_sequence.csv": csv_bytes(("layer", "sequences", "time_us"), sequence_lines),
        f"{of_degree}/attention.csv": csv_bytes(
            ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us", "source"), attention_lines
        ),
        f"configs/model/{model_of(table)}.json": (to_json(config, indent=2) + "\n").encode(),
    }
    notes = [*filled_notes(table), f"{table.model}: {moved_text(_parts_of_none(layout), table)}"]
    if has_experts and degree_of(table) == 1:
        moe_lines = _moe_lines(table, config, token_grid(wanted.max_tokens))
        files[f"{of_degree}/moe.csv"] = csv_bytes(("tokens", "activated_experts", "time_us"), moe_lines)
        notes.append(
            f"{table.model}: moe has the experts that evenly routed tokens reach on one GPU, nothing for expert "
            "parallelism and other routing"
        )
    measured = sum(line[-1] == MEASURED for line in attention_lines)
    beyond = f", those of caches beyond {attention.longest_cache} tokens are extrapolated"
    notes.append(
        f"{table.model}: {measured} of {len(attention_lines)} keys of attention are measured, the others not"
        + (beyond if wanted.max_kv > attention.longest_cache else "")
    )
    notes += attention.notes
    return files, notes


def _dense_layers(table: LatencyTable) -> LayerRows:
    """Raises UsageError for models and hardware that the simulator does not take, or takes in part."""
    model_type = table.meta.get("config", {}).get("model_type")
    if model_type not in _DENSE_LAYERS:
        known = ", ".join(_DENSE_LAYERS)
        raise UsageError(f"{table.model}: {_SIMULATOR} has no models of the type {model_type}; it has {known}")
    if _SKIPPED_ROTARY in table.hardware:
        raise UsageError(
            f"{table.hardware}: {_SIMULATOR} leaves out rotary_emb where a name has {_SKIPPED_ROTARY}; rename it"
        )
    return _DENSE_LAYERS[model_type]


def _require_points(table: LatencyTable, wanted: ExportRequest) -> None:
    """Raises UsageError for keys that no other point may stand for."""
    longest = max((point.kv_len for point in table.points() if point.kind == "decode"), default=0)
    caches = [cache for cache in _doubling(_SHORTEST, wanted.max_kv) if cache <= longest]
    lengths = token_grid(wanted.max_tokens) + token_grid(wanted.max_sequences)
    require_lengths(table, sorted({*lengths, *_doubling(_SHORTEST, wanted.max_tokens)}), caches, _CURE)


def _layer_lines(table: LatencyTable, layout: LayerRows, lengths: Sequence[int]) -> Iterator[tuple[str, int, str]]:
    for layer in sorted(layout):
        for length in lengths:
            of_block = layer_ns(table, layout[layer], SweepPoint(length, 0))
            yield layer, length, _us(of_block / _TIMES_A_BLOCK.get(layer, 1))


def _attention_lines(attention: StepAttention, wanted: ExportRequest) -> Iterator[tuple[int, int, int, int, str, str]]:
    """The simulator ignores the last column, where a time comes from."""
    for key in attention_grid(wanted):
        found = attention.at(*key)
        yield *key, _us(round(found.attention_ns + found.other_ns)), found.source


def _moe_lines(table: LatencyTable, config: dict[str, Any], lengths: Sequence[int]) -> Iterator[tuple[int, int, str]]:
    experts = next(config[name] for name in _NUM_EXPERTS if name in config)
    for tokens in sorted(lengths):
        activated = min(tokens * config[_EXPERTS_PER_TOKEN], experts)
        yield tokens, activated, _us(layer_ns(table, _EXPERTS["moe"], SweepPoint(tokens, 0)))


def _us(time_ns: float) -> str:
    return f"{max(BLANK_NS, time_ns) / 1000:.12g}"


def _folder(table: LatencyTable) -> str:
    return f"profiler/perf/{table.hardware}/{model_of(table)}/{_variant(table)}"


def _variant(table: LatencyTable) -> str:
    return _VARIANTS.get(_dtype(table), _dtype(table))


def _dtype(table: LatencyTable) -> str:
    """Of a table that does not say, what the simulator takes then."""
    return str(table.conditions.get("dtype", "bfloat16"))


def _parts_of_none(layout: LayerRows) -> LayerRows:
    """Of each layer, the rows that are no part of it by their names."""
    return {
        layer: tuple(row for row in rows if row.endswith("_other") or row == "embed_positions")
        for layer, rows in layout.items()
    }


def _config(table: LatencyTable, has_experts: bool) -> dict[str, Any]:
    """The model's configuration, with what the simulator reads and configurations may leave out."""
    of_experts = (_NUM_EXPERTS, (_EXPERTS_PER_TOKEN,)) if has_experts else ()
    config: dict[str, Any] = dict(model_config(table, (*_CONFIG_FIELDS, *of_experts), _SIMULATOR))
    heads = config["num_attention_heads"]
    left_out = {"num_key_value_heads": heads, "head_dim": config["hidden_size"] // heads}
    return left_out | config | {"torch_dtype": _dtype(table)}


def _meta(table: LatencyTable, wanted: ExportRequest, degrees: Sequence[int]) -> bytes:
    """What the simulator reads of a folder, then what the folder is."""
    import yaml

    meta = {
        "engine_effective": {"max_num_batched_tokens": wanted.max_tokens, "max_num_seqs": wanted.max_sequences},
        "skew_fit": _SKEW_FIT,
        "hardware": table.hardware,
        "model": model_of(table),
        "variant": _variant(table),
        "architecture": table.meta["config"]["model_type"],
        "tp_degrees": [*degrees],
        "gpu": table.conditions.get("gpu"),
        "profiler": f"LLM-Profile {__version__}",
    }
    return yaml.safe_dump(meta, sort_keys=False, allow_unicode=True, width=120).encode()
