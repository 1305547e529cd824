"""LLMServingSim v1.0.0: a CSV of layers and two of attention for each model. No torch.

Its step adds the layers of one block at T, the tokens of all sequences, `lm_head` at the number of sequences, attention
of the prompts at one length that stands for all of them, and attention of the decodes at their number and mean cache.
It looks up every key exactly.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
    ranges_text,
    require_flat,
    require_one_model,
)
from llm_profile.exporters.step_attention import StepAttention
from llm_profile.points import SweepPoint
from llm_profile.store.storage import to_json
from llm_profile.store.table import LatencyTable

_SIMULATOR = "LLMServingSim v1.0.0"

_LLAMA: LayerRows = {
    "embedding": ("embedding", "model_other", "embed_positions"),
    "input_layernorm": ("input_layernorm",),
    "q_proj": ("q_proj",),
    "k_proj": ("k_proj",),
    "v_proj": ("v_proj",),
    "rope": ("rope", "attn_other", "q_norm", "k_norm"),
    "attn": ("attn",),
    "o_proj": ("o_proj",),
    "post_layernorm": ("post_layernorm", "block_other"),
    "gate_proj": ("gate_proj",),
    "up_proj": ("up_proj",),
    "act_fn": ("act_fn", "mlp_other"),
    "down_proj": ("down_proj",),
    "final_layernorm": ("final_layernorm",),
    "lm_head": ("lm_head",),
}

_EXPERTS: LayerRows = {
    layer: rows for layer, rows in _LLAMA.items() if layer not in ("gate_proj", "up_proj", "act_fn", "down_proj")
} | {"gate": ("gate", "mlp_other"), "experts": ("experts",)}

_LAYOUTS = {"Llama": _LLAMA, "a mixture of experts": _EXPERTS}

_OF_STEP_TOKENS = {layer for layout in _LAYOUTS.values() for layer in layout} - {"attn", "experts"}
"""Layers that are read at the tokens of the step. The others have keys of their own."""

_MLP_SIZE = "intermediate_size"
"""What a configuration calls the width of an MLP; the simulator takes it for that of an expert, too."""

_CONFIG_FIELDS = (
    ("hidden_size",),
    ("num_attention_heads",),
    ("num_hidden_layers",),
    (_MLP_SIZE,),
    ("vocab_size",),
)
_NUM_EXPERTS = ("num_local_experts", "num_experts")
"""What a configuration calls the number of experts; the simulator knows the first name only."""

_PREFILL_STEP, _DECODE_STEP = 32, 64
"""Tokens between keys of prompts, and between those of caches."""

_CURE = "ask for less with --max-tokens and --max-kv"

_SKIPPED_ROPE = "TPU"
"""The simulator leaves out `rope` where this is in the hardware's name."""


def export(tables: Sequence[LatencyTable], wanted: ExportRequest) -> Bundle:
    """The folder of one model, at each tensor parallel degree that has a table, and its configuration.

    Steps of up to max_tokens tokens and max_sequences sequences, with caches of up to max_kv tokens, the step's own
    among them. Raises UsageError for models that the simulator cannot hold, and for missing points.
    """
    require_one_model(tables, "llmservingsim-1.0")
    files: dict[str, bytes] = {}
    notes: list[str] = []
    for table in tables:
        made, told = _files_of(table, wanted)
        files |= made
        notes += told
    folder = _folder(tables[0])
    return Bundle(
        files=files,
        notes=(*notes, *_NOTES, degrees_note(tables)),
        targets=tuple(Target(table.hardware, model_of(table), degree_of(table)) for table in tables),
        hidden_by=tuple(
            f"{folder}/tp{degree_of(table)}/predictions/attn_{phase}_prediction_dict.pkl"
            for table in tables
            for phase in ("prefill", "decode")
        ),
        about=f"{folder}/llm-profile.json",
    )


def _folder(table: LatencyTable) -> str:
    return f"llm_profile/perf_models/{table.hardware}/{model_of(table)}"


