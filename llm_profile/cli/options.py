"""The options of run_profile.py, and the request that they make. Imports no torch.

Defaults are those of the fields of Request and Sweep that have the option's name.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from llm_profile.cli.parsing import (
    COUNT,
    SWITCH,
    OneLineParser,
    Options,
    add_options,
    field_defaults,
    named_path,
    token_of,
)
from llm_profile.cli.scaling_options import add_scaling_arguments, parse_scaling
from llm_profile.models.hub import LOAD_FORMATS
from llm_profile.request import DTYPES, ROUTINGS, SDPA_BACKENDS, Request
from llm_profile.sweep import GRID_NAMES, MODES, Sweep

EXIT_CODES = (
    "Exit codes: 0 every point asked for is in the table; 2 usage or environment; 3 points missing, be it "
    "that memory or the model's positions end; 4 held-out error above the tolerance; 130 interrupted."
)

GROUPS: Mapping[str, Options] = {
    "model": {
        "--model": {"required": True, "help": "a Hub id, a local folder, or a name of the built-in table (tiny-llama)"},
        "--num-layers": {**COUNT, "help": "decoder blocks of each kind (default %(default)s)"},
        "--dtype": {"choices": DTYPES, "help": "auto: the configuration's own (default)"},
        "--attn-implementation": {
            "metavar": "NAME",
            "help": "as in transformers: sdpa, eager, ... (default %(default)s)",
        },
        "--sdpa-backend": {
            "choices": SDPA_BACKENDS,
            "help": "auto: torch's choice of all but cuDNN, so flash where it can run",
        },
        "--experts-implementation": {"metavar": "NAME", "help": "as in transformers: grouped_mm, eager, ..."},
        "--routing": {"choices": ROUTINGS, "help": "who chooses experts with random weights (default %(default)s)"},
        "--load-format": {"choices": LOAD_FORMATS, "help": "hf: real weights; dummy: random; auto: real if there"},
        "--revision": {"metavar": "REV", "help": "branch, tag or commit on the Hub"},
        "--allow-pickle": {**SWITCH, "help": "read a .bin checkpoint (unpickling may run code)"},
        "--allow-slow-path": {
            **SWITCH,
            "help": "measure layers that run slow Python for want of a kernel package; they are marked",
        },
        "--trust-remote-code": {**SWITCH, "help": "run code that the model's repository brings"},
        "--hf-token": {"metavar": "TOKEN", "help": "access token of the Hugging Face Hub (default: HF_TOKEN)"},
        "--seed": {"type": int, "help": "of random weights, inputs and the order of points (default %(default)s)"},
    },
    "sweep": {
        "--mode": {"choices": MODES, "help": "phases to sweep (default %(default)s)"},
        "--prefill-max": {**COUNT, "help": "longest prompt in tokens (default %(default)s)"},
        "--decode-max": {**COUNT, "help": "longest KV cache in tokens (default %(default)s)"},
        "--prefill-step": {**COUNT, "help": "between prompt lengths (default %(default)s)"},
        "--decode-step": {**COUNT, "help": "between cache lengths (default %(default)s)"},
        "--grid": {
            "choices": GRID_NAMES,
            "help": "full: measure every length; adaptive: 15 percent of them, interpolate the others (default "
            "%(default)s)",
        },
        "--plan": {**SWITCH, "help": "say what would be measured, how long it takes and what it needs, and stop"},
    },
    "measuring": {
        "--device": {"help": "cuda, cuda:N or cpu; fake: made-up times for trying the tool (default %(default)s)"},
        "--warmup": {**COUNT, "help": "most passes before those that count (default %(default)s)"},
        "--repeat": {**COUNT, "help": "most passes that count, a point (default %(default)s)"},
        "--precision": {
            "type": float,
            "metavar": "PERCENT",
            "help": "stop a point when its mean is known to this (default %(default)s; 0: exactly --repeat passes)",
        },
    },
    "files": {
        "--hardware": {"metavar": "NAME", "help": "folder and column of the table (default: the device's short name)"},
        "--model-name": {"metavar": "NAME", "help": "name of the table (default: the model's id)"},
        "--output-dir": {
            "type": named_path,
            "metavar": "DIR",
            "help": "where <hardware>/<model>.csv goes (default %(default)s)",
        },
        "--append": {**SWITCH, "help": "add other lengths to a table measured under the same conditions"},
        "--overwrite": {**SWITCH, "help": "start the table anew (the old one is kept as .bak)"},
        "--verbose": {**SWITCH, "help": "say more: conditions, rows, and progress where there is no terminal"},
    },
}

AFTER_SWEEP: Options = {
    "--skip-scaling": {**SWITCH, "help": "do not hold the table against the real model"},
    "--no-report": {**SWITCH, "help": "do not write <model>.report.html, a page with plots of the table"},
}
"""What is left out after a sweep."""


def profile_parser(description: str) -> argparse.ArgumentParser:
    """The parser of run_profile.py."""
    parser = OneLineParser(description=description, epilog=EXIT_CODES)
    defaults = {**field_defaults(Request), **field_defaults(Sweep), "precision": 100 * Request.precision}
    for title, options in GROUPS.items():
        add_options(parser.add_argument_group(title).add_argument, options, defaults)
    add_scaling_arguments(parser)
    add_options(parser.add_argument, AFTER_SWEEP, {})
    return parser


def parse_request(arguments: argparse.Namespace) -> Request:
    """A checked request. Raises UsageError."""
    values = vars(arguments)
    named: dict[str, Any] = {name: values[name] for name in Request.__dataclass_fields__ if name in values}
    named["sweep"] = Sweep(**{name: values[name] for name in Sweep.__dataclass_fields__})
    named["precision"] = arguments.precision / 100
    named["scaling"] = None if arguments.skip_scaling else parse_scaling(arguments)
    named["report"] = not arguments.no_report
    named["hf_token"] = token_of(arguments)
    return Request(**named)
