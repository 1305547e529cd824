"""One step as LLMServingSim v1.1.0 and main look it up, without what their network and memory add. No torch.

Written from the simulator's rules, apart from the exporter, so that each can show a mistake of the other.
"""

import csv
import io
import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, hypot, log
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.exporters.bundle import LayerTime, Read, Target
from llm_profile.points import SweepPoint

_LOGARITHMIC = {"1.1.0": True, "main": False}
"""Whether a version interpolates attention over logarithms."""

VERSIONS = tuple(_LOGARITHMIC)
"""What the look-ups differ between."""

_ALPHA_WITHOUT_FIT = {False: 0.0, True: 0.093}
"""What a step of uneven decodes has of the longest cache's time where no skew was fitted, by the same."""

_BEFORE = ("layernorm", "qkv_proj", "rotary_emb")
_BEFORE_WITH_NORM = ("layernorm", "qkv_proj", "qk_norm", "rotary_emb")
_AFTER = ("o_proj", "layernorm")
_MLP = ("gate_up_proj", "act_fn", "down_proj")
_BLOCKS = {
    "llama": (_BEFORE, (*_AFTER, *_MLP)),
    "qwen3": (_BEFORE_WITH_NORM, (*_AFTER, *_MLP)),
    "mixtral": (_BEFORE, _AFTER),
    "phimoe": (_BEFORE, _AFTER),
    "qwen3_moe": (_BEFORE_WITH_NORM, _AFTER),
}
"""By model type: dense layers of a block before attention and after it. Those without an MLP have `moe` at the end."""

_TP_STABLE = ("layernorm", "qk_norm", "final_layernorm", "sampler")
"""Layers that are read from tp1 at any tensor parallel degree."""

_SHORT_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

_Curve = Mapping[int, float]
"""From a key to ns."""


def step(read: Read, point: SweepPoint, target: Target) -> list[LayerTime]:
    """The layers that the simulator adds for a step, in its order.

    At expert parallel degree 1; of main if no version is said. A layer of a block that is not there is added 0 times,
    as the simulator skips it. Raises UsageError for what it stops at.
    """
    folder = _Folder(read, target)
    batch = _Batch.of(point)
    blocks = int(folder.config["num_hidden_layers"])
    before, after = _BLOCKS[folder.model_type]
    if "TPU" in target.hardware:
        before = tuple(layer for layer in before if layer != "rotary_emb")
    dense = {layer: folder.dense(layer, point.tokens) for layer in (*before, *after)}

    def of_block(layers: Sequence[str]) -> list[LayerTime]:
        return [LayerTime(name, blocks if (ns := dense[name]) else 0, blocks * (ns or 0)) for name in layers]

    once = [LayerTime(name, 1, folder.needed_dense(name, point.tokens)) for name in ("embedding", "final_layernorm")]
    experts = [] if _MLP[0] in after else [LayerTime("moe", blocks, blocks * folder.experts(point.tokens))]
    return [
        *once[:1],
        *of_block(before),
        LayerTime("attention", blocks, blocks * folder.attention(batch)),
        *of_block(after),
        *experts,
        *once[1:],
        *(LayerTime(name, 1, folder.per_sequence(name, point.batch)) for name in ("lm_head", "sampler")),
    ]


@dataclass(frozen=True)
class _Batch:
    """A step as attention is looked up: tokens of all prompts, their history, and the caches of the decodes."""

    chunk: int
    history: int
    caches: tuple[int, ...]

    @classmethod
    def of(cls, point: SweepPoint) -> "_Batch":
        caches = tuple(history for tokens, history in point.sequences if tokens == 1 and history)
        prompts = [(tokens, history) for tokens, history in point.sequences if not (tokens == 1 and history)]
        return cls(sum(tokens for tokens, _ in prompts), sum(history for _, history in prompts), caches)


