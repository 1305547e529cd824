"""`run_profile.py report`: a table as an HTML page, and its main plots as pictures. Imports no torch."""

import argparse
from pathlib import Path

from llm_profile.cli.messages import notice, tell
from llm_profile.cli.parsing import OneLineParser, Options, add_options, check_page_name, named_path
from llm_profile.errors import EXIT_COMPLETE, UsageError
from llm_profile.report.page import write_report
from llm_profile.report.pictures import write_pictures

REPORT_DESCRIPTION = (
    "Write a report of a table: one HTML file with its latencies by layer, its errors against the real model, "
    "rooflines, kernels, clocks and conditions. It needs no network."
)

REPORT_OPTIONS: Options = {
    "--output": {"type": named_path, "metavar": "FILE", "help": "path of the page (default: <model>.report.html)"},
    "--png": {
        "type": named_path,
        "metavar": "DIR",
        "help": "write the main plots there too, as PNGs (needs matplotlib)",
    },
}


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = OneLineParser(prog="run_profile.py report", description=REPORT_DESCRIPTION)
    parser.add_argument("csv", type=Path, metavar="TABLE.csv", help="a table of LLM-Profile")
    add_options(parser.add_argument, REPORT_OPTIONS, {})
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the report. Raises UsageError, in a line that says which, for what is no table or damaged."""
    if arguments.output is not None:
        check_page_name("--output", arguments.output)
    written = [write_report(arguments.csv, arguments.output)]
    if arguments.png is not None:
        written += write_pictures(arguments.csv, arguments.png)
    tell(f"report: {path}" for path in written)
    return EXIT_COMPLETE


def report_after_sweep(csv: Path) -> Path | None:
    """Write the report of a table that was just measured; what keeps it from that is told and ends nothing.

    Returns its path, None if it was not written.
    """
    try:
        return write_report(csv)
    except UsageError as error:
        notice(f"no report: {error}")
        return None
