#!/usr/bin/env python3
"""Measure the latency of every layer of a Hugging Face causal LM, at every prefill and decode length, on this GPU.

The model is loaded with few decoder blocks (they are alike), with real or random weights. At each length, passes run under
torch's profiler and every nanosecond of GPU time goes to the layer that launched it: kernels, copies and memsets, nothing
of the host. `<hardware>/<model>.csv` has the median per layer and block, in nanoseconds. The sum of the table is then held
against the real model at full depth, and a second, scaled table has what kernels alone do not show.

    python3 run_profile.py --model meta-llama/Llama-3.1-8B             the full sweep, lengths 1 to 2,048
    python3 run_profile.py --model Qwen/Qwen3-8B --prefill-step 8 --decode-step 8
    python3 run_profile.py --model ./my-model --load-format dummy --skip-scaling
    python3 run_profile.py --model facebook/opt-125m --plan            what would be measured, without measuring

The same command goes on where it was interrupted.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_profile import planning, summary
from llm_profile.backends import open_backend
from llm_profile.backends.base import Backend
from llm_profile.errors import EXIT_COMPLETE, EXIT_INTERRUPTED, EXIT_POINTS_MISSING, EXIT_USAGE, UsageError
from llm_profile.estimate import check_pairs
from llm_profile.hub import LOAD_FORMATS, ModelSource, find_model
from llm_profile.measurement import StoppingRule
from llm_profile.paths import TablePaths
from llm_profile.profiler import measure
from llm_profile.request import DTYPES, ROUTINGS, SDPA_BACKENDS, Request
from llm_profile.sweep import MODES, Plan, Sweep, SweepPoint, plan
from llm_profile.table import LatencyTable
from llm_profile.writer import TableWriter
from validation import OneLineParser, add_scaling_arguments, parse_scaling, validate_table


@dataclass(frozen=True)
class Result:
    """What a run left behind. exit_code: 0 complete, 3 points missing, 4 validation over its tolerance."""

    csv: Path
    missing: dict[SweepPoint, str]
    exit_code: int


def run_profile(request: Request) -> Result:
    """Profile a model as `request` says: plan, load, measure, scale, report.

    Raises UsageError for what the user can mend. Interrupted or killed, the same request goes on where it stopped.
    """
    if request.scaling is not None:
        check_pairs(request.scaling.pairs, request.sweep.points(), {})
    source = settled_source(request)
    summary.notice(source.notice)
    hardware = request.hardware or planning.hardware_name(request.device)
    paths = TablePaths.of(request.output_dir, hardware, request.model_name or planning.table_name(source))
    laid_out = measure_table(request, source, paths, hardware)
    table = LatencyTable.read(paths.csv)
    print("\n".join(summary.end_of_sweep(table, paths, laid_out)))
    missing = summary.missing_points(table.missing, laid_out)
    code = EXIT_POINTS_MISSING if missing else EXIT_COMPLETE
    if request.scaling is not None:
        code = max(code, validate_table(table, paths.csv, request.scaling, request.device, request.hf_token))
    return Result(paths.csv, missing, code)


def settled_source(request: Request) -> ModelSource:
    """Find the model, and fetch what its kept blocks need where real weights are to be used."""
    source = find_model(
        request.model,
        load_format=request.load_format,
        revision=request.revision,
        token=request.hf_token,
        allow_pickle=request.allow_pickle,
    )
    if source.weights_file is None or request.device == "fake":
        return replace(source, weights_file=None)
    from llm_profile.loading import settle_weights  # imports torch

    return settle_weights(source, request.num_layers, request.hf_token, insist=request.load_format == "hf")


def measure_table(request: Request, source: ModelSource, paths: TablePaths, hardware: str) -> Plan:
    """Measure what the table at `paths` lacks of the request, and write its files. Returns the plan that was laid out."""
    backend = open_backend(request, source)
    try:
        laid_out = plan(request.sweep, backend.learned_positions)
        for text in (*backend.notices, planning.beyond_training(source.config, laid_out)):
            summary.notice(text)
        writer = TableWriter(
            paths,
            hardware=hardware,
            model=request.model_name or planning.table_name(source),
            clock=backend.clock,
            conditions=backend.conditions(),
            kinds=backend.kinds,
            run=planning.run_record(request),
            points=laid_out.points,
            append=request.append,
            overwrite=request.overwrite,
        )
        with writer:
            measure_what_is_left(request, source, backend, laid_out, writer)
    finally:
        backend.close()
    return laid_out


def measure_what_is_left(
    request: Request, source: ModelSource, backend: Backend, laid_out: Plan, writer: TableWriter
) -> None:
    """Run the measuring loop over the points that are not in the table yet, then write the table."""
    left = laid_out.left(writer.done())
    if not left:
        summary.notice("complete: every point is in the table already")
    elif len(left) < len(laid_out.points) - len(laid_out.unrunnable):
        summary.notice(
            f"going on: {len(laid_out.points) - len(left)} of {len(laid_out.points)} points are there already"
        )
    rule = StoppingRule(request.repeat, request.precision)
    started = time.monotonic()
    with summary.progress(len(left), request.verbose) as tell:
        measure(backend, laid_out, writer, rule, request.warmup, request.seed, tell)
    if left:
        seconds = round(time.monotonic() - started, 1)
        writer.table.meta["runs"][-1].update(backend.facts(), seconds=seconds)
        summary.notice(f"measured {len(left)} points in {seconds} s ({1000 * seconds / len(left):.0f} ms a point)")
        summary.notice(backend.notices[-1] if len(backend.notices) > 1 else None)
    writer.table.meta.update(planning.model_record(source), block_rows=dict(backend.block_rows))
    writer.finish()


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = OneLineParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit codes: 0 complete; 2 usage or environment; 3 points missing; 4 held-out error above the tolerance; "
        "130 interrupted.",
    )
    add = parser.add_argument_group("model").add_argument
    add("--model", required=True, help="a Hub id, a local folder, or a name of the built-in table (tiny-llama)")
    add("--num-layers", type=int, default=1, metavar="N", help="decoder blocks to profile (default %(default)s)")
    add("--dtype", choices=DTYPES, default="auto", help="auto: the configuration's own (default)")
    add(
        "--attn-implementation",
        default="auto",
        metavar="NAME",
        help="as in transformers: sdpa, eager, ... (default auto)",
    )
    add(
        "--sdpa-backend",
        choices=SDPA_BACKENDS,
        default="auto",
        help="auto: flash where it can run, else torch's choice",
    )
    add("--experts-implementation", default="auto", metavar="NAME", help="as in transformers: grouped_mm, eager, ...")
    add(
        "--routing",
        choices=ROUTINGS,
        default="balanced",
        help="who chooses experts with random weights (default balanced)",
    )
    add(
        "--load-format",
        choices=LOAD_FORMATS,
        default="auto",
        help="hf: real weights; dummy: random; auto: real if there",
    )
    add("--revision", metavar="REV", help="branch, tag or commit on the Hub")
    add("--allow-pickle", action="store_true", help="read a .bin checkpoint (unpickling may run code)")
    add("--hf-token", metavar="TOKEN", help="access token of the Hugging Face Hub (default: HF_TOKEN)")
    add("--seed", type=int, default=0, help="of random weights, inputs and the order of points (default %(default)s)")

    add = parser.add_argument_group("sweep").add_argument
    add("--mode", choices=MODES, default="both", help="phases to sweep (default both)")
    add("--prefill-max", type=int, default=2048, metavar="N", help="longest prompt in tokens (default %(default)s)")
    add("--decode-max", type=int, default=2048, metavar="N", help="longest KV cache in tokens (default %(default)s)")
    add("--prefill-step", type=int, default=1, metavar="N", help="between prompt lengths (default %(default)s)")
    add("--decode-step", type=int, default=1, metavar="N", help="between cache lengths (default %(default)s)")
    add("--plan", action="store_true", help="say what would be measured, how long it takes and what it needs, and stop")

    add = parser.add_argument_group("measuring").add_argument
    add("--device", default="cuda", help="cuda, cuda:N or cpu; fake: made-up times for trying the tool (default cuda)")
    add("--warmup", type=int, default=10, metavar="N", help="most passes before those that count (default %(default)s)")
    add("--repeat", type=int, default=100, metavar="N", help="most passes that count, a point (default %(default)s)")
    add(
        "--precision",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="stop a point when its median is known to this (default %(default)s; 0: exactly --repeat passes)",
    )

    add = parser.add_argument_group("files").add_argument
    add("--hardware", metavar="NAME", help="folder and column of the table (default: the device's short name)")
    add("--model-name", metavar="NAME", help="name of the table (default: the model's id)")
    add(
        "--output-dir",
        type=Path,
        default=Path("."),
        metavar="DIR",
        help="where <hardware>/<model>.csv goes (default .)",
    )
    add("--append", action="store_true", help="add other lengths to a table measured under the same conditions")
    add("--overwrite", action="store_true", help="start the table anew (the old one is kept as .bak)")
    add("--verbose", action="store_true", help="say more: conditions, rows, and progress where there is no terminal")

    add_scaling_arguments(parser)
    parser.add_argument("--skip-scaling", action="store_true", help="do not hold the table against the real model")
    return parser


def parse_request(arguments: argparse.Namespace) -> Request:
    """A checked request. Raises UsageError."""
    same = (
        "model",
        "hardware",
        "model_name",
        "num_layers",
        "device",
        "warmup",
        "repeat",
        "dtype",
        "attn_implementation",
    )
    same += ("sdpa_backend", "experts_implementation", "routing", "load_format", "revision", "allow_pickle", "seed")
    same += ("append", "overwrite", "output_dir", "verbose")
    return Request(
        sweep=Sweep(
            arguments.mode,
            arguments.prefill_max,
            arguments.decode_max,
            arguments.prefill_step,
            arguments.decode_step,
        ),
        precision=arguments.precision / 100,
        scaling=None if arguments.skip_scaling else parse_scaling(arguments),
        hf_token=arguments.hf_token or os.environ.get("HF_TOKEN") or None,
        **{name: getattr(arguments, name) for name in same},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        arguments = build_parser().parse_args(argv)
        request = parse_request(arguments)
        if arguments.plan:
            print("\n".join(planning.plan_lines(request)))
            return EXIT_COMPLETE
        return run_profile(request).exit_code
    except UsageError as error:
        print(f"run_profile.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("run_profile.py: interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
