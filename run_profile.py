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
from llm_profile.points import SweepPoint, record_of
from llm_profile.store.files import read_table

if __name__ == "__main__":
    interrupt.end_quietly()  # the imports below take a while

import argparse
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_profile import versions
from llm_profile.cli import planning, summary
from llm_profile.cli.command import exit_code_of
from llm_profile.cli.options import parse_request, profile_parser
from llm_profile.cli.report import report_after_sweep
from llm_profile.cli.subcommands import SUBCOMMANDS, run_subcommand
from llm_profile.cli.table_validation import known_exit_code, validate_and_write
from llm_profile.errors import EXIT_COMPLETE, EXIT_POINTS_MISSING, UsageError
from llm_profile.exporters import EXPORTERS
from llm_profile.measurement import StoppingRule
from llm_profile.models.hub import ModelSource
from llm_profile.request import Request
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable
from llm_profile.store.writer import TableHeader, TableRun, TableWriter
from llm_profile.sweep import Plan, plan
from llm_profile.timing.backends import open_backend, release_memory
from llm_profile.timing.backends.base import Backend
from llm_profile.timing.grid import GRIDS
from llm_profile.timing.loop import measure
from llm_profile.validation.estimate import check_pairs


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
    code = max(code, scale(request, table, paths.csv))
    if request.report:
        report_after_sweep(paths.csv)
    return Result(paths.csv, missing, code)


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
        again = measure(backend, laid_out, writer, rule, request.warmup, request.seed, tell, grid)
    seconds = time.monotonic() - started
    for text in backend.notices[told:]:
        summary.notice(text)
    if len(table.meta["runs"]) > runs_before:  # something was learned
        measured_again = [record_of(point) for point in again]
        table.meta["runs"][-1].update(backend.facts(), seconds=round(seconds, 3), measured_again=measured_again)
        summary.notice(summary.measured_text(table))
    table.meta["block_rows"] = dict(backend.block_rows)
    writer.finish()


def scale(request: Request, table: LatencyTable, csv: Path) -> int:
    """Hold the table against the real model, unless that was done with the same options. Returns the exit code.

    Where points that were to be validated turned out missing, that is said instead.
    """
    wanted = request.scaling
    if wanted is None:
        return EXIT_COMPLETE
    try:
        check_pairs(wanted.pairs, table.records, table.missing)
    except UsageError as error:
        summary.notice(f"not held against the real model: {error}")
        return EXIT_POINTS_MISSING
    code = known_exit_code(table, csv, wanted)
    if code is None:
        release_memory(request.device)
        return validate_and_write(table, csv, wanted, request.device, request.hf_token, request.trust_remote_code)
    summary.notice("held against the real model before, with the same options; validation.py does it again")
    return code


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    return profile_parser((__doc__ or "").split("\n\n")[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    return exit_code_of("run_profile.py", lambda: _run(words), interrupted="the same command goes on from here")


def _run(words: Sequence[str]) -> int:
    if words and words[0] in SUBCOMMANDS:
        return run_subcommand(words)
    arguments = build_parser().parse_args(words)
    request = parse_request(arguments)
    versions.refuse_older()
    summary.notice(versions.warning())
    if arguments.plan:
        summary.tell(planning.plan_lines(request))
        return EXIT_COMPLETE
    return run_profile(request).exit_code


if __name__ == "__main__":
    interrupt.run(main)
