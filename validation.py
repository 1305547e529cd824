#!/usr/bin/env python3
"""Compare a latency table with the real model, and write a scaled table that adds what kernel times leave out.

A table has kernel times. The real model takes longer: launches, gaps between kernels, Python. This command runs the
real model, step by step, at the lengths that (input, output) pairs need. It fits a scaling at some of these lengths,
judges it at others, prints the errors, and writes a scaled table beside the measured one.

    python3 validation.py --csv H200/meta-llama/Llama-3.1-8B.csv --scaling-runtime cuda-graph

--scaling-runtime says how the real model runs: `eager` is `generate` of transformers; `cuda-graph` is the same steps
captured in CUDA graphs, as serving engines run decode steps. --scaling-mode says how the table is scaled: `global`, by
one factor; `phase`, by one factor each for prefill and decode; `curve`, by what each step costs beyond its kernels. The
report has the held-out errors of all three. `curve` is the default: in eager mode one factor for both phases triples
the TTFT of long prompts, and simulators add `rope` and `attn` once per request but the other rows once per step, so
that only with `curve` the overhead of a step is counted once per step.
"""

from llm_profile import installed, interrupt

if __name__ == "__main__":
    interrupt.end_quietly()  # the imports below take a while
    installed.end_without_packages("validation.py")

import argparse
import shlex
import sys
from collections.abc import Sequence

from llm_profile import versions
from llm_profile.cli.command import exit_code_of
from llm_profile.cli.ending import Ending, tell_document, tell_ending
from llm_profile.cli.messages import OUTPUT_OPTIONS, Verbosity, hide_bars_of_downloads, notice
from llm_profile.cli.parsing import SWITCH, OneLineParser, Options, add_options, named_path, token_of
from llm_profile.cli.progress import Stages
from llm_profile.cli.scaling_options import add_scaling_arguments, parse_scaling
from llm_profile.cli.table_validation import tell_pairs, validate_and_write
from llm_profile.cli.validation_device import validation_device
from llm_profile.store.files import read_table
from llm_profile.store.table import refuse_predicted
from llm_profile.validation.scaled_table import refuse_scaled
from llm_profile.validation.scripting import apply_scaling_to_latency_csv, compute_average_scaling_factor

__all__ = ["apply_scaling_to_latency_csv", "compute_average_scaling_factor"]

OWN_OPTIONS: Options = {
    "--csv": {"type": named_path, "required": True, "help": "the measured table"},
    "--device": {"help": "cuda, cuda:N or cpu (default: the kind of device that the table was measured on)"},
    "--allow-predicted": {**SWITCH, "help": "validate a predicted table, too"},
    "--trust-remote-code": {**SWITCH, "help": "run code of the model's repository"},
    "--hf-token": {"metavar": "TOKEN", "help": "access token of the Hugging Face Hub (default: HF_TOKEN)"},
}


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = OneLineParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit codes: 0 done; 2 usage or environment; 4 held-out error above the tolerance, or too much noise.",
    )
    add_options(parser.add_argument, {**OWN_OPTIONS, **OUTPUT_OPTIONS}, {})
    add_scaling_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    return exit_code_of("validation.py", lambda: _run(words), interrupted="nothing was written", json="--json" in words)


def _run(words: Sequence[str]) -> int:
    arguments = build_parser().parse_args(words)
    wanted = parse_scaling(arguments)
    verbosity = Verbosity.of(arguments)
    if verbosity.quiet:
        hide_bars_of_downloads()
    versions.refuse_older()
    notice(versions.warning())
    table = read_table(arguments.csv)
    for text in table.notices:
        notice(text)
    refuse_scaled(table)
    refuse_predicted(table, arguments.allow_predicted)
    device = validation_device(arguments.device, table.meta["clock"], wanted.runtime)
    options = (device, token_of(arguments), arguments.trust_remote_code)
    stages = Stages(("validation",), verbosity.quiet)
    validated = validate_and_write(table, arguments.csv, wanted, *options, stages=stages)
    tell_pairs(validated, verbosity)
    ending = Ending(
        measured=(f"{table.model} on {table.hardware}: {len(table.records)} points in {arguments.csv}",),
        outcome=validated.outcome,
        files=validated.files,
        advice=f"a page with every pair: python3 run_profile.py report {shlex.quote(str(arguments.csv))}",
    )
    tell_ending(ending, verbosity)
    tell_document(ending, validated.outcome.exit_code, {"hardware": table.hardware, "model": table.model}, verbosity)
    return validated.outcome.exit_code


if __name__ == "__main__":
    interrupt.run(main)
