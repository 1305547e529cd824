"""The options of run_profile.py as typed, checked values: `Request` and `ScalingRequest`. Imports no torch."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.kernels import FUSED, refuse_eager
from llm_profile.sweep import SERIES, Pair, Sweep

DEVICE = re.compile(r"cpu|cuda(:(0|[1-9]\d?))?|fake")

CLOCKS = {"cuda": "gpu-kernel", "cpu": "cpu-wall", "fake": "fake"}
"""Kind of device -> `clock` of the tables that are measured on it: which time their nanoseconds are."""

LONGEST = 100_000_000
"""Largest --prefill-max or --decode-max, in tokens: more than ten times what any model takes."""

MOST_POINTS = 1_000_000
"""Most points of a sweep: a million takes hours at 100 points a second, so more is taken for a typing error."""

LARGEST_SEED = 2**63 - 1
"""torch takes seeds up to the largest signed integer of 64 bits."""

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
DTYPES = ("auto", *DTYPE_BYTES)
SDPA_BACKENDS = ("auto", "torch", "flash", "cudnn", "efficient", "math")
CPU_SDPA_BACKENDS = ("auto", "torch", "flash", "math")
"""The ones that torch can use on a CPU."""
TIMERS = ("auto", "cupti", "torch-profiler")
"""Who records the kernels of a GPU: CUPTI read directly, or torch's profiler; auto: CUPTI where it can be read."""

SKIP = "--skip-scaling"
LARGEST_TP = 1024
"""Largest --tp: more GPUs than share a layer anywhere."""

ROUTINGS = ("balanced", "random", "model")
"""How the experts of a token are chosen: evenly over all experts, at random, or by the model's router."""


@dataclass(frozen=True)
class ScalingRequest:
    """How a table is validated against the real model: the options of validation.py.

    pairs: (input, output) lengths in tokens.
    num_layers: number of blocks that the real model runs with; None for its full depth.
    other_depths: further depths that are timed too; None for half of `num_layers` if that is not the full depth.
    repeat: how often each step is timed in each process.
    processes: number of fresh processes that time the real model; None for the default of the runtime.
    runtime: `eager` or `cuda-graph`, see validation.py.
    mode: the scaling that the scaled table is written with. Only `curve` keeps both TTFT and TPOT right and makes rows
    that a simulator adds up to the time of real steps.
    tolerance: largest accepted held-out error, as a ratio.
    output: path of the scaled table; None for `<model>-scaled.csv`.
    add_new_column: keep `latency(ns)` as measured and write the scaled latency into a column of its own.
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
        """As the report records it. A later run compares it with its own request, to skip what was validated before."""
        fields = {
            "pairs": [list(pair) for pair in self.pairs],
            "other_depths": self.other_depths and list(self.other_depths),
            "output": self.output and self.output.name,
        }
        return asdict(self) | fields


@dataclass(frozen=True)
class Request:
    """One run of the profiler. A field has the name of its option and means the same (docs/options.md).

    model: an id on the hub, a local folder or a name in the built-in table (catalog.py). hardware: None for the
    short name of the device. precision: as a ratio, where the option takes a percentage. scaling: None to skip
    validation. tp: tensor parallel degree; above 1, one rank's shard is measured. report: whether to write the page
    of the table. verbose, quiet, json: how much is printed, and where. hf_token: never printed or written to a
    file.
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
    timer: str = "auto"
    dtype: str = "auto"
    attn_implementation: str = "auto"
    sdpa_backend: str = "auto"
    experts_implementation: str = "auto"
    routing: str = "balanced"
    kernels: str = "model"
    load_format: str = "auto"
    revision: str | None = None
    allow_pickle: bool = False
    allow_slow_path: bool = False
    trust_remote_code: bool = False
    seed: int = 0
    tp: int = 1
    append: bool = False
    overwrite: bool = False
    output_dir: Path = Path(".")
    scaling: ScalingRequest | None = None
    report: bool = True
    verbose: bool = False
    quiet: bool = False
    json: bool = False
    hf_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise UsageError(f"--device {self.device}: use cuda, cuda:N or cpu (or fake, for made-up times)")
        if self.device == "fake" and self.scaling is not None:
            raise UsageError("--device fake: there is no real model to validate against; add --skip-scaling")
        self._check_tp()
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
        if self.timer != "auto" and not self.device.startswith("cuda"):
            raise UsageError(f"--timer {self.timer}: it records GPU kernels; leave it out with --device {self.device}")
        if self.kernels == FUSED and self.device == "fake":
            raise UsageError("--kernels fused: made-up times have no kernels; leave it out with --device fake")
        if self.scaling is not None:
            cpu = self.device == "cpu"  # which has no CUDA graphs
            refuse_eager(self.kernels, self.scaling.runtime, SKIP if cpu else f"--scaling-runtime cuda-graph or {SKIP}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UsageError(f"--seed {self.seed}: must be a whole number from 0 to {LARGEST_SEED}")
        for name in SERIES:
            longest, step = self.sweep.longest_and_step(name)
            if longest > LONGEST:
                raise UsageError(f"--{name}-max {longest}: must be at most {LONGEST} tokens")
            if longest // step > MOST_POINTS:
                raise UsageError(
                    f"--{name}-max {longest}: {longest // step} points at --{name}-step {step}, but at most "
                    f"{MOST_POINTS} are allowed; lower it, or raise --{name}-step"
                )
        if not 0 <= self.precision < 1:
            raise UsageError(f"--precision {100 * self.precision:g}: must be 0 (exactly --repeat passes) up to 99 %")
        if self.append and self.overwrite:
            raise UsageError("--append adds to a table and --overwrite starts it anew: use one of them")

    def _check_tp(self) -> None:
        if not 1 <= self.tp <= LARGEST_TP:
            raise UsageError(f"--tp {self.tp}: must be a whole number from 1 to {LARGEST_TP}")
        if self.tp > 1 and self.device == "fake":
            raise UsageError(f"--tp {self.tp}: made-up times have no shards; use --device cuda or cpu, or --tp 1")
        if self.tp > 1 and self.scaling is not None:
            raise UsageError(
                f"--tp {self.tp}: a shard cannot be validated against the whole model on one GPU; add --skip-scaling"
            )