class _Folder:
    """The tables of one GPU, model and data type."""

    def __init__(self, read: Read, target: Target) -> None:
        self.read, self.tp = read, target.tp
        self.logarithmic = _LOGARITHMIC[target.version or "main"]
        self.config: dict[str, Any] = json.loads(read(f"configs/model/{target.model}.json"))
        self.model_type = str(self.config.get("model_type"))
        if self.model_type not in _BLOCKS:
            raise UsageError(f"{target.model}: the simulator has no models of the type {self.model_type}")
        dtype = self.config.get("torch_dtype") or "bfloat16"
        self.path = f"profiler/perf/{target.hardware}/{target.model}/{_SHORT_DTYPES.get(dtype, dtype)}"

    def dense(self, layer: str, tokens: int) -> int | None:
        """ns of a layer, None where the table does not have it."""
        curve = self._curves("dense", layer, "tokens").get(layer)
        return None if curve is None else _interpolated_ns(curve, tokens)

    def needed_dense(self, layer: str, tokens: int) -> int:
        """ns of a dense layer outside of blocks. Raises UsageError where the table does not have it."""
        ns = self.dense(layer, tokens)
        if ns is None:
            raise UsageError(f"{self.path}: dense.csv has no {layer}, where the simulator stops")
        return ns

    def per_sequence(self, layer: str, sequences: int) -> int:
        """ns of a layer. Raises UsageError where the table does not have it."""
        curves = self._curves("per_sequence", layer, "sequences")
        if layer not in curves:
            raise UsageError(f"{self.path}: per_sequence.csv has no {layer}, where the simulator stops")
        return _interpolated_ns(curves[layer], sequences)

    def experts(self, tokens: int) -> int:
        """ns of a block's experts: all on one GPU, tokens routed evenly."""
        tables: dict[int, dict[int, float]] = defaultdict(dict)
        for line in self._lines("tp1/moe", ("tokens", "activated_experts", "time_us")):
            tables[int(line["activated_experts"])][int(line["tokens"])] = _ns(line)
        if not tables:
            raise UsageError(f"{self.path}: moe.csv has no line, where the simulator stops")
        number = self.config.get("num_local_experts") or self.config["num_experts"]
        activated = min(tokens * self.config["num_experts_per_tok"], number)
        return _interpolated_ns({key: _interpolated_ns(curve, tokens) for key, curve in tables.items()}, activated)

    def attention(self, batch: _Batch) -> int:
        """ns of attention, decodes on caches of different lengths between their mean and their longest."""
        table: dict[tuple[int, int], dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
        for line in self._lines(f"tp{self.tp}/attention", (*columns, "time_us")):
            chunk, history, decodes, cache = (int(line[name]) for name in columns)
            table[chunk, decodes][history][cache] = _ns(line)

        def at(cache: int) -> int:
            query = (batch.chunk, batch.history, len(batch.caches), cache)
            return _attention_ns(table, query, self.logarithmic)

        if not batch.caches:
            return at(0)
        mean, longest = floor(sum(batch.caches) / len(batch.caches)), max(batch.caches)
        of_mean = at(mean)
        alpha = self._alpha(batch) if len(batch.caches) > 1 and longest != mean else 0.0
        return of_mean if alpha == 0 else max(of_mean, round(of_mean + alpha * (at(longest) - of_mean)))

    def _alpha(self, batch: _Batch) -> float:
        """The part of the longest cache's time, by the bucket of the skew fit, or its default."""
        import yaml

        fit = (yaml.safe_load(self.read(f"{self.path}/meta.yaml")) or {}).get("skew_fit") or {}
        without = _ALPHA_WITHOUT_FIT[self.logarithmic]
        if not fit.get("enabled"):
            return without
        of_tp = (fit.get("per_tp") or {}).get(self.tp)
        if of_tp is None:
            return float(fit.get("alpha_default", without))
        default = float(of_tp.get("alpha_default", without))
        if "bucket_table" not in of_tp:
            return default
        bucket = _bucket(of_tp.get("bucket_axes") or fit["bucket_axes"], batch)
        names = ("pc", "n_label", "skew_rate_label", "kv_big_label", "kp_label")
        lines = self._lines(of_tp["bucket_table"].removesuffix(".csv"), (*names, "alpha"))
        return next((float(line["alpha"]) for line in lines if tuple(line[name] for name in names) == bucket), default)

    def _curves(self, name: str, layer: str, key: str) -> Mapping[str, _Curve]:
        tp = 1 if layer in _TP_STABLE else self.tp
        curves: dict[str, dict[int, float]] = defaultdict(dict)
        for line in self._lines(f"tp{tp}/{name}", ("layer", key, "time_us")):
            curves[line["layer"]].setdefault(int(line[key]), _ns(line))
        return curves

    def _lines(self, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
        path = f"{self.path}/{name}.csv"
        lines = csv.DictReader(io.StringIO(self.read(path).decode(), newline=""))
        if lacking := [column for column in columns if column not in (lines.fieldnames or ())]:
            raise UsageError(f"{path}: lacks the columns {', '.join(lacking)}")
        return list(lines)


def _ns(line: Mapping[str, str]) -> int:
    return max(1, round(float(line["time_us"]) * 1000))


def _interpolated_ns(curve: _Curve, key: int) -> int:
    return max(1, int(sum(weight * curve[near] for near, weight in _weights([*curve], key, False))))


def _weights(keys: Sequence[int], key: int, logarithmic: bool) -> list[tuple[int, float]]:
    """Keys next to one, and the part that each has of the value: that of the first below it, a line above the last.

    logarithmic: the line is one over logarithms where both of its keys are above 0.
    """
    keys = sorted(keys)
    if key <= keys[0] or len(keys) == 1:
        return [(keys[0], 1.0)]
    if key in keys:
        return [(key, 1.0)]
    after = min(bisect_left(keys, key), len(keys) - 1)
    low, high = keys[after - 1], keys[after]
    scale: Callable[[float], float] = log if logarithmic and low > 0 else float
    part = (scale(key) - scale(low)) / (scale(high) - scale(low))
    return [(low, 1 - part), (high, part)]


def _attention_ns(
    table: Mapping[tuple[int, int], Mapping[int, _Curve]], query: tuple[int, int, int, int], logarithmic: bool
) -> int:
    """table: by (chunk, decodes), then history, then cache. query: (chunk, history, decodes, cache)."""
    chunk, history, decodes, cache = query
    if not table:
        raise UsageError("attention.csv has no line, where the simulator stops")
    total = 0.0
    for near_chunk, part in _weights([*{chunk for chunk, _ in table}], chunk, logarithmic):
        for near_decodes, of_part in _weights([*{decodes for _, decodes in table}], decodes, logarithmic):
            corner = (near_chunk, near_decodes)
            if corner not in table:  # then the nearest that is there
                corner = min(table, key=lambda there: hypot(there[0] - near_chunk, there[1] - near_decodes))
            histories = table[corner]
            for near_history, of_history in _weights([*histories], history, logarithmic):
                caches = histories[near_history]
                value = sum(weight * caches[near] for near, weight in _weights([*caches], cache, logarithmic))
                total += part * of_part * of_history * value
    return max(1, int(total))


def _bucket(axes: Mapping[str, Sequence[Any]], batch: _Batch) -> tuple[str, ...]:
    """The labels of a batch in a skew fit. A chunk has to be one that was profiled."""
    caches = batch.caches
    shortest, longest, mean = min(caches), max(caches), sum(caches) / len(caches)
    skew_rate = (mean - shortest) / (longest - shortest)
    values = {"n": len(caches), "skew_rate": skew_rate, "kv_big": longest, "kp": batch.history}
    labels = [axes[f"{name}_labels"][bisect_left(axes[f"{name}_bins"], value) - 1] for name, value in values.items()]
    return (str(batch.chunk), *labels)
