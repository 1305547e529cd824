"""LLMServingSim v0.2.1: one CSV per GPU with all its models. No torch.

Its step adds the layers of one block at (T, 0), T being the tokens of all sequences, and `rope` and `attn` once per
sequence: at (L, 0) for a prompt of L tokens and at (1, k) for a decode step, k counting the step's own token. It looks
up every key exactly, takes whole numbers only, and reads no other row.
"""

import csv
import io
from collections.abc import Iterator, Sequence

from llm_profile.errors import UsageError
from llm_profile.exporters.bundle import Bundle, ExportRequest, Target
from llm_profile.exporters.csv_text import csv_bytes
from llm_profile.exporters.simulated_layers import (
    BLANK_NS,
    LayerRows,
    choose_layout,
    degree_of,
    filled_notes,
    layer_ns,
    model_config,
    moved_text,
    require_flat,
)
from llm_profile.points import SweepPoint
from llm_profile.store.files import CSV_HEADER
from llm_profile.store.storage import to_json
from llm_profile.store.table import LatencyTable

_SIMULATOR = "LLMServingSim v0.2.1"

_LLAMA: LayerRows = {
    "embedding": ("embedding", "model_other", "embed_positions"),
    "input_layernorm": ("input_layernorm",),
    "q_proj": ("q_proj",),
    "k_proj": ("k_proj",),
    # Read once per step, where `rope` is read once per sequence: a batch would pay it many times.
    "v_proj": ("v_proj", "attn_other", "q_norm", "k_norm", "rope"),
    "rope": (),
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
"""The layers that it reads of a Llama."""

_EXPERTS: LayerRows = _LLAMA | {
    "gate_proj": ("gate", "mlp_other"),
    "up_proj": (),
    "act_fn": (),
    "down_proj": ("experts",),
}
"""A mixture of experts on the layers of a Llama: both are read at the tokens of the step."""

_OPT: LayerRows = {
    layer: rows for layer, rows in _LLAMA.items() if layer not in ("rope", "attn", "gate_proj", "up_proj", "down_proj")
} | {"qk_matmul": ("attn",), "softmax": (), "sv_matmul": (), "fc1": ("fc1",), "fc2": ("fc2",)}
"""The layers that it reads of all other models."""

_LAYOUTS = {"Llama": _LLAMA, "a mixture of experts": _EXPERTS, "OPT": _OPT}

_PER_SEQUENCE = ("rope", "attn", "qk_matmul", "softmax", "sv_matmul")
"""Layers that it reads once per sequence."""

_NAME_PART = "llama"
"""It reads the layers of Llama if this is in a model's lower-case name, and those of OPT if not."""

_CONFIG_FIELDS = (
    ("hidden_size",),
    ("num_attention_heads",),
    ("num_hidden_layers",),
    ("intermediate_size", "ffn_dim"),
    ("vocab_size",),
)

_CURE = "ask for less with --max-tokens and --max-kv"


def export(tables: Sequence[LatencyTable], wanted: ExportRequest) -> Bundle:
    """`perf_model/<hardware>.csv` with all tables, and the configuration of each model.

    Of one hardware. Keys reach up to (max_tokens, 0) and (1, max_kv). Raises UsageError for models that the simulator
    cannot hold, for names that it would not find, and for missing points.
    """
    hardware = tables[0].hardware
    if others := {table.hardware for table in tables} - {hardware}:
        raise UsageError(f"--format llmservingsim-0.2: one file is of one GPU, not of {hardware} and {others.pop()}")
    names: dict[str, LatencyTable] = {}
    lines: list[tuple[str, str, str, int, int, int]] = []
    files: dict[str, bytes] = {}
    notes: list[str] = []
    for table in tables:
        if degree_of(table) > 1:
            raise UsageError(
                f"{table.model}: of one tensor parallel rank, and {_SIMULATOR} divides the rows of one GPU itself; "
                "export the table of --tp 1"
            )
        layout = _LAYOUTS[choose_layout(table, _LAYOUTS, _SIMULATOR)]
        name = simulated_name(table.model, layout)
        if name in names:
            raise UsageError(f"{name}: two tables of one model; the simulator would read the first one only")
        _check_names(hardware, name)
        require_flat(table, wanted.max_tokens, wanted.max_kv - 1, _CURE)
        names[name] = table
        lines += [(hardware, name, *key) for key in _keys(table, layout, wanted)]
        config = model_config(table, _CONFIG_FIELDS, _SIMULATOR)
        files[f"model_configs/{name}.json"] = (to_json(config, indent=2) + "\n").encode()
        notes += [*filled_notes(table), *_notes(table, name, layout)]
    return Bundle(
        files={f"perf_model/{hardware}.csv": csv_bytes(CSV_HEADER, lines), **files},
        notes=(*notes, *_NOTES),
        targets=tuple(Target(hardware, name) for name in names),
        about=f"perf_model/{hardware}.llm-profile.json",
    )


_NOTES = (
    "kv_cache k is a step with k - 1 tokens in the cache before it: the simulator counts the step's own token",
    "layers other than attention are read at (tokens of the step, 0): a decode step alone has them from (1, 0)",
    "attention of n decodes is n times that of one, as the simulator adds them up, so batched steps come out too long: "
    "64 sequences of Llama-3.1-8B at 128 tokens on an H200 take 24.7 ms so, and really 8.7 (docs/llmservingsim.md)",
    "lm_head is read at all tokens of a step, where engines compute the last one of each prompt: the simulator has no "
    "other key for it",
    "the tables are of one GPU: tensor parallelism is a division in the simulator",
)
"""What holds for every model."""


def simulated_name(model: str, layout: LayerRows) -> str:
    """What the simulator has to call a model, so that it reads the layers of its layout. Raises UsageError."""
    named_llama = _NAME_PART in model.lower()
    if named_llama == (layout is not _OPT):
        return model
    if named_llama:
        raise UsageError(f"{model}: {_SIMULATOR} reads the layers of Llama by its name, and it has those of OPT")
    return f"{model}-as-{_NAME_PART}"


def _notes(table: LatencyTable, name: str, layout: LayerRows) -> Iterator[str]:
    if name != table.model:
        yield f"{table.model}: is called {name}, since the simulator goes by the name"
    yield f"{table.model}: {moved_text(layout, table)}"
    blank = [layer for layer, rows in layout.items() if not rows]
    yield f"{table.model}: {', '.join(blank)}: {BLANK_NS} ns"
    if layout is _EXPERTS:
        yield f"{table.model}: the simulator's memory takes its experts for one dense MLP"


def _keys(table: LatencyTable, layout: LayerRows, wanted: ExportRequest) -> Iterator[tuple[str, int, int, int]]:
    """(layer, input, kv_cache, ns), each key once."""
    for layer, rows in layout.items():
        for tokens in range(1, wanted.max_tokens + 1):
            yield layer, tokens, 0, layer_ns(table, rows, SweepPoint(tokens, 0))
        if layer in _PER_SEQUENCE:
            for kv in range(1, wanted.max_kv + 1):
                yield layer, 1, kv, layer_ns(table, rows, SweepPoint(1, kv - 1))


def _check_names(hardware: str, name: str) -> None:
    """Raises UsageError for names that pandas would read as something other than text."""
    from pandas import read_csv

    text = io.StringIO()
    csv.writer(text).writerows([("hardware", "model"), (hardware, name)])
    text.seek(0)
    read = read_csv(text).iloc[0].tolist()
    for option, wanted, found in zip(("--hardware", "--model-name"), (hardware, name), read, strict=True):
        if wanted != found:
            raise UsageError(f"{wanted}: {_SIMULATOR} would not read it as text; measure under another {option}")