def _files_of(table: LatencyTable, wanted: ExportRequest) -> tuple[dict[str, bytes], list[str]]:
    """The files of a model at one tensor parallel degree, and what has to be known of them."""
    tp = degree_of(table)
    if _SKIPPED_ROPE in table.hardware:
        raise UsageError(f"{table.hardware}: {_SIMULATOR} leaves out rope where a name has {_SKIPPED_ROPE}; rename it")
    layout = _LAYOUTS[choose_layout(table, _LAYOUTS, _SIMULATOR)]
    config = dict(model_config(table, _CONFIG_FIELDS, _SIMULATOR))
    layers = {layer: rows for layer, rows in layout.items() if layer in _OF_STEP_TOKENS}
    require_flat(table, wanted.max_tokens, wanted.max_kv - 1, _CURE)
    lines = [
        (layer, tokens, 0, tp, layer_ns(table, rows, SweepPoint(tokens, 0)))
        for layer, rows in layers.items()
        for tokens in range(1, wanted.max_tokens + 1)
    ]
    notes = [*filled_notes(table), f"{table.model}: {moved_text(layers, table)}"]
    if layout is _EXPERTS:
        if tp > 1:
            raise UsageError(
                f"{table.model}: {_SIMULATOR} deals whole experts to tensor parallel ranks, and a shard has a part of "
                "each; export the table of --tp 1"
            )
        experts, per_token = _experts(table, config)
        config |= {_NUM_EXPERTS[0]: experts, _MLP_SIZE: config.get("moe_intermediate_size", config[_MLP_SIZE])}
        lines += _expert_lines(table, experts, per_token, wanted)
        notes += _expert_notes(table, experts // per_token)
    folder = f"{_folder(table)}/tp{tp}"
    return {
        f"{folder}/layers.csv": csv_bytes(("layer_name", "input", "kv_cache", "tp_size", "latency(ns)"), lines),
        f"{folder}/predictions/attn_prefill_predictions.csv": _prefill(table, wanted),
        f"{folder}/predictions/attn_decode_predictions.csv": _decode(table, wanted),
        f"model_configs/{model_of(table)}.json": (to_json(config, indent=2) + "\n").encode(),
    }, notes


_NOTES = (
    f"attention of decodes at kv_cache k is that of k - 1 tokens in the cache before the step: the simulator counts "
    f"the step's own token, takes the mean of all decodes and rounds it up to a multiple of {_DECODE_STEP}",
    "attention of n decodes of one length is composed of that of one and the time that a cached token adds: 64 decodes "
    "of Llama-3.1-8B on an H200 come to 8.6 ms at 128 tokens and 12.8 at 1,024 so, and really take 8.7 and 11.5 "
    "(docs/llmservingsim.md)",
    "attention of several prompts is that of one prompt of the root of the sum of their squared lengths, rounded up to "
    f"a multiple of {_PREFILL_STEP}, as the simulator looks it up",
    "layers other than attention are read at the tokens of the step: a decode step alone has them from (1, 0)",
)
"""What holds for every model."""


def _prefill(table: LatencyTable, wanted: ExportRequest) -> bytes:
    """Attention of prompts, without a history: the simulator asks for no other."""
    last = -(-wanted.max_tokens // _PREFILL_STEP) * _PREFILL_STEP  # lengths beyond max_tokens are rounded up to it
    points = {key: SweepPoint(min(key, wanted.max_tokens), 0) for key in range(_PREFILL_STEP, last + 1, _PREFILL_STEP)}
    lines = ((0, key, layer_ns(table, ("attn",), point)) for key, point in points.items())
    return csv_bytes(("kv_cache_size", "prefill_chunk_size", "prediction"), lines)


def _decode(table: LatencyTable, wanted: ExportRequest) -> bytes:
    """Attention of n decodes of one length: of one as measured, of several composed."""
    last = -(-wanted.max_kv // _DECODE_STEP) * _DECODE_STEP
    caches = {key: max(0, min(key, wanted.max_kv) - 1) for key in range(0, last + 1, _DECODE_STEP)}
    attention = StepAttention(table)
    lines = (
        (number, key, max(BLANK_NS, round(attention.at(decodes=number, cache=cache).attention_ns)))
        for number in range(1, wanted.max_sequences + 1)
        for key, cache in caches.items()
    )
    return csv_bytes(("batch_size", "kv_cache_size", "prediction"), lines)


def _experts(table: LatencyTable, config: Mapping[str, Any]) -> tuple[int, int]:
    """Experts of a block, and how many each token has. Raises UsageError where one share is no whole number."""
    experts = next((config[name] for name in _NUM_EXPERTS if name in config), None)
    per_token = config.get("num_experts_per_tok")
    if not experts or not per_token or experts % per_token:
        raise UsageError(
            f"{table.model}: {experts} experts, {per_token} of them per token: {_SIMULATOR} prices one expert, and the "
            "table has all together"
        )
    return experts, per_token


def _expert_lines(
    table: LatencyTable, experts: int, per_token: int, wanted: ExportRequest
) -> Iterable[tuple[str, int, int, int, int]]:
    """An expert that gets n tokens, as its part of a block in which every expert gets n tokens."""
    steps = range(1, wanted.max_tokens + 1)
    routed = {tokens: SweepPoint(tokens * experts // per_token, 0) for tokens in steps}
    if lacking := [point.input_len for point in routed.values() if point not in table.records]:
        raise UsageError(
            f"{table.model} on {table.hardware}: lacks input {ranges_text(lacking)}, kv_cache 0, where an expert gets "
            f"up to {wanted.max_tokens} tokens; measure them, or ask for --max-tokens "
            f"{wanted.max_tokens * per_token // experts}"
        )
    for tokens, point in routed.items():
        share = round(layer_ns(table, ("experts",), point) / experts)
        yield "expert.w1", tokens, 0, 1, max(BLANK_NS, share - 2 * BLANK_NS)
        yield "expert.w2", tokens, 0, 1, BLANK_NS
        yield "expert.w3", tokens, 0, 1, BLANK_NS


def _expert_notes(table: LatencyTable, tokens: int) -> Iterable[str]:
    yield (
        f"{table.model}: no expert was measured alone; one with n tokens is its part of a block whose experts all get "
        f"n tokens (expert.w1; expert.w2 and expert.w3 are {BLANK_NS} ns), so uneven routing is not priced"
    )
    yield (
        f"{table.model}: the simulator prices idle experts as experts with one token, so steps of fewer than {tokens} "
        f"tokens are priced like those of {tokens}"
    )
