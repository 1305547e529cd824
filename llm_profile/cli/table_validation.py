"""The validation of a table on disk: whether it was done before, and the files that it writes.

Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_profile.cli.messages import Verbosity, notice, told_by_console
from llm_profile.cli.planning import check_writable
from llm_profile.cli.progress import QUIET, Stages
from llm_profile.cli.validation_time_left import parts_of
from llm_profile.errors import UsageError
from llm_profile.json_text import parse_json
from llm_profile.kernels import check_compilers, refuse_eager
from llm_profile.request import ScalingRequest
from llm_profile.store.files import is_as_written
from llm_profile.store.table import LatencyTable
from llm_profile.validation.estimate import check_pairs
from llm_profile.validation.host_table import write_host_table
from llm_profile.validation.outcome import ValidationOutcome
from llm_profile.validation.processes import PROCESSES, ProcessReality
from llm_profile.validation.profiled import Profiled
from llm_profile.validation.real_steps import Reality
from llm_profile.validation.report import ValidationReport
from llm_profile.validation.report_text import print_report
from llm_profile.validation.scaled_table import refuse_scaled, scaling_paths
from llm_profile.validation.scripting import apply_scaling_to_latency_csv
from llm_profile.validation.validate import validate_over_depths


@dataclass(frozen=True)
class Validated:
    """A validation that was made. files: by their names in Ending. report: None of an earlier run's."""

    outcome: ValidationOutcome
    files: Mapping[str, Path]
    report: ValidationReport | None = None


def known_validation(table: LatencyTable, csv_path: Path, wanted: ScalingRequest) -> Validated | None:
    """An earlier validation of this table with these options; None if there is none to rely on."""
    try:
        earlier = parse_json(report_path(csv_path, wanted.output).read_bytes())
        options, runs = earlier["provenance"]["request"], earlier["provenance"]["runs"]
        outcome = ValidationOutcome.of(earlier)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    scaled = scaling_paths(csv_path, wanted.output)[1]
    if (options, runs) != (wanted.as_json(), table.meta["runs"]) or not scaled.csv.exists():
        return None
    if not is_as_written(scaled):
        notice(f"{scaled.csv} is damaged: its checksum is not that in {scaled.meta.name}; the table is validated again")
        return None
    return Validated(outcome, validation_files(csv_path, wanted))


def validation_files(csv_path: Path, wanted: ScalingRequest) -> dict[str, Path]:
    """The files that a validation writes."""
    source, scaled = scaling_paths(csv_path, wanted.output)
    return {
        "scaled_csv": scaled.csv,
        "scaled_rows": scaled.rows,
        "scaled_meta": scaled.meta,
        "host_csv": source.host,
        "validation": report_path(csv_path, wanted.output),
    }


def report_path(csv_path: Path, output: Path | None) -> Path:
    """Path of the report for programs: `<model>.validation.json`, or named after the scaled table of `output`."""
    named_after = output or csv_path
    return named_after.with_name(f"{named_after.stem}.validation.json")


def scaling_details(report: ValidationReport) -> dict[str, Any]:
    """What the metadata of a scaled table says about the validation that its factors come from."""
    errors = report.as_json()["scalings"][report.mode]["held_out_errors"]
    return {
        "runtime": report.runtime,
        "held_out_errors": errors,
        "judged_at_num_layers": report.depth,
        "processes": report.processes,
        "spread_between_processes": dict(report.spread_between),
        "noisy": bool(report.noisy),
    }


def validate_and_write(
    table: LatencyTable,
    csv_path: Path,
    wanted: ScalingRequest,
    device: str,
    token: str | None = None,
    trust_remote_code: bool = False,
    stages: Stages = QUIET,
) -> Validated:
    """Compare the table at `csv_path` with the real model, and write the scaled table and the report.

    stages: shows how far the real model has come. Raises UsageError for what the user can correct, if possible before
    a model is loaded: folders that take no files, too.
    """
    refuse_scaled(table)
    if (degree := table.conditions["tp"]) > 1:
        raise UsageError(
            f"{csv_path}: rows of one of {degree} tensor parallel ranks; a shard cannot be validated against the whole "
            "model on one GPU"
        )
    refuse_eager(table.conditions["kernels"], wanted.runtime)
    check_compilers(table.conditions["kernels"], device)
    for path in validation_files(csv_path, wanted).values():
        check_writable(path)
    check_pairs(wanted.pairs, table.records, table.missing)
    with stages.validation(parts_of(table, wanted)) as tick:

        def open_at(depth: int) -> Reality:
            return ProcessReality(
                *(wanted.runtime, Profiled.of(table), depth, device, token, trust_remote_code),
                processes=wanted.processes or PROCESSES[wanted.runtime],
                tell=lambda text: None if stages.quiet else notice(text),
                tick=tick,
            )

        report = validate_over_depths(
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
    return write_validation(table, csv_path, wanted, report)


def write_validation(
    table: LatencyTable, csv_path: Path, wanted: ScalingRequest, report: ValidationReport
) -> Validated:
    """Write the scaled table, what each step takes beside its kernels, and the report."""
    apply_scaling_to_latency_csv(
        csv_path, report.scaling, wanted.output, wanted.add_new_column, details=scaling_details(report)
    )
    write_host_table(table, csv_path, report)
    files = validation_files(csv_path, wanted)
    report.write(files["validation"])  # last, since a later run takes the validation as done if it finds the report
    return Validated(ValidationOutcome.of(report.as_json()), files, report)


def tell_pairs(validated: Validated, verbosity: Verbosity) -> None:
    """What --verbose prints of a validation: every pair, every scaling, composed steps."""
    if verbosity.verbose and validated.report is not None:
        with told_by_console(to_stderr=verbosity.json) as console:
            print_report(validated.report, console)
