"""One step as LLMServingSim v0.2.1 looks it up, without what its network and memory add. No torch.

Written from the simulator's rules, apart from the exporter, so that each can show a mistake of the other.
"""

import csv
import io
import json

from llm_profile.errors import UsageError
from llm_profile.exporters.bundle import LayerTime, Read, Target
from llm_profile.points import SweepPoint

_COLUMNS = ("hardware", "model", "layer_name", "input", "kv_cache", "latency(ns)")
_Key = tuple[str, int, int]
"""(layer, input, kv_cache)."""

_ONCE_PER_STEP = ("embedding", "final_layernorm", "lm_head")
_BEFORE_ATTENTION = ("input_layernorm", "q_proj", "k_proj", "v_proj")
_BLOCKS = {
    True: (("rope", "attn"), ("o_proj", "post_layernorm", "gate_proj", "up_proj", "act_fn", "down_proj")),
    False: (("qk_matmul", "softmax", "sv_matmul"), ("o_proj", "post_layernorm", "fc1", "act_fn", "fc2")),
}
"""Whether the model's name has "llama": the layers of a block once per sequence, and those after attention."""


def step(read: Read, point: SweepPoint, target: Target) -> list[LayerTime]:
    """The layers that the simulator adds for a step, in its order.

    Of `tp` GPUs, sequences are dealt to them in the point's order; the others wait for the one with the most attention.
    Raises UsageError for keys that are not there, chunks on a history, and numbers at which it stops or hangs.
    """
    if any(history and tokens > 1 for tokens, history in point.sequences):
        raise UsageError(f"--check {point}: LLMServingSim v0.2.1 has no prompts in chunks")
    path = f"perf_model/{target.hardware}.csv"
    latencies = _latencies(read(path).decode(), target, path)
    blocks = int(json.loads(read(f"model_configs/{target.model}.json"))["num_hidden_layers"])
    per_sequence, after_attention = _BLOCKS["llama" in target.model.lower()]

    def look_up(layer: str, tokens: int, kv: int) -> int:
        if (layer, tokens, kv) not in latencies:
            raise UsageError(f"{path}: no {layer} of {target.model} at ({tokens}, {kv}), where the simulator stops")
        return latencies[layer, tokens, kv]

    def of_step(layers: tuple[str, ...], times: int) -> list[LayerTime]:
        return [LayerTime(name, times, times * (look_up(name, point.tokens, 0) // target.tp)) for name in layers]

    shares: list[dict[str, int]] = [dict.fromkeys(per_sequence, 0) for _ in range(target.tp)]
    for number, (tokens, history) in enumerate(point.sequences):
        key = (1, history + 1) if history else (tokens, 0)
        for layer in per_sequence:
            shares[number % target.tp][layer] += look_up(layer, *key)
    busiest = max(shares, key=lambda share: sum(share.values()))
    sequences = -(-point.batch // target.tp)
    return [
        *of_step(_ONCE_PER_STEP[:1], 1),
        *of_step(_BEFORE_ATTENTION, blocks),
        *(LayerTime(layer, blocks * sequences, blocks * busiest[layer]) for layer in per_sequence),
        *of_step(after_attention, blocks),
        *of_step(_ONCE_PER_STEP[1:], 1),
    ]


def _latencies(text: str, target: Target, path: str) -> dict[_Key, int]:
    """The rows of one model on one hardware; of a key that is there twice, the first."""
    lines = csv.DictReader(io.StringIO(text, newline=""))
    if lacking := [name for name in _COLUMNS if name not in (lines.fieldnames or ())]:
        raise UsageError(f"{path}: lacks the columns {', '.join(lacking)}")
    latencies: dict[_Key, int] = {}
    for line in lines:
        latency = line["latency(ns)"]
        if not (latency or "").strip().isdecimal():
            raise UsageError(f"{path}, line {lines.line_num}: {latency!r} is no whole number; the simulator would hang")
        if (line["hardware"], line["model"]) == (target.hardware, target.model):
            key = line["layer_name"], int(line["input"]), int(line["kv_cache"])
            latencies.setdefault(key, int(latency))
    return latencies
