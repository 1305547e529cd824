#!/usr/bin/env python3
"""Measure the latency of every layer of a Hugging Face causal LM, at every prefill and decode length, on this GPU.

The model is loaded with few decoder blocks (they are alike), with real or random weights. At each length, passes run
under torch's profiler and every nanosecond of GPU time goes to the layer that launched it: kernels, copies and memsets,
nothing of the host. `<hardware>/<model>.csv` has the trimmed mean over passes per layer and block, in nanoseconds. The
sum of the table is then held against the real model at full depth, and a second, scaled table has what kernels alone do
not show.

    python3 run_profile.py --model meta-llama/Llama-3.1-8B             the full sweep, lengths 1 to 2,048
    python3 run_profile.py --model Qwen/Qwen3-8B --prefill-step 8 --decode-step 8
    python3 run_profile.py --model ./my-model --load-format dummy --skip-scaling
    python3 run_profile.py --model facebook/opt-125m --plan            what would be measured, without measuring

The same command goes on where it was interrupted.
"""

from llm_profile import interrupt

if __name__ == "__main__":
    interrupt.end_quietly()  # the imports below take a while

import argparse
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_profile import versions
from llm_profile.cli import planning, summary
from llm_profile.cli.scaling_options import named_path
from llm_profile.errors import EXIT_COMPLETE, EXIT_INTERRUPTED, EXIT_POINTS_MISSING, EXIT_USAGE, UsageError
from llm_profile.exporters import EXPORTERS
from llm_profile.measurement import StoppingRule
from llm_profile.models.hub import LOAD_FORMATS, ModelSource
from llm_profile.request import DTYPES, ROUTINGS, SDPA_BACKENDS, Request
from llm_profile.store.files import read_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable
from llm_profile.store.writer import TableHeader, TableRun, TableWriter
from llm_profile.sweep import GRID_NAMES, MODES, Plan, Sweep, SweepPoint, plan
from llm_profile.timing.backends import open_backend
from llm_profile.timing.backends.base import Backend
from llm_profile.timing.grid import GRIDS
from llm_profile.timing.loop import measure
from llm_profile.validation.estimate import check_pairs
from validation import OneLineParser, add_scaling_arguments, known_exit_code, parse_scaling, validate_table


@dataclass(frozen=True)
class Result:
    """What a run left behind. exit_code: 0 complete, 3 points missing, 4 validation over its tolerance."""

    csv: Path
    missing: dict[SweepPoint, str]
    exit_code: int


def run_profile(request: Request) -> Result:
    """Profile a model as `request` says: plan, load, measure, scale, report.

    Raises UsageError for what the user can mend, as far as possible before anything heavy is loaded. Interrupted or
    killed, the same request goes on where it stopped.
    """
    source = planning.find_source(request)
    hardware = planning.hardware_name(request)
    paths = planning.table_paths(request, source, hardware)
    known = planning.check(request, source, paths)
    source = settled_weights(request, source)
    summary.notice(source.notice)
    laid_out = measure_table(request, source, paths, hardware, known)
    table = read_table(paths.csv)
    summary.tell(summary.end_of_sweep(table, paths, laid_out, request.verbose))
    missing = summary.missing_points(table.missing, laid_out)
    code = EXIT_POINTS_MISSING if missing else EXIT_COMPLETE
    return Result(paths.csv, missing, max(code, scale(request, table, paths.csv)))


def settled_weights(request: Request, source: ModelSource) -> ModelSource:
    """Fetch what the kept blocks need where real weights are to be used; random ones may take their place."""
    if source.weights_file is None:
        return source
    from llm_profile.passes.loading import settle_weights  # imports torch

    return settle_weights(request, source)


def measure_table(
    request: Request, source: ModelSource, paths: TablePaths, hardware: str, known: Collection[SweepPoint]
) -> Plan:
    """Measure what the table at `paths` lacks of the request, and write its files. Returns the plan that was laid out.

    known: points that are there already. Raises UsageError, before anything is measured, where what is to be validated
    cannot run.
    """
    backend = open_backend(request, source)
    try:
        laid_out = plan(request.sweep, backend.learned_positions)
        planning.check_validation(request, laid_out, known)
        for text in (*backend.notices, planning.beyond_training(source.config, laid_out)):
            summary.notice(text)
        if request.verbose:
            summary.notice(summary.conditions_text(backend.conditions()))
        header = TableHeader(
            hardware=hardware,
            model=planning.table_name(request, source),
            clock=backend.clock,
            conditions=backend.conditions(),
            kinds=backend.kinds,
            **planning.model_record(source),
        )
        run = TableRun(
            laid_out.points,
            planning.run_record(request, backend.facts()),
            request.sweep.grid,
            append=request.append,
            overwrite=request.overwrite,
        )
        with TableWriter(paths, header, run, EXPORTERS["csv"]) as writer:
            measure_what_is_left(request, backend, laid_out, writer)
    finally:
        backend.close()
    return laid_out


