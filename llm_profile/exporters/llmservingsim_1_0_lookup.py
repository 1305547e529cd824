"""One step as LLMServingSim v1.0.0 looks it up, without what its network and memory add. No torch.

Written from the simulator's rules, apart from the exporter, so that each can show a mistake of the other.
"""

import csv
import io
import json
from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.exporters.bundle import LayerTime, Read, Target
from llm_profile.points import SweepPoint

_Key = tuple[Any, ...]

_BEFORE_ATTENTION = ("input_layernorm", "q_proj", "k_proj", "v_proj", "rope")
_AFTER_ATTENTION = ("o_proj", "post_layernorm")
_MLP = ("gate_proj", "up_proj", "act_fn", "down_proj")
_ONE_EXPERT = ("expert.w1", "expert.w2", "expert.w3")


def step(read: Read, point: SweepPoint, target: Target) -> list[LayerTime]:
    """The layers that the simulator adds for a step, in its order.

    Experts get even numbers of tokens, and the GPU with the most of them is waited for. Raises UsageError for keys that
    are not there and for chunks on a history.
    """
    if any(history and tokens > 1 for tokens, history in point.sequences):
        raise UsageError(f"--check {point}: LLMServingSim v1.0.0 has no prompts in chunks")
    folder = f"llm_profile/perf_models/{target.hardware}/{target.model}/tp{target.tp}"
    layers = _table(
        read, f"{folder}/layers.csv", ("layer_name", "input", "kv_cache", "tp_size"), "latency(ns)", texts=1
    )
    config = json.loads(read(f"model_configs/{target.model}.json"))
    blocks = int(config["num_hidden_layers"])

    def layer_ns(layer: str, tokens: int) -> int:
        return _look_up(layers, (layer, tokens, 0, target.tp), f"{folder}/layers.csv")

    def at(names: Sequence[str], tokens: int, times: int) -> list[LayerTime]:
        return [LayerTime(name, times, times * layer_ns(name, tokens)) for name in names]

    before = _BEFORE_ATTENTION[:-1] if "TPU" in target.hardware else _BEFORE_ATTENTION
    if "num_local_experts" in config:
        experts, loads = config["num_local_experts"], point.tokens * config["num_experts_per_tok"]
        tokens_of = [max(1, loads // experts + (number < loads % experts)) for number in range(experts)]
        dealt = [tokens_of[gpu :: target.tp] for gpu in range(target.tp)]
        busiest = max(dealt, key=lambda mine: sum(layer_ns(name, n) for n in mine for name in _ONE_EXPERT))
        of_experts = [
            LayerTime(name, blocks * len(busiest), blocks * sum(layer_ns(name, n) for n in busiest))
            for name in _ONE_EXPERT
        ]
        mlp = [*at(("gate",), point.tokens, blocks), *of_experts]
    else:
        mlp = at(_MLP, point.tokens, blocks)
    return [
        *at(("embedding",), point.tokens, 1),
        *at(before, point.tokens, blocks),
        *_attention(read, f"{folder}/predictions", point, blocks),
        *at(_AFTER_ATTENTION, point.tokens, blocks),
        *mlp,
        *at(("final_layernorm",), point.tokens, 1),
        *at(("lm_head",), point.batch, 1),
    ]


def _attention(read: Read, folder: str, point: SweepPoint, blocks: int) -> list[LayerTime]:
    """Attention of the prompts, and that of the decodes."""
    caches = [history + 1 for _, history in point.sequences if history]
    times = []
    if len(caches) < point.batch:
        path = f"{folder}/attn_prefill_predictions.csv"
        table = _table(read, path, ("kv_cache_size", "prefill_chunk_size"), "prediction")
        chunk = ceil(round(sqrt(sum(tokens**2 for tokens, _ in point.sequences))) / 32) * 32
        times.append(LayerTime("attention of prompts", blocks, blocks * _look_up(table, (0, chunk), path)))
    if caches:
        path = f"{folder}/attn_decode_predictions.csv"
        table = _table(read, path, ("batch_size", "kv_cache_size"), "prediction")
        key = len(caches), ceil(int(sum(caches) / len(caches)) / 64) * 64
        times.append(LayerTime("attention of decodes", blocks, blocks * _look_up(table, key, path)))
    return times


def _look_up(table: dict[_Key, int], key: _Key, path: str) -> int:
    if key not in table:
        raise UsageError(f"{path}: no entry for {', '.join(map(str, key))}, where the simulator stops")
    return table[key]


def _table(read: Read, path: str, keys: Sequence[str], value: str, texts: int = 0) -> dict[_Key, int]:
    """A CSV by its key columns, the first `texts` of which are no numbers; of a key that is there twice, the first."""
    lines = csv.DictReader(io.StringIO(read(path).decode(), newline=""))
    if lacking := [name for name in (*keys, value) if name not in (lines.fieldnames or ())]:
        raise UsageError(f"{path}: lacks the columns {', '.join(lacking)}")
    table: dict[_Key, int] = {}
    for line in lines:
        key = tuple(line[name] if number < texts else int(line[name]) for number, name in enumerate(keys))
        table.setdefault(key, int(float(line[value])))
    return table
