#!/usr/bin/env python3
"""Hold a latency table against the real model, and correct it for what kernels alone do not show.

A table has kernel times. The real model takes longer: launches, gaps between kernels, Python. This command runs the
real model, step by step, at the lengths that (input, output) pairs need, fits a scaling on some of these lengths,
judges it on others, prints the error, and writes a scaled table beside the measured one.

    python3 validation.py --csv H200/meta-llama/Llama-3.1-8B.csv --scaling-runtime cuda-graph

Two realities (--scaling-runtime): `eager` is `generate` as Hugging Face runs it; `cuda-graph` is the same steps
captured in CUDA graphs, which is what serving engines come close to. Three ways of scaling (--scaling-mode): `global`,
one average; `phase`, one factor each for prefill and decode; `curve`, what each step costs beyond its kernels. The
report has the held-out errors of all three. `curve` is the default: in eager mode one factor for both phases triples
the TTFT of long prompts, and only the curve keeps what a step costs once off `rope` and `attn`, which simulators add
once per request.
"""

from llm_profile import interrupt
from llm_profile.json_text import parse_json

if __name__ == "__main__":
    interrupt.end_quietly()  # the imports below take a while

import argparse
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_profile import request, versions
from llm_profile.cli import summary
from llm_profile.cli.scaling_options import (
    OneLineParser,
    add_scaling_arguments,
    named_path,
    parse_scaling,
    validation_device,
)
from llm_profile.errors import EXIT_COMPLETE, EXIT_INTERRUPTED, EXIT_OVER_TOLERANCE, EXIT_USAGE, UsageError
from llm_profile.store.files import is_as_written, read_table
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Pair, SweepPoint
from llm_profile.validation.estimate import Estimate, check_pairs, whole_pairs
from llm_profile.validation.report import ValidationReport
from llm_profile.validation.report_text import print_report
from llm_profile.validation.scaled_table import refuse_scaled, scaled_table, scaling_paths, write_scaled
from llm_profile.validation.scaling import Scaling, average_factor
from llm_profile.validation.steps import MeasuredSteps, Reality
from llm_profile.validation.validate import measure_fitted, run_validation, validate

__all__ = [
    "OneLineParser",
    "add_scaling_arguments",
    "apply_scaling_to_latency_csv",
    "compute_average_scaling_factor",
    "known_exit_code",
    "measure_fitted",
    "parse_scaling",
    "run_validation",
    "validate",
    "validate_table",
]


def compute_average_scaling_factor(
    table: LatencyTable,
    measured: MeasuredSteps | Mapping[SweepPoint, Sequence[float]],
    pairs: Sequence[Pair],
    depth: int | None = None,
) -> float:
    """The documented one average: the mean over `pairs` of measured / estimated total latency.

    measured: wall times of real steps in nanoseconds, per repeat: prefill at (n, 0), decode at (1, k). Decode steps
    that were not timed are interpolated. pairs: (input length, output length) in tokens. depth: blocks that the real
    model had (its first so many), None for all. Raises UsageError where the table or the steps do not cover a pair, and
    for values that are no positive numbers.
    """
    pairs = whole_pairs(pairs)
    check_pairs(pairs, table.records, table.missing)
    steps = measured if isinstance(measured, MeasuredSteps) else MeasuredSteps.of(measured)
    return average_factor(Estimate.of(table, depth), steps, pairs)


