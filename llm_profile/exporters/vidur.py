"""Vidur: the times of a block's operations, of which it learns to predict those of any step. No torch.

`mlp.csv` has the operations at the tokens of a step, `attention.csv` those of attention: of one prompt, or a chunk of
one on a history, and of decodes at their number and cache. Times are milliseconds. Vidur trains a regression on the
medians, so no key is looked up exactly.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llm_profile.exporters.bundle import Bundle, ExportRequest, Target
from llm_profile.exporters.csv_text import csv_bytes
from llm_profile.exporters.simulated_layers import (
    BLANK_NS,
    LayerRows,
    choose_layout,
    degree_of,
    degrees_note,
    filled_notes,
    model_config,
    model_of,
    require_lengths,
    require_one_model,
)
from llm_profile.exporters.step_attention import StepAttention
from llm_profile.measurement import IQR_TO_SIGMA, Measurement
from llm_profile.points import SweepPoint
from llm_profile.records import MEASURED
from llm_profile.serving.step_model import ATTENTION, ATTENTION_OTHER
from llm_profile.store.table import LatencyTable

_SIMULATOR = "Vidur"

_NOT_PRICED: LayerRows = {
    "nothing before the blocks": ("embedding", "model_other", "embed_positions"),
    "nothing after the blocks": ("final_layernorm", "lm_head"),
}
"""Rows that Vidur has no operation for: its model is its blocks."""

_ATTENTION: LayerRows = {"attn_prefill, attn_decode": (ATTENTION,), "attn_kv_cache_save": (ATTENTION_OTHER,)}

_GATED: LayerRows = {
    "input_layernorm": ("input_layernorm",),
    "attn_pre_proj": ("q_proj", "k_proj", "v_proj"),
    "attn_rope": ("rope", "q_norm", "k_norm"),
    "attn_post_proj": ("o_proj",),
    "post_attention_layernorm": ("post_layernorm",),
    "mlp_up_proj": ("gate_proj", "up_proj"),
    "mlp_act": ("act_fn", "mlp_other"),
    "mlp_down_proj": ("down_proj",),
    "add": ("block_other",),
}
_UNGATED: LayerRows = _GATED | {
    "attn_rope": (),
    "mlp_up_proj": ("fc1",),
    "mlp_down_proj": ("fc2",),
}
_OPERATIONS = {"a gated MLP": _GATED, "an MLP without a gate": _UNGATED}
"""Operations of `mlp.csv` by the two sorts of MLPs that Vidur has. `add` is that of both residual additions."""

_STATISTICS = ("min", "max", "mean", "median", "std")

_SHAPE = {
    "n_head": ("num_attention_heads",),
    "n_kv_head": ("num_key_value_heads", "num_attention_heads"),
    "n_embd": ("hidden_size",),
    "n_expanded_embd": ("intermediate_size", "ffn_dim"),
    "vocab_size": ("vocab_size",),
}
"""Columns that Vidur selects rows by -> fields of the configuration, the first of which that is there counts."""

_NUM_LAYERS = "num_hidden_layers"
_MAX_LENGTH = "max_position_embeddings"

_BLOCK_SIZE = 16
"""Tokens of a block of the KV cache: Vidur selects by its default. The tables' caches have no blocks."""

_CACHE_STEP = 64
"""Vidur rounds the mean cache of decodes up to a multiple of this."""

_CURE = "ask for less with --max-tokens and --max-kv"

_Statistics = Mapping[str, float]
"""By _STATISTICS, in ns; those that nobody measured are not there."""


