"""`run_profile.py doctor`: is this machine fit for the run, before a minute is spent. Imports no torch."""

import argparse
from collections.abc import Mapping
from typing import Any

from llm_profile.cli.messages import tell, tell_json
from llm_profile.cli.options import GROUPS, add_run_options, parse_requests
from llm_profile.cli.parsing import OneLineParser, Options
from llm_profile.doctor.checks import CHECKS, findings
from llm_profile.doctor.finding import Finding, Intended, Level
from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, one_line
from llm_profile.store.storage import without_tokens

DOCTOR_DESCRIPTION = (
    "Check this machine for a run, whose options are given as for the run itself: GPU, driver, clocks, memory, "
    "profilers, host, model, files. Each line is OK, a warning or an error, with what to do. Exit codes: 0 no error; "
    "2 an error."
)

DOCTOR_SCHEMA = 1
"""Version of the document."""


def build_parser() -> argparse.ArgumentParser:
    """All options of a run, of which none is required. --quiet and --json have their meaning here, too."""
    parser = OneLineParser(prog="run_profile.py doctor", description=DOCTOR_DESCRIPTION)
    add_run_options(parser, {title: _not_required(options) for title, options in GROUPS.items()})
    return parser


def _not_required(options: Options) -> dict[str, Mapping[str, Any]]:
    return {
        option: {name: value for name, value in details.items() if name != "required"}
        for option, details in options.items()
    }


def run(arguments: argparse.Namespace) -> int:
    """Check the machine and print what was found; returns the exit code. Raises UsageError for options as the run."""
    arguments.model = arguments.model or ""
    arguments.skip_scaling = arguments.skip_scaling or arguments.device == "fake"
    intended = Intended(parse_requests(arguments)[0])
    found: list[tuple[str, Finding]] = []
    for name, finding in findings(intended, CHECKS):
        found.append((name, finding))
        if not arguments.json and (finding.level is not Level.OK or not arguments.quiet):
            tell([without_tokens(f"{finding.level:8}{name}: {one_line(finding.text, 1000)}")])
    counts = {level: sum(finding.level == level for _name, finding in found) for level in Level}
    code = EXIT_USAGE if counts[Level.ERROR] else EXIT_COMPLETE
    if arguments.json:
        tell_json({"exit_code": code, **_document(found, counts)})
    elif not arguments.quiet:
        tell([f"{counts[Level.ERROR]} error(s), {counts[Level.WARNING]} warning(s)"])
    return code


def _document(found: list[tuple[str, Finding]], counts: Mapping[Level, int]) -> dict[str, Any]:
    return {
        "schema": DOCTOR_SCHEMA,
        "checks": [{"name": name, "level": finding.level.value, "text": finding.text} for name, finding in found],
        "errors": counts[Level.ERROR],
        "warnings": counts[Level.WARNING],
    }
