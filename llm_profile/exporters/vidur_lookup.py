"""One step as Vidur prices it, without what its network and CPU models add. No torch.

Written from Vidur's rules, apart from the exporter. Vidur trains a regression on the medians of its files; here a line
is drawn between the nearest keys, so that at a key the result is the time of the file, which Vidur comes close to.
"""

import csv
import io
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, sqrt

from llm_profile.errors import UsageError
from llm_profile.exporters.bundle import LayerTime, Read, Target
from llm_profile.points import SweepPoint

_BEFORE = ("input_layernorm", "attn_pre_proj", "attn_rope")
_AFTER = ("attn_post_proj", "post_attention_layernorm", "mlp_up_proj", "mlp_act", "mlp_down_proj", "add")
"""Operations that are looked up at the tokens of a step, before attention and after it."""

_MAY_BE_ABSENT = ("input_layernorm", "post_attention_layernorm", "add")
"""Those that take no time where a file lacks them."""

_ROUNDED_TOKENS = 8
_ROUNDED_CACHE = 64
"""Tokens of a step, and the mean cache of decodes, are rounded up to multiples of these."""

_BATCHING_OVERHEAD = 0.1
"""Vidur adds this part to attention of several prompts, and to that of several decodes (its default)."""

_Curve = Mapping[int, float]
"""From a key to ms."""


def step(read: Read, point: SweepPoint, target: Target) -> list[LayerTime]:
    """The operations that Vidur adds for a step, in a block's order.

    Of all blocks if the file tells how many there are (LLM-Profile's do), else of one. Raises UsageError for what Vidur
    would not find.
    """
    folder = f"data/profiling/compute/{target.hardware.lower()}/{target.model}"
    mlp = _lines(read, f"{folder}/mlp.csv", target.tp)
    attention = _lines(read, f"{folder}/attention.csv", target.tp)
    blocks = int(mlp[0].get("num_layers") or 1)
    tokens = ceil(point.tokens / _ROUNDED_TOKENS) * _ROUNDED_TOKENS

    def at_tokens(operation: str) -> float:
        curve = _curve(mlp, operation, ("num_tokens",))
        if not curve and operation not in _MAY_BE_ABSENT:
            raise UsageError(f"{folder}/mlp.csv: has no time_stats.{operation}.median, where Vidur stops")
        return _between(curve, tokens) if curve else 0.0

    saved = _curve(attention, "attn_kv_cache_save", ("prefill_chunk_size", "batch_size"))
    prompts = [(tokens, history) for tokens, history in point.sequences if tokens > 1 or not history]
    caches = [history for tokens, history in point.sequences if tokens == 1 and history]
    times_ms = {
        **{operation: at_tokens(operation) for operation in _BEFORE},
        "attn_kv_cache_save": _between(saved, point.tokens) if saved else 0.0,
        "attn_prefill": _prefill_ms(attention, prompts) if prompts else 0.0,
        "attn_decode": _decode_ms(attention, caches) if caches else 0.0,
        **{operation: at_tokens(operation) for operation in _AFTER},
    }
    return [LayerTime(name, blocks, round(blocks * ms * 1e6)) for name, ms in times_ms.items()]


def _prefill_ms(lines: Sequence[Mapping[str, str]], prompts: Sequence[tuple[int, int]]) -> float:
    """Several prompts are one of the root of the sum of their squares, on all of their histories."""
    chunk = round(sqrt(sum(tokens**2 for tokens, _ in prompts)))
    history = sum(history for _, history in prompts)
    tables = _tables(lines, "attn_prefill", "kv_cache_size", "prefill_chunk_size")
    return _between({key: _between(curve, chunk) for key, curve in tables.items()}, history) * _overhead(prompts)


def _decode_ms(lines: Sequence[Mapping[str, str]], caches: Sequence[int]) -> float:
    cache = ceil(int(sum(caches) / len(caches)) / _ROUNDED_CACHE) * _ROUNDED_CACHE
    tables = _tables(lines, "attn_decode", "batch_size", "kv_cache_size")
    return _between({key: _between(curve, cache) for key, curve in tables.items()}, len(caches)) * _overhead(caches)


def _overhead(sequences: Sequence[object]) -> float:
    return 1 + _BATCHING_OVERHEAD * (len(sequences) > 1)


def _tables(lines: Iterable[Mapping[str, str]], operation: str, outer: str, inner: str) -> Mapping[int, _Curve]:
    """The times of an operation by two keys. Raises UsageError where there is none."""
    by_outer: dict[int, list[Mapping[str, str]]] = defaultdict(list)
    for line in lines:
        if line.get(f"time_stats.{operation}.median"):
            by_outer[int(line[outer])].append(line)
    if not by_outer:
        raise UsageError(f"attention.csv: has no time_stats.{operation}.median, where Vidur stops")
    return {key: _curve(of_key, operation, (inner,)) for key, of_key in by_outer.items()}


def _curve(lines: Iterable[Mapping[str, str]], operation: str, keys: Sequence[str]) -> _Curve:
    """The median of an operation, in ms, by the largest of these keys: the mean of the lines that share it."""
    found: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        if text := line.get(f"time_stats.{operation}.median"):
            found[max(int(line[key]) for key in keys)].append(float(text))
    return {key: sum(values) / len(values) for key, values in found.items()}


def _between(curve: _Curve, key: int) -> float:
    """On the line between the nearest keys; a forest of trees does not go beyond the first and the last."""
    keys = sorted(curve)
    if key <= keys[0] or key >= keys[-1]:
        return curve[keys[0] if key <= keys[0] else keys[-1]]
    high = bisect_left(keys, key)
    if keys[high] == key:
        return curve[key]
    part = (key - keys[high - 1]) / (keys[high] - keys[high - 1])
    return curve[keys[high - 1]] * (1 - part) + curve[keys[high]] * part


def _lines(read: Read, path: str, tp: int) -> list[dict[str, str]]:
    """The lines of one tensor parallel degree. Raises UsageError where there is none: Vidur has nothing to train on."""
    lines = csv.DictReader(io.StringIO(read(path).decode(), newline=""))
    of_tp = [line for line in lines if line.get("num_tensor_parallel_workers") == str(tp)]
    if not of_tp:
        raise UsageError(f"{path}: has no line of num_tensor_parallel_workers {tp}, where Vidur stops")
    return of_tp