def export(tables: Sequence[LatencyTable], wanted: ExportRequest) -> Bundle:
    """`data/profiling/compute/<hardware>/<model>/` of one model, with lines for each tensor parallel degree
    that has a table, the hardware in lower-case letters.

    Raises UsageError for models that Vidur has no operations for, and for missing points.
    """
    require_one_model(tables, "vidur")
    mlp_lines: list[Mapping[str, Any]] = []
    attention_lines: list[Mapping[str, Any]] = []
    notes: list[str] = []
    for table in tables:
        of_mlp, of_attention, told = _lines_of(table, wanted)
        mlp_lines += of_mlp
        attention_lines += of_attention
        notes += told
    folder = f"data/profiling/compute/{tables[0].hardware.lower()}/{model_of(tables[0])}"
    return Bundle(
        files={f"{folder}/mlp.csv": _csv(mlp_lines), f"{folder}/attention.csv": _csv(attention_lines)},
        notes=(*notes, *_NOTES, degrees_note(tables)),
        targets=tuple(Target(table.hardware, model_of(table), degree_of(table)) for table in tables),
        about=f"{folder}/llm-profile.json",
    )


def _lines_of(
    table: LatencyTable, wanted: ExportRequest
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Iterable[str]]:
    """Lines of `mlp.csv` and of `attention.csv` of one table, and what has to be known of them."""
    placed = {sort: {**layout, **_ATTENTION, **_NOT_PRICED} for sort, layout in _OPERATIONS.items()}
    operations = _OPERATIONS[choose_layout(table, placed, _SIMULATOR)]
    lengths = _token_lengths(wanted.max_tokens)
    longest = max((point.kv_len for point in table.points() if point.kind == "decode"), default=0)
    caches = _growing(_CACHE_STEP, wanted.max_kv, 8)
    require_lengths(table, lengths, [cache for cache in caches if cache <= longest], _CURE)
    shape = _shape(table)
    attention = StepAttention(table)
    attention_lines = [_attention_line(table, attention, key, shape) for key in _keys(wanted, lengths, caches)]
    mlp_lines = [_mlp_line(table, operations, tokens, shape, operations is _GATED) for tokens in lengths]
    measured = sum(line["source"] == MEASURED for line in attention_lines)
    notes = [
        *filled_notes(table),
        f"{table.model}: {measured} of {len(attention_lines)} lines of attention are measured, the others not"
        + _beyond(attention, wanted),
        *attention.notes,
    ]
    return mlp_lines, attention_lines, notes


_NOTES = (
    "Vidur prices blocks only: embedding, final norm, lm_head and what runs outside of blocks are in no file",
    "add is all of block_other, mlp_act holds mlp_other, attn_kv_cache_save is attn_other, attn_rope holds q_norm and "
    "k_norm",
    "an operation of several rows has the sums of their statistics; std is estimated from their quartiles, and mean "
    "leaves out the fastest and the slowest tenth",
    "min, max and std are empty where nothing was measured",
    f"block_size is {_BLOCK_SIZE}, Vidur's default: the tables' caches have no blocks",
)
"""What holds for every model."""


def _token_lengths(most: int) -> list[int]:
    """Tokens of a step as Vidur profiles them: 1, 2, 4, to 1,024 in steps of 8, then of 16, and `most`."""
    lengths = [1, 2, 4, *range(8, 1024, 8), *range(1024, most, 16)]
    return [*(length for length in lengths if length < most), most]


