#!/usr/bin/env python3
"""Find out why eager steps are slower in a process that has run a sweep: a process for each possible cause.

Every process loads the first blocks of Llama-3.1-8B with random weights, does one thing that a sweep does (CAUSES), and
then waits. In each round, the processes time a prompt, decode steps and the launch of a small kernel, one after the
other within seconds, since the speed of a host changes by more than any cause. The effect of a cause is the ratio of
its times to the mean of two fresh processes in the same round; how far these two differ shows the noise.

    python3 bench/eager_causes.py --json causes.json
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

LAYERS = 8
PROMPT, STEPS, LAUNCHES = 97, 10, 1000
"""Tokens of the prompt, decode steps, and launches of a small kernel that are timed in each round."""

FRESH = ("fresh", "fresh again")
"""Names of the two processes that do nothing before they time."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--model", default="meta-llama/Llama-3.1-8B")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--causes", nargs="+", choices=CAUSES, default=list(CAUSES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        serve(arguments)
        return 0
    result = compare(arguments, argv if argv is not None else sys.argv[1:])
    for name, of in result["causes"].items():
        cells = "; ".join(f"{what} {v['median']:.3f} ({v['q1']:.3f} to {v['q3']:.3f})" for what, v in of.items())
        print(f"{name:>12}: {cells}")
    print("fresh: " + ", ".join(f"{what} {value:.4g}" for what, value in result["fresh"].items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def compare(arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Start a process for each cause, let all of them time in turn in each round, and return the figures.

    causes: name -> quantity -> quartiles over rounds of the ratio to the fresh processes. fresh: quantity -> median
    over rounds of the fresh processes. rounds: all times.
    """
    environment = {"torn down": {"TEARDOWN_CUPTI": "1"}}
    children = {}
    for name in dict.fromkeys([*FRESH, *arguments.causes]):
        children[name] = subprocess.Popen(
            [sys.executable, __file__, *argv, "--child", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment.get(name, {}),
        )
    for child in children.values():
        next_answer(child)  # an empty one, when the process is ready
    rounds = []
    for _ in range(arguments.rounds):
        found = {}
        for name, child in children.items():
            assert child.stdin
            child.stdin.write("go\n")
            child.stdin.flush()
            found[name] = next_answer(child)
        rounds.append(found)
    for child in children.values():
        child.kill()
    quantities = list(rounds[0][FRESH[0]])
    fresh = [{of: statistics.fmean(found[name][of] for name in FRESH) for of in quantities} for found in rounds]
    causes = {
        name: {
            of: quartiles([found[name][of] / base[of] for found, base in zip(rounds, fresh, strict=True)])
            for of in quantities
        }
        for name in children
    }
    middle = {of: statistics.median(base[of] for base in fresh) for of in quantities}
    return {"model": arguments.model, "layers": arguments.layers, "fresh": middle, "causes": causes, "rounds": rounds}


def next_answer(child: Any) -> Any:
    """Wait for the next line of JSON that a process prints, and return its content."""
    for line in child.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"a process ended: {child.args}")


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Quartiles of the values of all rounds."""
    q1, median, q3 = statistics.quantiles(values, n=4)
    return {"q1": q1, "median": median, "q3": q3}


def serve(arguments: argparse.Namespace) -> None:
    """What each process does: load a model, apply the cause of `--child`, and time steps for each line of stdin."""
    import torch

    torch.set_grad_enabled(False)
    kept = []
    model = load(arguments)
    ids = torch.randint(1000, (1, PROMPT), device=arguments.device)
    kept.append({**CAUSES, **dict.fromkeys(FRESH, nothing)}[arguments.child](model, ids, arguments))
    cache = kept[0] if arguments.child == "in place" else None
    small = torch.zeros(8, device=arguments.device)
    for _ in range(3):
        timed(model, ids, small, cache)
    print("{}", flush=True)
    for _line in sys.stdin:
        print(json.dumps(timed(model, ids, small, cache)), flush=True)


def load(arguments: argparse.Namespace) -> Any:
    """The first blocks of the model with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from llm_profile.models.catalog import MODELS

    fields = {**MODELS[arguments.model], "num_hidden_layers": arguments.layers}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None
    return model.eval()


def timed(model: Any, ids: Any, small: Any, cache: Any) -> dict[str, float]:
    """Milliseconds of a prompt and of a decode step, and microseconds of a launch of a small kernel.

    cache: the in-place cache that `generate` is to use, None for its own.
    """
    import torch

    wait = torch.cuda.synchronize if ids.is_cuda else lambda: None

    def generate_ms(tokens: int) -> float:
        given = {}
        if cache is not None:
            cache.rewind(0)
            given["past_key_values"] = cache
        wait()
        started = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0, **given
        )
        wait()
        return (time.perf_counter() - started) * 1e3

    prompt_ms = statistics.median(generate_ms(1) for _ in range(3))
    step_ms = (generate_ms(1 + STEPS) - prompt_ms) / STEPS
    wait()
    started = time.perf_counter()
    for _ in range(LAUNCHES):
        small.add_(1)
    launch_us = (time.perf_counter() - started) / LAUNCHES * 1e6
    wait()
    return {"prompt_ms": prompt_ms, "step_ms": step_ms, "launch_us": launch_us}


def nothing(_model: Any, _ids: Any, _arguments: Any) -> None:
    """Do nothing: a fresh process."""


def profiled(model: Any, ids: Any, _arguments: Any) -> None:
    """Run a session of torch's profiler, after which CUPTI stays attached."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]):
        model(ids)


def objects(_model: Any, _ids: Any, _arguments: Any) -> Any:
    """Make and keep as many Python objects as a sweep leaves."""
    return [{"n": [number]} for number in range(300_000)]


def frozen(_model: Any, _ids: Any, _arguments: Any) -> None:
    """Exclude all objects so far from garbage collection."""
    gc.collect()
    gc.freeze()


def graphs(model: Any, ids: Any, _arguments: Any) -> Any:
    """Capture and keep 100 CUDA graphs."""
    import torch

    kept = []
    model(ids, attention_mask=None, use_cache=False)
    for _ in range(100):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(ids, attention_mask=None, use_cache=False)
        kept.append(graph)
    return kept


def in_place(model: Any, ids: Any, _arguments: Any) -> Any:
    """Make an in-place cache, which `generate` then uses instead of its own."""
    from llm_profile.passes.cache import InPlaceCache

    cache = InPlaceCache(model.config, ids.shape[1] + STEPS + 2)
    model(ids[:, :1], past_key_values=cache)
    return cache


def swept(_model: Any, _ids: Any, arguments: Any) -> None:
    """Run a sweep of 257 points in this process."""
    import tempfile

    import run_profile

    with tempfile.TemporaryDirectory() as folder:
        command = ["--model", arguments.model, "--load-format", "dummy", "--skip-scaling", "--output-dir", folder]
        command += ["--prefill-step", "16", "--decode-step", "16", "--device", arguments.device]
        run_profile.main(command)


CAUSES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "profiled": profiled,
    "torn down": profiled,
    "objects": objects,
    "frozen": frozen,
    "graphs": graphs,
    "in place": in_place,
    "swept": swept,
}
"""Name -> what the process does before it times anything. `torn down` also has TEARDOWN_CUPTI=1 in its environment."""


if __name__ == "__main__":
    sys.exit(main())
