#!/usr/bin/env python3
"""Compare a scaled table with the times that a user's own script measures. Imports nothing of LLM-Profile.

Fresh processes, one after the other, load the model of the table's metadata at full depth with random weights, and time
requests (a prompt and a number of output tokens) with time.perf_counter. The rows of the table are added up as
docs/validation.md says. The errors of TTFT and TPOT and the spread between the processes are printed.

    python3 bench/as_a_user.py --csv H200/meta-llama/Llama-3.1-8B-scaled.csv --pairs 97x33 311x65 777x17 1333x33

With `--runtime eager` (default), a request is a call of `generate`, as in a plain script. With `cuda-graph`, the steps
of the same model are captured in CUDA graphs by code of this file, with keys and values in preallocated buffers and the
attention kernels that the table was measured with.
"""

import argparse
import contextlib
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Pair = tuple[int, int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--csv", type=Path, required=True, help="a scaled table; its .meta.json stands beside it")
    parser.add_argument("--pairs", type=pair_of, nargs="+", required=True, metavar="INPUTxOUTPUT")
    parser.add_argument("--runtime", choices=("eager", "cuda-graph"), default="eager")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="timings of each pair (default %(default)s)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    meta = json.loads(arguments.csv.with_suffix(".meta.json").read_text())
    if arguments.child:
        time_pairs = {"eager": time_generate, "cuda-graph": time_graphs}[arguments.runtime]
        print(json.dumps(time_pairs(meta, arguments.pairs, arguments.repeat, arguments.device)))
        return 0
    started = time.monotonic()
    command = [sys.executable, __file__, "--child", *(argv if argv is not None else sys.argv[1:])]
    found = []
    for _ in range(arguments.processes):
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(child.stdout.splitlines()[-1]))
    result = judge(meta, Rows(arguments.csv, meta), arguments.pairs, found)
    result |= {"csv": str(arguments.csv), "runtime": arguments.runtime, "repeat": arguments.repeat, "runs": found}
    result["seconds"] = round(time.monotonic() - started, 1)
    print_result(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def pair_of(text: str) -> Pair:
    """(input, output) of a text: `97x33` -> (97, 33). Raises ValueError for an output of less than 2 tokens."""
    input_len, output_len = map(int, text.split("x"))
    if input_len < 1 or output_len < 2:
        raise ValueError(text)
    return input_len, output_len


class Rows:
    """The latencies of a table, added up to steps: each row of the model once, rows of blocks times their blocks."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        column = (meta.get("scaling") or {}).get("column", "latency(ns)")
        counts = {kind["name"]: kind["count"] for kind in meta["kinds"]}
        of_block = meta["block_rows"]
        self._head_ns = 0.0
        self._steps: dict[tuple[int, int], float] = {}
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                key, latency_ns = (int(row["input"]), int(row["kv_cache"])), float(row[column])
                name = row["layer_name"]
                if name == "lm_head":  # a step needs the head for one token only, which is the row at (1, 0)
                    self._head_ns = latency_ns if key == (1, 0) else self._head_ns
                    continue
                times = counts[of_block[name]] if name in of_block else 1
                self._steps[key] = self._steps.get(key, 0.0) + times * latency_ns

    def step_ns(self, input_len: int, kv_len: int) -> float:
        """Nanoseconds of a prompt (kv_len 0) or a decode step (input_len 1).

        Between the lengths of a sparse table, the two neighbours are interpolated.
        """
        if (input_len, kv_len) in self._steps:
            return self._steps[input_len, kv_len] + self._head_ns
        of = 1 if kv_len else 0  # index of the part of the key that varies
        known = sorted(key for key in self._steps if (key[1] > 0 or key == (1, 0)) == bool(kv_len) or key == (1, 0))
        at = (input_len, kv_len)[of]
        low = max(key for key in known if key[of] <= at)
        high = min(key for key in known if key[of] >= at)
        share = (at - low[of]) / (high[of] - low[of])
        return self._steps[low] * (1 - share) + self._steps[high] * share + self._head_ns

    def request_ns(self, pair: Pair) -> dict[str, float]:
        """TTFT and TPOT of a pair, in nanoseconds."""
        input_len, output_len = pair
        steps = [self.step_ns(1, input_len + j) for j in range(output_len - 1)]
        return {"ttft": self.step_ns(input_len, 0), "tpot": statistics.fmean(steps)}


def judge(meta: dict[str, Any], rows: Rows, pairs: Sequence[Pair], found: list[Any]) -> dict[str, Any]:
    """The figures of all pairs, and mean and worst errors and spreads, as ratios.

    found: the times of each process. Real times are the median over processes of their medians.
    """
    results = []
    for number, pair in enumerate(pairs):
        estimate = rows.request_ns(pair)
        for quantity in ("ttft", "tpot"):
            medians = [statistics.median(run[number][quantity]) for run in found]
            real = statistics.median(medians)
            results.append(
                {
                    "pair": list(pair),
                    "quantity": quantity,
                    "real_ns": real,
                    "table_ns": estimate[quantity],
                    "error": estimate[quantity] / real - 1,
                    "spread_between_processes": (max(medians) - min(medians)) / real,
                    "of_processes_ns": medians,
                }
            )
    summary = {}
    for quantity in ("ttft", "tpot"):
        errors = [abs(result["error"]) for result in results if result["quantity"] == quantity]
        spreads = [result["spread_between_processes"] for result in results if result["quantity"] == quantity]
        summary[quantity] = {
            "mean_error": statistics.fmean(errors),
            "worst_error": max(errors),
            "mean_spread": statistics.fmean(spreads),
            "worst_spread": max(spreads),
        }
    return {"model": meta["model"], "hardware": meta["hardware"], "summary": summary, "pairs": results}


def print_result(result: dict[str, Any]) -> None:
    """Print the figures of `main` for people."""
    print(f"{result['model']} on {result['hardware']}, {result['runtime']}: {result['seconds']} s")
    for of in result["pairs"]:
        each = " ".join(f"{value / 1e6:.2f}" for value in of["of_processes_ns"])
        print(
            f"{of['pair'][0]:>6} {of['pair'][1]:>5} {of['quantity']}: real {of['real_ns'] / 1e6:8.3f} ms, table "
            f"{of['table_ns'] / 1e6:8.3f} ({of['error']:+.1%}); processes {each} ({of['spread_between_processes']:.1%})"
        )
    for quantity, of in result["summary"].items():
        print(
            f"{quantity}: error {of['mean_error']:.1%} mean, {of['worst_error']:.1%} worst; between processes "
            f"{of['mean_spread']:.1%} mean, {of['worst_spread']:.1%} worst"
        )


def load(meta: dict[str, Any], device: str) -> Any:
    """The model of a table at full depth with random weights, made as a plain script makes it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(meta["config"])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, meta["conditions"]["dtype"]))
    model.generation_config.eos_token_id = None  # a random token must not end the output
    return model.eval()