def _growing(step: int, most: int, per_doubling: int) -> list[int]:
    """Lengths in steps of `step`, which grow where there would be more than `per_doubling` to twice a length."""
    lengths, length = [], step
    while length < most:
        lengths.append(length)
        length += max(step, 2 ** (length.bit_length() - 1) // per_doubling)
    return [*lengths, most]


_Key = tuple[int, int, int]
"""(chunk, number of sequences, tokens in the cache of each); the chunk of decodes is 0, as in Vidur's files."""


def _keys(wanted: ExportRequest, lengths: Iterable[int], caches: Iterable[int]) -> Iterator[_Key]:
    """Prompts, chunks on a history, decodes. A forest knows no line between keys, so there are many."""
    yield from ((tokens, 1, 0) for tokens in lengths)
    yield from ((chunk, 1, cache) for chunk in _growing(16, wanted.max_tokens, 4) for cache in caches)
    yield from ((0, number, cache) for number in _growing(1, wanted.max_sequences, 8) for cache in caches)


def _shape(table: LatencyTable) -> dict[str, Any]:
    """What Vidur selects rows by, and what tells the model's depth and length."""
    config = model_config(table, (*_SHAPE.values(), (_NUM_LAYERS,), (_MAX_LENGTH,)), _SIMULATOR)
    shape = {column: next(config[name] for name in names if name in config) for column, names in _SHAPE.items()}
    return shape | {"num_layers": config[_NUM_LAYERS], "max_model_len": config[_MAX_LENGTH]}


def _mlp_line(
    table: LatencyTable, operations: LayerRows, tokens: int, shape: Mapping[str, Any], gated: bool
) -> dict[str, Any]:
    times = {name: _measured(table, rows, SweepPoint(tokens, 0)) for name, rows in operations.items()}
    of_model = {name: shape[name] for name in (*_SHAPE, "num_layers")}
    return (
        _columns(times)
        | of_model
        | {
            "use_gated_mlp": gated,
            "num_tokens": tokens,
            "num_tensor_parallel_workers": degree_of(table),
        }
    )


def _attention_line(
    table: LatencyTable, attention: StepAttention, key: _Key, shape: Mapping[str, Any]
) -> dict[str, Any]:
    chunk, sequences, cache = key
    found = attention.at(chunk, cache) if chunk else attention.at(decodes=sequences, cache=cache)
    operation = "attn_prefill" if chunk else "attn_decode"
    if found.source == MEASURED:
        point = SweepPoint(chunk or 1, cache, sequences)
        times = {operation: _measured(table, (ATTENTION,), point)}
        times["attn_kv_cache_save"] = _measured(table, (ATTENTION_OTHER,), point)
    else:
        times = {operation: _known(found.attention_ns), "attn_kv_cache_save": _known(found.other_ns)}
    none: dict[str, _Statistics] = {"attn_prefill": {}, "attn_decode": {}}
    return _columns(none | times) | {
        "n_embd": shape["n_embd"],
        "n_q_head": shape["n_head"],
        "n_kv_head": shape["n_kv_head"],
        "block_size": _BLOCK_SIZE,
        "num_tensor_parallel_workers": degree_of(table),
        "max_model_len": shape["max_model_len"],
        "batch_size": sequences,
        "prefill_chunk_size": chunk,
        "kv_cache_size": cache,
        "is_prefill": chunk > 0,
        "source": found.source,
    }


def _measured(table: LatencyTable, rows: Iterable[str], point: SweepPoint) -> _Statistics:
    """Statistics of an operation that holds these rows, of one block. Rows that launched nothing took no time."""
    found = table.records[point].rows
    measurements = [found[row].measurement for row in rows if row in found]
    mean = sum(m.trimmed_mean_ns for m in measurements)
    if mean < BLANK_NS or any(m.n == 0 for m in measurements):  # interpolated: there is no other statistic
        return _known(mean)
    return {
        "min": sum(m.min_ns for m in measurements),
        "max": sum(m.max_ns for m in measurements),
        "mean": mean,
        "median": sum(m.median_ns for m in measurements),
        "std": math.hypot(*(_sigma_ns(m) for m in measurements)),
    }


def _sigma_ns(measurement: Measurement) -> float:
    return (measurement.q3_ns - measurement.q1_ns) / IQR_TO_SIGMA


def _known(mean_ns: float) -> _Statistics:
    """All that is known of a time that was not measured."""
    return {"mean": max(BLANK_NS, mean_ns), "median": max(BLANK_NS, mean_ns)}


def _columns(times: Mapping[str, _Statistics]) -> dict[str, Any]:
    """Columns of a line, in ms; empty where a statistic is not there."""
    return {
        f"time_stats.{name}.{statistic}": f"{of_one[statistic] / 1e6:.9g}" if statistic in of_one else ""
        for name, of_one in times.items()
        for statistic in _STATISTICS
    }


def _beyond(attention: StepAttention, wanted: ExportRequest) -> str:
    longest = attention.longest_cache
    return f", those of caches beyond {longest} tokens are extrapolated" if wanted.max_kv > longest else ""


def _csv(lines: Sequence[Mapping[str, Any]]) -> bytes:
    header = [*lines[0]]
    return csv_bytes(header, ([line[name] for name in header] for line in lines))
