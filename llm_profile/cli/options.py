"""The options of run_profile.py, and how they become a `Request`. Imports no torch.

The default of an option is that of the field of its name in Request or Sweep.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from llm_profile.cli.messages import OUTPUT_OPTIONS
from llm_profile.cli.parsing import (
    COUNT,
    SWITCH,
    OneLineParser,
    Options,
    add_options,
    degrees,
    field_defaults,
    named_path,
    names,
    sweep_of,
    token_of,
)
from llm_profile.cli.scaling_options import add_scaling_arguments, parse_scaling
from llm_profile.compositions import AXES
from llm_profile.errors import UsageError
from llm_profile.kernels import KERNEL_CHOICES
from llm_profile.models.hub import LOAD_FORMATS
from llm_profile.request import DTYPES, ROUTINGS, SDPA_BACKENDS, TIMERS, Request
from llm_profile.sweep import GRID_NAMES, MODES, Sweep

EXIT_CODES = (
    "Exit codes: 0 every point asked for is in the table; 2 usage or environment; 3 points are missing (out of memory, "
    "or beyond the model's positions); 4 held-out error above the tolerance; 130 interrupted."
)

GROUPS: Mapping[str, Options] = {
    "model": {
        "--model": {
            "required": True,
            "action": "append",
            "help": "a Hub id, a local folder, or a name of the built-in table (tiny-llama); may be given again",
        },
        "--num-layers": {**COUNT, "help": "decoder blocks to profile, of each kind (default %(default)s)"},
        "--dtype": {"choices": DTYPES, "help": "of weights; auto: that of the model's configuration (default)"},
        "--attn-implementation": {
            "metavar": "NAME",
            "help": "as in transformers: sdpa, eager, ... (default %(default)s)",
        },
        "--sdpa-backend": {
            "choices": SDPA_BACKENDS,
            "help": "backend of scaled dot product attention; auto: torch's choice among all but cuDNN, so flash where "
            "it can run (default); torch: torch's own choice",
        },
        "--experts-implementation": {"metavar": "NAME", "help": "as in transformers: grouped_mm, eager, ..."},
        "--routing": {
            "choices": ROUTINGS,
            "help": "how experts are chosen when weights are random (default %(default)s)",
        },
        "--kernels": {
            "choices": KERNEL_CHOICES,
            "help": "model: those of the model's code (default); fused: norms, rotary function and gate products are "
            "compiled, and attention copies no heads, which is closer to serving engines",
        },
        "--load-format": {
            "choices": LOAD_FORMATS,
            "help": "hf: real weights; dummy: random weights; auto: real ones if they can be used, else random ones "
            "(default)",
        },
        "--revision": {"metavar": "REV", "help": "branch, tag or commit on the Hub"},
        "--allow-pickle": {**SWITCH, "help": "read a .bin checkpoint (unpickling may run code)"},
        "--allow-slow-path": {
            **SWITCH,
            "help": "measure layers that run slow Python because a kernel package is missing; their rows are named",
        },
        "--trust-remote-code": {**SWITCH, "help": "run code of the model's repository"},
        "--hf-token": {"metavar": "TOKEN", "help": "access token of the Hugging Face Hub (default: HF_TOKEN)"},
        "--tp": {
            "type": degrees,
            "metavar": "N[,N...]",
            "help": "tensor parallel degrees: of each above 1, one rank's shard gets a table <model>-tpN.csv "
            "(default %(default)s)",
        },
        "--seed": {
            "type": int,
            "help": "seed of random weights and inputs, and of the order of points (default %(default)s)",
        },
    },
    "sweep": {
        "--mode": {"choices": MODES, "help": "phases to sweep (default %(default)s)"},
        "--prefill-max": {**COUNT, "help": "longest prompt in tokens (default %(default)s)"},
        "--decode-max": {**COUNT, "help": "longest KV cache in tokens (default %(default)s)"},
        "--prefill-step": {**COUNT, "help": "distance between prompt lengths, in tokens (default %(default)s)"},
        "--decode-step": {**COUNT, "help": "distance between cache lengths, in tokens (default %(default)s)"},
        "--grid": {
            "choices": GRID_NAMES,
            "help": "full: measure every length; adaptive: measure at most 15 percent of them and interpolate the "
            "others (default %(default)s)",
        },
        "--axes": {
            "type": names,
            "metavar": "AXIS[,AXIS...]",
            "help": f"measure compositions of several sequences too, packed as serving engines run them: "
            f"{', '.join(AXES)} (default: none)",
        },
        "--plan": {
            **SWITCH,
            "help": "print what would be measured, how much memory it needs and how long it takes, then stop",
        },
    },
    "measuring": {
        "--device": {"help": "cuda, cuda:N or cpu; fake: made-up times for trying the tool (default %(default)s)"},
        "--warmup": {**COUNT, "help": "most uncounted passes at a point before those that count (default %(default)s)"},
        "--repeat": {**COUNT, "help": "most passes at a point that count (default %(default)s)"},
        "--precision": {
            "type": float,
            "metavar": "PERCENT",
            "help": "a point ends when the standard error of its mean pass is at most this (default %(default)s; 0: "
            "after exactly --repeat passes)",
        },
        "--timer": {
            "choices": TIMERS,
            "help": "what records GPU kernels: cupti (its records, read directly), torch-profiler, or auto: "
            "cupti where it can be read (default)",
        },
    },
    "files": {
        "--hardware": {"metavar": "NAME", "help": "folder and column of the table (default: the device's short name)"},
        "--model-name": {"metavar": "NAME", "help": "name of the table (default: the model's id)"},
        "--output-dir": {
            "type": named_path,
            "metavar": "DIR",
            "help": "where <hardware>/<model>.csv is written (default %(default)s)",
        },
        "--append": {**SWITCH, "help": "add lengths to a table that was measured under the same conditions"},
        "--overwrite": {**SWITCH, "help": "measure the table again from the start (the old one is kept as .bak)"},
    },
    "output": OUTPUT_OPTIONS,
}

AFTER_SWEEP: Options = {
    "--skip-scaling": {**SWITCH, "help": "do not compare the table with the real model"},
    "--no-report": {**SWITCH, "help": "do not write <model>.report.html, a page with plots of the table"},
}
"""Options for what a run leaves out after the sweep."""


def profile_parser(description: str) -> argparse.ArgumentParser:
    """The parser of run_profile.py."""
    parser = OneLineParser(description=description, epilog=EXIT_CODES)
    add_run_options(parser, GROUPS)
    return parser


def add_run_options(parser: argparse.ArgumentParser, groups: Mapping[str, Options]) -> None:
    """Add all options of a run to a parser. groups: GROUPS, or those with other arguments."""
    defaults = {**field_defaults(Request), **field_defaults(Sweep), "precision": 100 * Request.precision}
    for title, options in groups.items():
        add_options(parser.add_argument_group(title).add_argument, options, defaults)
    add_scaling_arguments(parser)
    add_options(parser.add_argument, AFTER_SWEEP, {})


def parse_requests(arguments: argparse.Namespace) -> list[Request]:
    """The request of a parsed command line for each `--model` and each degree of `--tp`, in order.

    Raises UsageError for values that are not allowed.
    """
    models = list(dict.fromkeys(arguments.model)) if isinstance(arguments.model, list) else [arguments.model]
    if len(models) > 1 and arguments.model_name is not None:
        raise UsageError(f"--model-name {arguments.model_name}: names the table of one model; give --model once")
    several = arguments.tp if isinstance(arguments.tp, tuple) else (arguments.tp,)
    return [
        parse_request(argparse.Namespace(**{**vars(arguments), "model": model, "tp": degree}))
        for model in models
        for degree in several
    ]


def parse_request(arguments: argparse.Namespace) -> Request:
    """The request of a parsed command line with one model and one degree of `--tp`. Raises as `parse_requests`."""
    values = vars(arguments)
    named: dict[str, Any] = {name: values[name] for name in Request.__dataclass_fields__ if name in values}
    named["sweep"] = sweep_of(arguments)
    named["precision"] = arguments.precision / 100
    scaling = parse_scaling(arguments)  # values that are not allowed are refused in any case
    named["scaling"] = None if arguments.skip_scaling else scaling
    named["report"] = not arguments.no_report
    named["hf_token"] = token_of(arguments)
    return Request(**named)
