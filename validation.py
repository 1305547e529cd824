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

if __name__ == "__main__":
    interrupt.end_quietly()  # the imports below take a while

import argparse
from collections.abc import Sequence

from llm_profile import versions
from llm_profile.cli import summary
from llm_profile.cli.command import exit_code_of
from llm_profile.cli.parsing import SWITCH, OneLineParser, Options, add_options, named_path, token_of
from llm_profile.cli.scaling_options import add_scaling_arguments, parse_scaling
from llm_profile.cli.table_validation import validate_and_write
from llm_profile.cli.validation_device import validation_device
from llm_profile.store.table import LatencyTable
from llm_profile.validation.scaled_table import refuse_scaled
from llm_profile.validation.scripting import apply_scaling_to_latency_csv, compute_average_scaling_factor

__all__ = ["apply_scaling_to_latency_csv", "compute_average_scaling_factor"]

OWN_OPTIONS: Options = {
    "--csv": {"type": named_path, "required": True, "help": "the measured table"},
    "--device": {"help": "cuda, cuda:N or cpu (default: what the table was measured on)"},
    "--trust-remote-code": {**SWITCH, "help": "run code that the model's repository brings"},
    "--hf-token": {"help": "access token of the Hugging Face hub (default: HF_TOKEN)"},
}


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = OneLineParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit codes: 0 done; 2 usage or environment; 4 held-out error above the tolerance, or too much noise.",
    )
    add_options(parser.add_argument, OWN_OPTIONS, {})
    add_scaling_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return exit_code_of("validation.py", lambda: _run(argv), interrupted="nothing was written")


def _run(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    wanted = parse_scaling(arguments)
    versions.refuse_older()
    summary.notice(versions.warning())
    table = LatencyTable.read(arguments.csv)
    for text in table.notices:
        summary.notice(text)
    refuse_scaled(table)
    device = validation_device(arguments.device, table.meta["clock"], wanted.runtime)
    return validate_and_write(table, arguments.csv, wanted, device, token_of(arguments), arguments.trust_remote_code)


if __name__ == "__main__":
    interrupt.run(main)
