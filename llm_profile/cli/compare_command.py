"""`run_profile.py compare`: two tables side by side, with a verdict for every row. Imports no torch."""

import argparse
import math
from pathlib import Path

from llm_profile.cli.messages import notice, tell_json, told_by_console
from llm_profile.cli.parsing import SWITCH, OneLineParser, Options, add_options, check_page_name, named_path
from llm_profile.comparison.compare import compare
from llm_profile.comparison.document import as_document
from llm_profile.comparison.page import write_page
from llm_profile.comparison.text import WIDTH, print_comparison, printable
from llm_profile.comparison.wording import refusal_text, slower_text
from llm_profile.errors import EXIT_COMPLETE, EXIT_SLOWER, UsageError

COMPARE_DESCRIPTION = (
    "Compare two tables, of two GPUs, models, data types or versions: per row and phase the ratio B/A with its "
    "confidence interval, and whether B is faster, slower or the same. Exit codes: 0 compared; 2 usage, no tables, "
    "or none that --fail-above can judge; 5 something is decidedly slower by more than --fail-above."
)


def percentage(text: str) -> float:
    """`5%` or `5` as a ratio. Raises ArgumentTypeError for what is no percentage of at least 0."""
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage of at least 0, such as 5%")
    return share


PERCENTAGE = {"type": percentage, "metavar": "PERCENT"}

COMPARE_OPTIONS: Options = {
    "--tolerance": {**PERCENTAGE, "help": "times that differ by at most this are the same (default: 2%%)"},
    "--fail-above": {
        **PERCENTAGE,
        "help": "exit with 5 where a row, or the sum of a phase, is decidedly slower in B by more than this",
    },
    "--allow-predicted": {**SWITCH, "help": "compare predicted tables, too"},
    "--json": {**SWITCH, "help": "print one JSON document instead of tables"},
    "--html": {"type": named_path, "metavar": "FILE", "help": "write the comparison as a page, too"},
}


def build_parser() -> argparse.ArgumentParser:
    """The options of the sub-command."""
    parser = OneLineParser(prog="run_profile.py compare", description=COMPARE_DESCRIPTION)
    parser.add_argument("a", type=Path, metavar="A.csv", help="a table of LLM-Profile, what B is compared with")
    parser.add_argument("b", type=Path, metavar="B.csv", help="another table")
    add_options(parser.add_argument, COMPARE_OPTIONS, {"tolerance": 0.02})
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Compare two tables; returns the exit code. Raises UsageError as `compare` does.

    Raises it also for tables that --fail-above cannot judge, before anything is printed or written.
    """
    if arguments.html is not None:
        check_page_name("--html", arguments.html)
    comparison = compare(arguments.a, arguments.b, arguments.tolerance, arguments.allow_predicted)
    if arguments.fail_above is not None and comparison.incomparable:
        raise UsageError(refusal_text(comparison.incomparable))
    slower = {} if arguments.fail_above is None else comparison.slower_by(arguments.fail_above)
    code = EXIT_SLOWER if slower else EXIT_COMPLETE
    if arguments.html is not None:
        write_page(comparison, arguments.html)
        notice(f"page: {arguments.html}")
    if arguments.json:
        tell_json({"exit_code": code, **as_document(comparison, arguments.fail_above)})
    else:
        with told_by_console(columns=WIDTH) as console:
            print_comparison(comparison, console)
    if slower:
        notice(printable(slower_text(slower, arguments.fail_above)))
    return code
