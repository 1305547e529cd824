"""The options of validation, which two commands share. No torch."""

import argparse
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.request import CLOCKS, DEVICE, Scaling
from llm_profile.sweep import Pair
from llm_profile.validation.scaling import DEFAULT_MODE, MODES

RUNTIMES = ("eager", "cuda-graph")
"""How the real model runs: `generate`, or its steps captured in CUDA graphs."""

MOST_PAIRS = 100_000
"""(input, output) pairs of a validation: lengths that make more are typing errors."""


class OneLineParser(argparse.ArgumentParser):
    """Complaints are UsageErrors, without the usage text around them."""

    def error(self, message: str) -> Any:
        """Raises UsageError."""
        raise UsageError(f"{message}; see --help")


def named_path(text: str) -> Path:
    """A path of the command line; an empty one would be the current folder. Raises ArgumentTypeError for that."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; leave the option out, or give one")
    return Path(text)


def add_scaling_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say how a table is held against the real model; run_profile.py has the same."""
    group = parser.add_argument_group("scaling", "how the table is held against the real model, and corrected")
    add = group.add_argument
    add("--scaling-runtime", choices=RUNTIMES, default="eager", help="how the real model runs (default %(default)s)")
    add("--scaling-mode", choices=tuple(MODES), default=DEFAULT_MODE, help="the scaling to apply (default %(default)s)")
    add("--scaling-num-layers", type=int, metavar="N", help="blocks of the real model (default: all of them)")
    add(
        "--scaling-other-depths",
        type=int,
        nargs="+",
        metavar="N",
        help="depths to time as well: below the model's own depth they are extrapolated from (default: half of it), at "
        "its own depth two of them show how well that works",
    )
    for what, defaults in (("input", (128, 1024, 128)), ("output", (None, None, None))):
        for bound, default in zip(("min", "max", "step"), defaults, strict=True):
            shown = default or f"as --scaling-input-{bound}"
            add(f"--scaling-{what}-{bound}", type=int, metavar="N", default=default, help=f"tokens (default {shown})")
    add("--scaling-repeat", type=int, metavar="N", default=3, help="timings of each step (default %(default)s)")
    add(
        "--scaling-processes",
        type=int,
        metavar="N",
        help="fresh processes that each time the real model (default 3 for eager, 1 for cuda-graph)",
    )
    add(
        "--scaling-tolerance",
        type=float,
        metavar="PERCENT",
        default=5.0,
        help="held-out mean error that is accepted; above it, and above the run-to-run spread, the exit code is 4 "
        "(default %(default)s)",
    )
    add(
        "--scaling-output",
        type=named_path,
        metavar="CSV",
        help="the scaled table (default: <model>-scaled.csv beside it)",
    )
    add("--scaling-add-new-col", action="store_true", help="keep latency(ns) and add a scaled_latency(ns) column")


def scaling_pairs(arguments: argparse.Namespace) -> list[Pair]:
    """The (input, output) pairs that parsed options ask for. Raises UsageError for a bad range, repeat or tolerance."""
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
        raise UsageError(f"--scaling-input-max: {count} pairs, where {MOST_PAIRS} are the most; raise the steps")
    if arguments.scaling_repeat < 1:
        raise UsageError(f"--scaling-repeat {arguments.scaling_repeat}: must be a whole number of at least 1")
    if not arguments.scaling_tolerance >= 0:
        raise UsageError(f"--scaling-tolerance {arguments.scaling_tolerance}: must be a percentage of at least 0")
    return [(input_len, output_len) for input_len in grids["input"] for output_len in grids["output"]]


def parse_scaling(arguments: argparse.Namespace) -> Scaling:
    """What parsed options ask for. Raises UsageError."""
    return Scaling(
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


def validation_device(asked: str | None, clock: str, runtime: str) -> str:
    """Where the real model runs: the device that was asked for, else one of the kind that the table was measured on.

    clock: the table's. Raises UsageError for a table and a device that cannot be held against each other.
    """
    kinds = {clock: kind for kind, clock in CLOCKS.items() if kind != "fake"}
    if asked is not None and (asked == "fake" or not DEVICE.fullmatch(asked)):
        raise UsageError(f"--device {asked}: use cuda, cuda:N or cpu")
    if clock not in kinds:
        raise UsageError(
            f"--csv: its clock is {clock}, so there is no real model to hold it against; use a table that was measured "
            f"with --device cuda or cpu ({' or '.join(kinds)})"
        )
    device = asked or kinds[clock]
    kind = device.partition(":")[0]
    if CLOCKS[kind] != clock:
        raise UsageError(
            f"--device {device}: the table was measured under other conditions: clock is {clock} there and "
            f"{CLOCKS[kind]} now; use --device {kinds[clock]}, or measure a table on {device}"
        )
    if runtime == "cuda-graph" and kind == "cpu":
        raise UsageError("--scaling-runtime cuda-graph: a CPU has no CUDA graphs; use --scaling-runtime eager")
    return device
