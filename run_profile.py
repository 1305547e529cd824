#!/usr/bin/env python3
"""Measure the latency of every layer of a Hugging Face causal LM, at every prefill and decode length, on this GPU.

The model is loaded with one or a few of its decoder blocks, which are alike, and with real or random weights. At each
length, passes are replayed and their kernels recorded. Every nanosecond of GPU time (of kernels, copies and memsets)
belongs to the layer that launched it; the time of the host is not measured. `<hardware>/<model>.csv` has the trimmed
mean over passes of each layer, for one block, in nanoseconds. Then the sum of the table is compared with the real model
at full depth, and a second, scaled table adds what kernel times leave out: launches, gaps between kernels, Python.

    python3 run_profile.py --model meta-llama/Llama-3.1-8B             the full sweep, lengths 1 to 2,048
    python3 run_profile.py --model Qwen/Qwen3-8B --prefill-step 8 --decode-step 8
    python3 run_profile.py --model ./my-model --load-format dummy --skip-scaling
    python3 run_profile.py --model facebook/opt-125m --plan            what would be measured, without measuring
    torchrun --nproc-per-node 2 run_profile.py --model Qwen/Qwen3-8B   two GPUs share the lengths

An interrupted run is resumed by the same command.
"""

from llm_profile import installed, interrupt

if __name__ == "__main__":
    interrupt.end_quietly()  # the imports below take a while
    installed.end_without_packages("run_profile.py")

import argparse
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_profile import versions
from llm_profile.cli import planning, summary
from llm_profile.cli.command import exit_code_of
from llm_profile.cli.ending import Ending, Swept, sweep_ending, sweep_figures, tell_document, tell_ending
from llm_profile.cli.messages import Verbosity, hide_bars_of_downloads, notice, tell, tell_json
from llm_profile.cli.options import parse_requests, profile_parser
from llm_profile.cli.progress import Stages
from llm_profile.cli.subcommands import SUBCOMMANDS, run_subcommand
from llm_profile.cli.table_validation import Validated, known_validation, tell_pairs, validate_and_write
from llm_profile.cli.together import help_rank_0, team_of
from llm_profile.errors import EXIT_COMPLETE, EXIT_POINTS_MISSING, UsageError
from llm_profile.exporters import EXPORTERS
from llm_profile.measurement import StoppingRule
from llm_profile.models.hub import ModelSource
from llm_profile.points import SweepPoint, record_of
from llm_profile.request import Request
from llm_profile.store.files import read_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable
from llm_profile.store.writer import TableHeader, TableRun, TableWriter
from llm_profile.sweep import Plan, plan
from llm_profile.timing.backends import open_backend, release_memory
from llm_profile.timing.backends.base import Backend
from llm_profile.timing.grid import GRIDS
from llm_profile.timing.loop import measure
from llm_profile.timing.ranks.team import Team
from llm_profile.timing.ranks.torchrun import Rank
from llm_profile.validation.estimate import check_pairs


@dataclass(frozen=True)
class Result:
    """The result of a run. csv: path of the table. missing: points that are not in it, each with the reason.

    exit_code: 0 complete, 3 points missing, 4 validation over its tolerance or too noisy.
    """

    csv: Path
    missing: dict[SweepPoint, str]
    exit_code: int


