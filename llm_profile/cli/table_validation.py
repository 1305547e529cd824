"""The validation of a table on disk: whether it was done before, and the files that it writes.

Imports no torch.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_profile.cli import summary
from llm_profile.errors import EXIT_COMPLETE, EXIT_OVER_TOLERANCE
from llm_profile.json_text import parse_json
from llm_profile.request import ScalingRequest
from llm_profile.store.files import is_as_written
from llm_profile.store.table import LatencyTable
from llm_profile.validation.host_table import write_host_table
from llm_profile.validation.processes import PROCESSES, ProcessReality
from llm_profile.validation.profiled import Profiled
from llm_profile.validation.real_steps import Reality
from llm_profile.validation.report import ValidationReport
from llm_profile.validation.report_text import noisy_text, print_report
from llm_profile.validation.scaled_table import refuse_scaled, scaling_paths
from llm_profile.validation.scripting import apply_scaling_to_latency_csv
from llm_profile.validation.validate import validate_over_depths


def known_exit_code(table: LatencyTable, csv_path: Path, wanted: ScalingRequest) -> int | None:
    """The exit code of an earlier validation of this table with these options; None if there is none to rely on."""
    try:
        earlier = parse_json(report_path(csv_path, wanted.output).read_bytes())
        options, runs = earlier["provenance"]["request"], earlier["provenance"]["runs"]
        failed = earlier["over_tolerance"] or earlier["noisy"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    scaled = scaling_paths(csv_path, wanted.output)[1]
    if (options, runs) != (wanted.as_json(), table.meta["runs"]) or not scaled.csv.exists():
        return None
    if not is_as_written(scaled):
        summary.notice(
            f"{scaled.csv} is damaged: its checksum is not that in {scaled.meta.name}; the table is validated again"
        )
        return None
    return EXIT_OVER_TOLERANCE if failed else EXIT_COMPLETE


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
) -> int:
    """Compare the table at `csv_path` with the real model, write the scaled table and the report, print the report.

    Returns the exit code: 0, or 4 for a held-out error above the tolerance and for a machine too noisy to judge.
    Raises UsageError for what the user can correct, if possible before a model is loaded.
    """
    from rich.console import Console

    refuse_scaled(table)
    scaling_paths(csv_path, wanted.output)

    def open_at(depth: int) -> Reality:
        return ProcessReality(
            *(wanted.runtime, Profiled.of(table), depth, device, token, trust_remote_code),
            processes=wanted.processes or PROCESSES[wanted.runtime],
            tell=summary.notice,
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
    details = scaling_details(report)
    scaled_path = apply_scaling_to_latency_csv(
        csv_path, report.scaling, wanted.output, wanted.add_new_column, details=details
    )
    host_path = write_host_table(table, csv_path, report)
    json_path = report_path(csv_path, wanted.output)
    report.write(json_path)  # last, since a later run takes the validation as done if it finds the report
    console = Console()
    print_report(report, console)
    files = f"Scaled table: {scaled_path}\nHost time of each step: {host_path}\nAll pairs and steps: {json_path}"
    console.print(files, highlight=False, soft_wrap=True, markup=False)
    if report.noisy:  # as the last line, so that it is not overlooked
        console.print(
            noisy_text(report.noisy, report.noise_limit), style="red", highlight=False, soft_wrap=True, markup=False
        )
    return report.exit_code
