"""What a user asked for: every option of run_profile.py as one checked, typed value. Imports no torch."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.sweep import SERIES, Pair, Sweep

DEVICE = re.compile(r"cpu|cuda(:(0|[1-9]\d?))?|fake")

CLOCKS = {"cuda": "gpu-kernel", "cpu": "cpu-wall", "fake": "fake"}
"""Kind of device -> `clock` of the tables that are measured on it: what their nanoseconds are."""

LONGEST = 100_000_000
"""Most tokens of a length: no model takes a tenth of it."""

MOST_POINTS = 1_000_000
"""Most points of a sweep: they take hours, at 100 a second. Lengths that make more are typing errors."""

LARGEST_SEED = 2**63 - 1
"""torch takes seeds of 64 bits, signed."""

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
DTYPES = ("auto", *DTYPE_BYTES)
SDPA_BACKENDS = ("auto", "torch", "flash", "cudnn", "efficient", "math")
CPU_SDPA_BACKENDS = ("auto", "torch", "flash", "math")
"""Those that torch has on a CPU."""
ROUTINGS = ("balanced", "random", "model")
"""Who chooses the experts of a token: all experts alike, chance, or the router with its (random) weights."""


@dataclass(frozen=True)
class ScalingRequest:
    """How the estimate is held against the real model: the options of validation.py.

    pairs: (input, output) lengths in tokens. num_layers: depth of the real model, None for its own. other_depths: timed
    beside it, None for half of a depth that is not the model's own. repeat: timings of each step in each process.
    processes: fresh processes that time the real model, None for the runtime's own number. runtime: how the real model
    runs. mode: the scaling to apply; only `curve` keeps both TTFT and TPOT right, with rows that add up to real
    steps in a simulator. tolerance: largest held-out error, as a ratio. output: path of the scaled table, None for
    `<model>-scaled.csv`. add_new_column: keep `latency(ns)` as measured and add a column.
    """

    pairs: tuple[Pair, ...]
    num_layers: int | None = None
    other_depths: tuple[int, ...] | None = None
    repeat: int = 3
    processes: int | None = None
    runtime: str = "eager"
    mode: str = "curve"
    tolerance: float = 0.05
    output: Path | None = None
    add_new_column: bool = False

    def __post_init__(self) -> None:
        depths = [("--scaling-other-depths", depth) for depth in self.other_depths or ()]
        for option, value in (
            ("--scaling-num-layers", self.num_layers),
            ("--scaling-repeat", self.repeat),
            ("--scaling-processes", self.processes),
            *depths,
        ):
            if value is not None and value < 1:
                raise UsageError(f"{option} {value}: must be a whole number of at least 1")
        if not 0 <= self.tolerance < math.inf:
            raise UsageError(f"--scaling-tolerance {100 * self.tolerance:g}: must be a percentage of at least 0")

    def as_json(self) -> Mapping[str, Any]:
        """For the report: a later run compares it with its own request to see whether this validation was done."""
        fields = {
            "pairs": [list(pair) for pair in self.pairs],
            "other_depths": self.other_depths and list(self.other_depths),
            "output": self.output and self.output.name,
        }
        return asdict(self) | fields


@dataclass(frozen=True)
class Request:
    """One run of the profiler. Field names are those of the command's flags.

    model: a Hub id, a local folder or a name of the built-in table. hardware: None for the device's short name.
    scaling: None to skip validation. report: whether to write the page of the table. hf_token is never printed or
    written.
    """

    model: str
    sweep: Sweep = Sweep()
    hardware: str | None = None
    model_name: str | None = None
    num_layers: int = 1
    device: str = "cuda"
    warmup: int = 10
    repeat: int = 100
    precision: float = 0.01
    dtype: str = "auto"
    attn_implementation: str = "auto"
    sdpa_backend: str = "auto"
    experts_implementation: str = "auto"
    routing: str = "balanced"
    load_format: str = "auto"
    revision: str | None = None
    allow_pickle: bool = False
    allow_slow_path: bool = False
    trust_remote_code: bool = False
    seed: int = 0
    append: bool = False
    overwrite: bool = False
    output_dir: Path = Path(".")
    scaling: ScalingRequest | None = None
    report: bool = True
    verbose: bool = False
    hf_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise UsageError(f"--device {self.device}: use cuda, cuda:N or cpu (or fake, for made-up times)")
        if self.device == "fake" and self.scaling is not None:
            raise UsageError("--device fake: there is no real model to validate against; add --skip-scaling")
        for option, value, least in (
            ("--num-layers", self.num_layers, 1),
            ("--repeat", self.repeat, 1),
            ("--warmup", self.warmup, 0),
        ):
            if value < least:
                raise UsageError(f"{option} {value}: must be a whole number of at least {least}")
        if self.scaling is not None and self.scaling.runtime == "cuda-graph" and self.device == "cpu":
            raise UsageError("--scaling-runtime cuda-graph: a CPU has no CUDA graphs; use --scaling-runtime eager")
        if self.device == "cpu" and self.sdpa_backend not in CPU_SDPA_BACKENDS:
            raise UsageError(
                f"--sdpa-backend {self.sdpa_backend}: not on a CPU; use {', '.join(CPU_SDPA_BACKENDS[:-1])} or math"
            )
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UsageError(f"--seed {self.seed}: must be a whole number from 0 to {LARGEST_SEED}")
        for name in SERIES:
            longest, step = self.sweep.longest_and_step(name)
            if longest > LONGEST:
                raise UsageError(f"--{name}-max {longest}: {LONGEST} tokens are the most; lower it")
            if longest // step > MOST_POINTS:
                raise UsageError(
                    f"--{name}-max {longest}: {longest // step} points at --{name}-step {step}, where {MOST_POINTS} "
                    f"are the most; lower it, or raise --{name}-step"
                )
        if not 0 <= self.precision < 1:
            raise UsageError(f"--precision {100 * self.precision:g}: must be 0 (exactly --repeat passes) up to 99 %")
        if self.append and self.overwrite:
            raise UsageError("--append adds to a table and --overwrite starts it anew: use one of them")