def time_generate(meta: dict[str, Any], pairs: Sequence[Pair], repeat: int, device: str) -> list[dict[str, list[int]]]:
    """TTFT and TPOT of each pair with `generate`, in nanoseconds, of `repeat` rounds over all pairs.

    One more round comes first and is not counted.
    """
    import torch

    model = load(meta, device)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def generate_ns(input_ids: Any, tokens: int) -> int:
        wait()
        started = time.perf_counter_ns()
        model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        wait()
        return time.perf_counter_ns() - started

    vocab_size = model.config.get_text_config().vocab_size
    prompts = [torch.randint(vocab_size, (1, input_len), device=device) for input_len, _ in pairs]
    times: list[dict[str, list[int]]] = [{"ttft": [], "tpot": []} for _ in pairs]
    for number in range(1 + repeat):
        for (_, output_len), prompt, of in zip(pairs, prompts, times, strict=True):
            ttft_ns = generate_ns(prompt, 1)
            total_ns = generate_ns(prompt, output_len)
            if number:
                of["ttft"].append(ttft_ns)
                of["tpot"].append(round((total_ns - ttft_ns) / (output_len - 1)))
    return times


def time_graphs(meta: dict[str, Any], pairs: Sequence[Pair], repeat: int, device: str) -> list[dict[str, list[int]]]:
    """TTFT and TPOT of each pair as replays of CUDA graphs, in nanoseconds, `repeat` times.

    TTFT is that of the prompt, TPOT the mean of the first, the middle and the last decode step.
    """
    import torch

    model = load(meta, device)
    longest = max(input_len + output_len for input_len, output_len in pairs)
    vocab_size = model.config.get_text_config().vocab_size
    ids = torch.randint(vocab_size, (1, longest), device=device)
    positions = torch.arange(longest, device=device)[None]
    cache = buffers(model, longest)
    stream = torch.cuda.Stream()

    def capture(input_len: int, kv_len: int) -> Any:
        def run() -> None:
            cache.length = kv_len
            model(
                input_ids=ids[:, :input_len],
                position_ids=positions[:, kv_len : kv_len + input_len],
                past_key_values=cache,
                logits_to_keep=1,
            )

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            run()
            with torch.cuda.graph(graph, stream=stream):
                run()
        return graph

    times = []
    with torch.no_grad(), without_masks(model), balanced_experts(model, meta), kernels_of(meta):
        replay_ns(capture(1, 0), stream)
        for input_len, output_len in pairs:
            prompt = capture(input_len, 0)
            kv_lens = sorted({input_len, input_len + (output_len - 2) // 2, input_len + output_len - 2})
            steps = [capture(1, kv_len) for kv_len in kv_lens]
            of: dict[str, list[int]] = {"ttft": [], "tpot": []}
            for _ in range(repeat):
                of["ttft"].append(round(replay_ns(prompt, stream)))
                of["tpot"].append(round(statistics.fmean(replay_ns(step, stream) for step in steps)))
            times.append(of)
    return times


def replay_ns(graph: Any, stream: Any) -> float:
    """Mean nanoseconds of two replays, after one that is not counted. The GPU then rests as long as the three took."""
    import torch

    began = time.monotonic()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        graph.replay()
        start.record()
        graph.replay()
        graph.replay()
        end.record()
    end.synchronize()
    time.sleep(time.monotonic() - began)
    return start.elapsed_time(end) / 2 * 1e6


def buffers(model: Any, capacity: int) -> Any:
    """A cache that is written in place: buffers of random numbers for the keys and values of each layer."""
    import torch
    from transformers import DynamicCache

    class Buffers(DynamicCache):
        length = 0

        def __init__(self) -> None:
            super().__init__()
            self.kept: dict[int, Any] = {}

        def update(self, key_states: Any, value_states: Any, layer_idx: int, *_args: Any, **_kwargs: Any) -> Any:
            if layer_idx not in self.kept:
                shape = (*key_states.shape[:2], capacity, key_states.shape[3])
                self.kept[layer_idx] = [torch.randn(shape).to(key_states) for _ in range(2)]
            end = self.length + key_states.shape[2]
            for buffer, states in zip(self.kept[layer_idx], (key_states, value_states), strict=True):
                buffer[:, :, self.length : end] = states
            keys, values = self.kept[layer_idx]
            return keys[:, :, :end], values[:, :, :end]

        def get_seq_length(self, *_args: Any, **_kwargs: Any) -> int:
            return self.length

    return Buffers()


@contextlib.contextmanager
def without_masks(model: Any) -> Iterator[None]:
    """Context in which the model's code builds no attention masks.

    One sequence without padding needs none: attention is causal for a prompt, and a decode step sees all tokens.
    """
    module = sys.modules[type(model).__module__]
    names = [name for name in vars(module) if name.startswith("create_") and name.endswith("_mask")]
    kept = {name: getattr(module, name) for name in names}
    for name in names:
        setattr(module, name, lambda *_args, **_kwargs: None)
    yield
    for name, function in kept.items():
        setattr(module, name, function)


@contextlib.contextmanager
def balanced_experts(model: Any, meta: dict[str, Any]) -> Iterator[None]:
    """Context with the routing of the table: if it is `balanced`, each expert gets as many tokens, to within one."""
    import torch

    def route(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def replaced(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point():
                key = tuple(value.shape)
                if key not in chosen:
                    chosen[key] = (torch.arange(value.numel(), device=value.device) % module.num_experts).view_as(value)
                return chosen[key].to(value.dtype)
            return value

        return tuple(replaced(value) for value in args), {name: replaced(value) for name, value in kwargs.items()}

    chosen: dict[tuple[int, ...], Any] = {}
    balanced = meta["conditions"].get("routing") == "balanced"
    experts = [module for module in model.modules() if balanced and hasattr(module, "num_experts")]
    owners = [module for module in experts if any(p.ndim == 3 for p in module.parameters(recurse=False))]
    handles = [module.register_forward_pre_hook(route, with_kwargs=True) for module in owners]
    yield
    for handle in handles:
        handle.remove()


def kernels_of(meta: dict[str, Any]) -> Any:
    """Context in which scaled_dot_product_attention uses the kernels that the table was measured with."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    flash, efficient, math = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
    named: dict[str, Callable[[], Any]] = {
        "auto": lambda: sdpa_kernel([flash, efficient, math]),
        "torch": contextlib.nullcontext,
        "flash": lambda: sdpa_kernel(flash),
        "cudnn": lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION),
        "efficient": lambda: sdpa_kernel(efficient),
        "math": lambda: sdpa_kernel(math),
    }
    return named[meta["conditions"]["sdpa_backend"]]()


if __name__ == "__main__":
    sys.exit(main())