def measure_what_is_left(request: Request, backend: Backend, laid_out: Plan, writer: TableWriter) -> None:
    """Run the measuring loop over the points that are not in the table yet, then write the table."""
    table, grid = writer.table, GRIDS[request.sweep.grid]
    for text in table.notices:
        summary.notice(text)
    left, most = grid.left(laid_out.left(()), table.records)
    summary.notice(summary.resuming_text(left, most))
    rule = StoppingRule(request.repeat, request.precision)
    runs_before, told, started = len(table.meta["runs"]), len(backend.notices), time.monotonic()
    with summary.progress(left, request.verbose) as tell:
        measure(backend, laid_out, writer, rule, request.warmup, request.seed, tell, grid)
    seconds = time.monotonic() - started
    for text in backend.notices[told:]:
        summary.notice(text)
    if len(table.meta["runs"]) > runs_before:  # something was learned
        table.meta["runs"][-1].update(backend.facts(), seconds=round(seconds, 3))
        summary.notice(summary.measured_text(table))
    table.meta["block_rows"] = dict(backend.block_rows)
    writer.finish()


def scale(request: Request, table: LatencyTable, csv: Path) -> int:
    """Hold the table against the real model, unless that was done with the same options. Returns the exit code.

    Where points that were to be validated turned out missing, that is said instead.
    """
    if request.scaling is None:
        return EXIT_COMPLETE
    try:
        check_pairs(request.scaling.pairs, table.records, table.missing)
    except UsageError as error:
        summary.notice(f"not held against the real model: {error}")
        return EXIT_POINTS_MISSING
    code = known_exit_code(table, csv, request.scaling)
    if code is None:
        return validate_table(table, csv, request.scaling, request.device, request.hf_token, request.trust_remote_code)
    summary.notice("held against the real model before, with the same options; validation.py does it again")
    return code


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = OneLineParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit codes: 0 every point asked for is in the table; 2 usage or environment; 3 points missing, be it "
        "that memory or the model's positions end; 4 held-out error above the tolerance; 130 interrupted.",
    )
    add = parser.add_argument_group("model").add_argument
    add("--model", required=True, help="a Hub id, a local folder, or a name of the built-in table (tiny-llama)")
    add("--num-layers", type=int, default=1, metavar="N", help="decoder blocks of each kind (default %(default)s)")
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
        help="auto: torch's choice of all but cuDNN, so flash where it can run",
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
    add(
        "--allow-slow-path",
        action="store_true",
        help="measure layers that run slow Python for want of a kernel package; they are marked",
    )
    add("--trust-remote-code", action="store_true", help="run code that the model's repository brings")
    add("--hf-token", metavar="TOKEN", help="access token of the Hugging Face Hub (default: HF_TOKEN)")
    add("--seed", type=int, default=0, help="of random weights, inputs and the order of points (default %(default)s)")

    add = parser.add_argument_group("sweep").add_argument
    add("--mode", choices=MODES, default="both", help="phases to sweep (default both)")
    add("--prefill-max", type=int, default=2048, metavar="N", help="longest prompt in tokens (default %(default)s)")
    add("--decode-max", type=int, default=2048, metavar="N", help="longest KV cache in tokens (default %(default)s)")
    add("--prefill-step", type=int, default=1, metavar="N", help="between prompt lengths (default %(default)s)")
    add("--decode-step", type=int, default=1, metavar="N", help="between cache lengths (default %(default)s)")
    add(
        "--grid",
        choices=GRID_NAMES,
        default="full",
        help="full: measure every length; adaptive: 15 percent of them, interpolate the others (default full)",
    )
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
        help="stop a point when its mean is known to this (default %(default)s; 0: exactly --repeat passes)",
    )

    add = parser.add_argument_group("files").add_argument
    add("--hardware", metavar="NAME", help="folder and column of the table (default: the device's short name)")
    add("--model-name", metavar="NAME", help="name of the table (default: the model's id)")
    add(
        "--output-dir",
        type=named_path,
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
    values = vars(arguments)
    named: dict[str, Any] = {name: values[name] for name in Request.__dataclass_fields__ if name in values}
    named["sweep"] = Sweep(**{name: values[name] for name in Sweep.__dataclass_fields__})
    named["precision"] = arguments.precision / 100
    named["scaling"] = None if arguments.skip_scaling else parse_scaling(arguments)
    named["hf_token"] = arguments.hf_token or os.environ.get("HF_TOKEN") or None
    return Request(**named)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        with versions.suspected():
            return _run(build_parser().parse_args(argv))
    except UsageError as error:
        for text in (f"run_profile.py: {error}", *getattr(error, "__notes__", ())):
            summary.notice(text)
        return EXIT_USAGE
    except KeyboardInterrupt:
        summary.notice("run_profile.py: interrupted; the same command goes on from here")
        return EXIT_INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    request = parse_request(arguments)
    versions.refuse_older()
    summary.notice(versions.warning())
    if arguments.plan:
        summary.tell(planning.plan_lines(request))
        return EXIT_COMPLETE
    return run_profile(request).exit_code


if __name__ == "__main__":
    interrupt.run(main)
