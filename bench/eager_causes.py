#!/usr/bin/env python3
"""Find what makes eager steps slow in a process that has measured: one cause in each process, timed by turns.

Every process loads the first blocks of Llama-3.1-8B with random weights, does one thing that a sweep does (CAUSES), and
then waits. In each round every process times a prompt, decode steps and the launch of a small kernel, one process after
the other within seconds, since a host's speed drifts by more than any cause. A cause's share is its ratio to the two
fresh processes of the same round; the two show what is noise.

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
FRESH = ("fresh", "fresh again")


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
    """Rounds over a process for each cause. Ratios to the fresh processes of each round, quartiles over rounds."""
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
        heard(child)  # it is ready
    rounds = []
    for _ in range(arguments.rounds):
        found = {}
        for name, child in children.items():
            assert child.stdin
            child.stdin.write("go\n")
            child.stdin.flush()
            found[name] = heard(child)
        rounds.append(found)
    for child in children.values():
        child.kill()
        child.wait()
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


def heard(child: Any) -> Any:
    """The next answer of a process."""
    for line in child.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"a process ended: {child.args}")


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Of values over rounds."""
    q1, median, q3 = statistics.quantiles(values, n=4)
    return {"q1": q1, "median": median, "q3": q3}


def serve(arguments: argparse.Namespace) -> None:
    """Make a model, do what the cause says, and time steps whenever a line comes."""
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
    """Milliseconds of a prompt and of a decode step, microseconds of a launch."""
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
    """A fresh process."""


def profiled(model: Any, ids: Any, _arguments: Any) -> None:
    """A session of torch's profiler, after which CUPTI stays attached."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]):
        model(ids)


def objects(_model: Any, _ids: Any, _arguments: Any) -> Any:
    """As many Python objects as a sweep leaves."""
    return [{"n": [number]} for number in range(300_000)]


def frozen(_model: Any, _ids: Any, _arguments: Any) -> None:
    """All objects out of the garbage collector's sight."""
    gc.collect()
    gc.freeze()


def graphs(model: Any, ids: Any, _arguments: Any) -> Any:
    """Graphs that stay in memory."""
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
    """`generate` with the cache of the profile, in place of its own."""
    from llm_profile.passes.cache import InPlaceCache

    cache = InPlaceCache(model.config, ids.shape[1] + STEPS + 2)
    model(ids[:, :1], past_key_values=cache)
    return cache


def swept(_model: Any, _ids: Any, arguments: Any) -> None:
    """A sweep of 257 points by run_profile.py in this process."""
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
"""What each process does before it times anything."""


if __name__ == "__main__":
    sys.exit(main())
