"""Sub-commands of run_profile.py, beside the documented `python3 run_profile.py --model ...`. Imports no torch.

A sub-command is a module with `build_parser()` and `run(arguments)`, which returns the exit code, and a line of
SUBCOMMANDS.
"""

import importlib
from collections.abc import Sequence

SUBCOMMANDS: dict[str, str] = {
    "compare": "llm_profile.cli.compare_command",
    "doctor": "llm_profile.doctor.command",
    "export": "llm_profile.cli.export_command",
    "predict": "llm_profile.cli.predict_command",
    "report": "llm_profile.cli.report",
}
"""First word of the command line -> module."""


def run_subcommand(words: Sequence[str]) -> int:
    """Run the sub-command that `words` begins with; returns its exit code. Raises UsageError."""
    module = importlib.import_module(SUBCOMMANDS[words[0]])
    code: int = module.run(module.build_parser().parse_args(words[1:]))
    return code
