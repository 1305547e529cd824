"""The options of the validation, which both commands have, and how they become a `ScalingRequest`. Imports no torch.

The default of an option is that of the field of its name in ScalingRequest.
"""

import argparse

from llm_profile.cli.parsing import COUNT, SWITCH, Options, add_options, field_defaults, named_path
from llm_profile.errors import UsageError
from llm_profile.request import ScalingRequest
from llm_profile.sweep import Pair
from llm_profile.validation.processes import PROCESSES
from llm_profile.validation.scaling import SCALING_MODES

RUNTIMES = ("eager", "cuda-graph")
"""How the real model runs: `generate` of transformers, or its steps captured in CUDA graphs."""

MOST_PAIRS = 100_000
"""Most (input, output) pairs of a validation. Ranges that make more are taken for typing errors."""

INPUT_LENS = {"min": 128, "max": 1024, "step": 128}
"""Default grid of input lengths, in tokens. The default of each bound of the output lengths is that of the inputs."""

OPTIONS: Options = {
    "--scaling-runtime": {"choices": RUNTIMES, "help": "how the real model runs (default %(default)s)"},
    "--scaling-mode": {
        "choices": tuple(SCALING_MODES),
        "help": "how the table is scaled (default %(default)s)",
    },
    "--scaling-num-layers": {**COUNT, "help": "blocks of the real model (default: all of them)"},
    "--scaling-other-depths": {
        **COUNT,
        "nargs": "+",
        "help": "further depths to time: if --scaling-num-layers is below the model's own depth, the overhead at full "
        "depth is extrapolated from all depths (default: half of it); otherwise two of them show how well that works",
    },
    "--scaling-input-min": {**COUNT, "help": "shortest input of the pairs, in tokens (default %(default)s)"},
    "--scaling-input-max": {**COUNT, "help": "longest input of the pairs, in tokens (default %(default)s)"},
    "--scaling-input-step": {**COUNT, "help": "distance between input lengths, in tokens (default %(default)s)"},
    "--scaling-output-min": {**COUNT, "help": "shortest output of the pairs (default as --scaling-input-min)"},
    "--scaling-output-max": {**COUNT, "help": "longest output of the pairs (default as --scaling-input-max)"},
    "--scaling-output-step": {**COUNT, "help": "distance between output lengths (default as --scaling-input-step)"},
    "--scaling-repeat": {**COUNT, "help": "how often each step is timed in each process (default %(default)s)"},
    "--scaling-processes": {
        **COUNT,
        "help": "fresh processes that time the real model (default "
        + ", ".join(f"{number} for {runtime}" for runtime, number in PROCESSES.items())
        + ")",
    },
    "--scaling-tolerance": {
        "type": float,
        "metavar": "PERCENT",
        "help": "the exit code is 4 if a mean held-out error is above this and above the spreads of the real model "
        "(default %(default)s)",
    },
    "--scaling-output": {
        "type": named_path,
        "metavar": "CSV",
        "help": "the scaled table (default: <model>-scaled.csv beside it)",
    },
    "--scaling-add-new-col": {**SWITCH, "help": "keep latency(ns) as measured and add a column scaled_latency(ns)"},
}


def add_scaling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the validation to a parser."""
    group = parser.add_argument_group("scaling", "how the table is compared with the real model, and scaled")
    defaults = {f"scaling_{name}": default for name, default in field_defaults(ScalingRequest).items()}
    defaults |= {f"scaling_input_{bound}": tokens for bound, tokens in INPUT_LENS.items()}
    defaults["scaling_tolerance"] = 100 * ScalingRequest.tolerance
    add_options(group.add_argument, OPTIONS, defaults)


def scaling_pairs(arguments: argparse.Namespace) -> list[Pair]:
    """The (input, output) pairs of parsed options. Raises UsageError for a bad range, repeat or tolerance."""
    grids: dict[str, range] = {}
    for what in ("input", "output"):
        values: dict[str, int] = {}
        for bound in ("min", "max", "step"):
            own = getattr(arguments, f"scaling_{what}_{bound}")
            option = f"--scaling-{'input' if own is None else what}-{bound}"
            values[bound] = getattr(arguments, f"scaling_input_{bound}") if own is None else own
            if values[bound] < 1:
                raise UsageError(f"{option} {values[bound]}: must be a whole number of at least 1")
        if values["min"] > values["max"]:
            raise UsageError(f"--scaling-{what}-min {values['min']}: is above --scaling-{what}-max {values['max']}")
        grids[what] = range(values["min"], values["max"] + 1, values["step"])
    count = len(grids["input"]) * len(grids["output"])
    if count > MOST_PAIRS:
        raise UsageError(
            f"--scaling-input-max: the lengths make {count} pairs, and at most {MOST_PAIRS} are allowed; raise "
            "--scaling-input-step and --scaling-output-step"
        )
    if arguments.scaling_repeat < 1:
        raise UsageError(f"--scaling-repeat {arguments.scaling_repeat}: must be a whole number of at least 1")
    if not arguments.scaling_tolerance >= 0:
        raise UsageError(f"--scaling-tolerance {arguments.scaling_tolerance}: must be a percentage of at least 0")
    return [(input_len, output_len) for input_len in grids["input"] for output_len in grids["output"]]


def parse_scaling(arguments: argparse.Namespace) -> ScalingRequest:
    """The validation that parsed options ask for. Raises UsageError for values that are not allowed."""
    return ScalingRequest(
        pairs=tuple(scaling_pairs(arguments)),
        num_layers=arguments.scaling_num_layers,
        other_depths=tuple(arguments.scaling_other_depths) if arguments.scaling_other_depths else None,
        repeat=arguments.scaling_repeat,
        processes=arguments.scaling_processes,
        runtime=arguments.scaling_runtime,
        mode=arguments.scaling_mode,
        tolerance=arguments.scaling_tolerance / 100,
        output=arguments.scaling_output,
        add_new_column=arguments.scaling_add_new_col,
    )