def run_profile(request: Request, team: Team | None = None) -> Result:
    """Profile a model as `request` says: check, load, measure, validate, report. team: ranks that share the points.

    An interrupted or killed run is resumed by the same request. Raises UsageError for what the user can correct, if
    possible before torch or a model is loaded.
    """
    verbosity = Verbosity.of(request)
    stages = Stages(("load", "sweep") if request.scaling is None else Stages.names, verbosity.quiet)
    source = planning.find_source(request)
    request = planning.within_positions(request, source)
    hardware = planning.hardware_name(request) if team is None else team.hardware
    paths = planning.table_paths(request, source, hardware)
    known = planning.check(request, source, paths)
    source = with_weights(request, source)
    notice(source.notice)
    swept = measure_table(request, source, paths, hardware, known, stages, team)
    table = read_table(paths.csv)
    ending = sweep_ending(table, paths, swept)
    missing = summary.missing_points(table.missing, swept.laid_out)
    code = EXIT_POINTS_MISSING if missing else EXIT_COMPLETE
    try:
        validated, of_validation = validate(request, table, paths.csv, stages)
    except (UsageError, KeyboardInterrupt):
        tell_ending(ending, verbosity)  # the table is there
        raise
    code = max(code, of_validation)
    if verbosity.verbose:
        verbosity.summarise(summary.rows_text(table))
    if validated is not None:
        tell_pairs(validated, verbosity)
        ending = replace(ending, outcome=validated.outcome, files={**ending.files, **validated.files})
    ending = with_page(request, ending)
    tell_ending(ending, verbosity)
    tell_document(ending, code, sweep_figures(table, swept, missing), verbosity)
    return Result(paths.csv, missing, code)


def run_together(requests: Sequence[Request]) -> int:
    """Profile what the requests say, on the GPUs of all ranks if torchrun started this; returns as `run_in_turn`."""
    rank = Rank.of_environment()
    if rank is None:
        return run_in_turn(requests)
    with team_of(rank, requests, open_requested) as team:
        return run_in_turn(requests, team)


def open_requested(request: Request) -> Backend:
    """The backend of a request, on a rank. Raises UsageError as `run_profile`."""
    source = planning.find_source(request)
    return open_backend(planning.within_positions(request, source), with_weights(request, source))


def run_in_turn(requests: Sequence[Request], team: Team | None = None) -> int:
    """Profile each model at each tensor parallel degree; returns the largest exit code. Raises as `run_profile`.

    Models that are not found and degrees that do not divide them are refused before the first is measured.
    """
    if len(requests) > 1:
        for request in requests:
            planning.check_degree(request, planning.find_source(request, weights=False))
    codes = []
    for request in requests:
        codes.append(run_profile(request, team).exit_code)
        release_memory(request.device)
    return max(codes)


def with_page(request: Request, ending: Ending) -> Ending:
    """Write the page of the table, if it is wanted and can be written, and name it among the files."""
    if not request.report:
        return ending
    from llm_profile.cli.report import report_after_sweep  # imports all of the report

    page = report_after_sweep(ending.files["csv"])
    return ending if page is None else replace(ending, files={**ending.files, "report": page})


def with_weights(request: Request, source: ModelSource) -> ModelSource:
    """`source` with the real weights of the kept blocks fetched, if it has any.

    With `--load-format auto`, a source of random weights is returned if the real ones cannot be fetched or used.
    """
    if source.weights_file is None:
        return source
    from llm_profile.passes.loading import fetch_weights  # imports torch

    return fetch_weights(request, source)


def measure_table(
    request: Request,
    source: ModelSource,
    paths: TablePaths,
    hardware: str,
    known: Collection[SweepPoint],
    stages: Stages,
    team: Team | None = None,
) -> Swept:
    """Measure the points of the request that the table at `paths` lacks, and write its files.

    known: points that are in the table already. Raises UsageError, before anything is measured, if points that the
    validation needs cannot run on this model.
    """
    verbosity = Verbosity.of(request)
    with stages.load():
        backend = open_backend(request, source) if team is None else team.open(request)
    try:
        laid_out = plan(request.sweep, backend.learned_positions, backend.most_cached)
        planning.check_validation(request, laid_out, known)
        for text in (*backend.notices, planning.beyond_training(source.config, laid_out)):
            notice(text)
        if verbosity.verbose:
            verbosity.inform(summary.conditions_text(backend.conditions()))
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
            return measure_what_is_left(request, backend, laid_out, writer, stages)
    finally:
        backend.close()