def apply_scaling_to_latency_csv(
    csv_path: str | Path,
    scaling_factor: float | Scaling,
    output_path: str | Path | None = None,
    add_new_column: bool = False,
    *,
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write a scaled copy of the table at `csv_path`, with its metadata and rows file, and return the new CSV's path.

    scaling_factor: one factor for every row, or a Scaling fitted on this table. output_path: default
    `<model>-scaled.csv` beside the measured table. add_new_column: leave `latency(ns)` as measured in the new CSV and
    add a `scaled_latency(ns)` column. details: kept in the metadata's `scaling` (runtime, errors).

    The measured table is never touched. Raises UsageError for a table that is scaled already, for an output that would
    replace a measured one, for factors outside 1e-6 to 1e6, and for latencies that no table can hold.
    """
    source, target = scaling_paths(csv_path, output_path)
    table = read_table(source.csv)
    scaled = scaled_table(table, scaling_factor, {"source": source.csv.name, **(details or {})})
    write_scaled(scaled, table if add_new_column else None, target)
    return target.csv


def scaling_details(report: ValidationReport) -> dict[str, Any]:
    """What a scaled table's metadata says about the validation that it comes from."""
    errors = report.as_json()["scalings"][report.mode]["held_out_errors"]
    return {"runtime": report.runtime, "held_out_errors": errors, "judged_at_num_layers": report.depth}


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = OneLineParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit codes: 0 done; 2 usage or environment; 4 held-out error above the tolerance.",
    )
    parser.add_argument("--csv", type=named_path, required=True, help="the measured table")
    parser.add_argument("--device", help="cuda, cuda:N or cpu (default: what the table was measured on)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the model's repository brings")
    parser.add_argument("--hf-token", help="access token of the Hugging Face hub (default: HF_TOKEN)")
    add_scaling_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        with versions.suspected():
            return _run(build_parser().parse_args(argv))
    except UsageError as error:
        for text in (f"validation.py: {error}", *getattr(error, "__notes__", ())):
            summary.notice(text)
        return EXIT_USAGE
    except KeyboardInterrupt:
        summary.notice("validation.py: interrupted; nothing was written")
        return EXIT_INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    wanted = parse_scaling(arguments)
    versions.refuse_older()
    summary.notice(versions.warning())
    table = read_table(arguments.csv)
    for text in table.notices:
        summary.notice(text)
    refuse_scaled(table)
    device = validation_device(arguments.device, table.meta["clock"], wanted.runtime)
    token = arguments.hf_token or os.environ.get("HF_TOKEN") or None
    return validate_table(table, arguments.csv, wanted, device, token, arguments.trust_remote_code)


def known_exit_code(table: LatencyTable, csv_path: Path, wanted: request.Scaling) -> int | None:
    """What `validate_table` returned for this very table and these options before; None where it is to be done."""
    try:
        told = parse_json(report_path(csv_path, wanted.output).read_bytes())
        options, runs = told["provenance"]["request"], told["provenance"]["runs"]
        over_tolerance = told["over_tolerance"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    scaled = scaling_paths(csv_path, wanted.output)[1]
    if (options, runs) != (wanted.as_json(), table.meta["runs"]) or not scaled.csv.exists():
        return None
    if not is_as_written(scaled):
        summary.notice(f"{scaled.csv} is damaged: its checksum is not that of {scaled.meta.name}; it is made anew")
        return None
    return EXIT_OVER_TOLERANCE if over_tolerance else EXIT_COMPLETE


def report_path(csv_path: Path, output: Path | None) -> Path:
    """Where a validation is told to programs: `<model>.validation.json`, or beside a scaled table of another name."""
    beside = output or csv_path
    return beside.with_name(f"{beside.stem}.validation.json")


def validate_table(
    table: LatencyTable,
    csv_path: Path,
    wanted: request.Scaling,
    device: str,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Hold the table at `csv_path` against the real model, write the scaled one and the JSON, print the report.

    Returns the exit code: 0, or 4 for a held-out error above the tolerance. Raises UsageError for what the user can
    mend, where possible before a model is loaded.
    """
    from rich.console import Console

    refuse_scaled(table)
    scaling_paths(csv_path, wanted.output)

    def open_at(depth: int) -> Reality:
        from llm_profile.validation.reality import open_reality  # imports torch

        return open_reality(wanted.runtime, table, depth, device, token, trust_remote_code)

    report = run_validation(
        table,
        open_at,
        wanted.pairs,
        depth=wanted.num_layers,
        other_depths=wanted.other_depths,
        repeat=wanted.repeat,
        mode=wanted.mode,
        tolerance=wanted.tolerance,
        provenance={
            "table": csv_path.name,
            "validated": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": wanted.as_json(),
            "conditions": table.meta["conditions"],
            "runs": table.meta["runs"],
        },
    )
    details = scaling_details(report)
    scaled_path = apply_scaling_to_latency_csv(
        csv_path, report.scaling, wanted.output, wanted.add_new_column, details=details
    )
    json_path = report_path(csv_path, wanted.output)
    report.write(json_path)  # last: it says that all is done
    console = Console()
    print_report(report, console)
    files = f"Scaled table: {scaled_path}\nAll pairs and steps: {json_path}"
    console.print(files, highlight=False, soft_wrap=True, markup=False)
    return report.exit_code


if __name__ == "__main__":
    interrupt.run(main)