def measure_what_is_left(
    request: Request, backend: Backend, laid_out: Plan, writer: TableWriter, stages: Stages
) -> Swept:
    """Measure the points that are not in the table yet, then write the table."""
    table, grid, verbosity = writer.table, GRIDS[request.sweep.grid], Verbosity.of(request)
    for text in table.notices:
        notice(text)
    left, most = grid.left(laid_out.left(()), table.records)
    verbosity.inform(summary.resuming_text(left, most))
    asked = grid.next_points(laid_out.left(()), table.records, ())
    rule = StoppingRule(request.repeat, request.precision)
    runs_before, notices_before, started = len(table.meta["runs"]), len(backend.notices), time.monotonic()
    with stages.sweep(asked, left) as tell_progress:
        again = measure(backend, laid_out, writer, rule, request.warmup, request.seed, tell_progress, grid)
    seconds = round(time.monotonic() - started, 3)
    for text in backend.notices[notices_before:]:
        notice(text)
    swept = Swept(laid_out)
    if len(table.meta["runs"]) > runs_before:  # this run added a result
        measured_again = [record_of(point) for point in again]
        table.meta["runs"][-1].update(backend.facts(), seconds=seconds, measured_again=measured_again)
        swept = Swept(laid_out, table.measured_by(table.meta["runs"][-1]["index"]), seconds)
        verbosity.inform(summary.measured_text(swept.measured, seconds))
    table.meta["block_rows"] = dict(backend.block_rows)
    writer.finish()
    return swept


def validate(request: Request, table: LatencyTable, csv: Path, stages: Stages) -> tuple[Validated | None, int]:
    """Compare the table with the real model, unless that was done with the same options. Returns also the exit code.

    If the table lacks points that the validation needs, a notice says so, and the exit code is 3.
    """
    wanted = request.scaling
    if wanted is None:
        return None, EXIT_COMPLETE
    try:
        check_pairs(wanted.pairs, table.records, table.missing)
    except UsageError as error:
        notice(f"not validated against the real model: {error}")
        return None, EXIT_POINTS_MISSING
    validated = known_validation(table, csv, wanted)
    if validated is None:
        release_memory(request.device)
        options = (request.device, request.hf_token, request.trust_remote_code)
        validated = validate_and_write(table, csv, wanted, *options, stages=stages)
    else:
        Verbosity.of(request).inform(
            "validated against the real model before, with the same options; use validation.py to validate it again"
        )
    return validated, validated.outcome.exit_code


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    return profile_parser((__doc__ or "").split("\n\n")[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if (rank := Rank.of_environment()) is not None and rank.number > 0:
        return help_rank_0(rank, lambda: requests_of_run(words), open_requested)
    resumes = "the same command resumes from here"
    return exit_code_of("run_profile.py", lambda: _run(words), interrupted=resumes, json="--json" in words)


def _run(words: Sequence[str]) -> int:
    if words and words[0] in SUBCOMMANDS:
        return run_subcommand(words)
    arguments = build_parser().parse_args(words)
    requests = parse_requests(arguments)
    if arguments.json and len(requests) > 1 and not arguments.plan:
        raise UsageError("--json: prints one document, of one table; give --tp one degree, and one --model")
    if arguments.quiet:
        hide_bars_of_downloads()
    versions.refuse_older()
    notice(versions.warning())
    if arguments.plan:
        lines = [line for request in requests for line in planning.plan_lines(request)]
        if arguments.json:
            tell_json({"exit_code": EXIT_COMPLETE, "plan": lines})
        else:
            tell(lines)
        return EXIT_COMPLETE
    return run_together(requests)


def requests_of_run(words: Sequence[str]) -> list[Request]:
    """What a command line asks to measure: nothing if it is that of a sub-command or a plan."""
    if words and words[0] in SUBCOMMANDS:
        return []
    arguments = build_parser().parse_args(words)
    return [] if arguments.plan else parse_requests(arguments)


if __name__ == "__main__":
    interrupt.run(main)
