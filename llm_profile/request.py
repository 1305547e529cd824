"""What a user asked for: every option of run_profile.py as one checked, typed value. Imports no torch."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from llm_profile.errors import UsageError
from llm_profile.sweep import Sweep

DEVICE = re.compile(r"^(cpu|cuda(:\d+)?|fake)$")


@dataclass(frozen=True)
class Scaling:
    """How the estimate is held against the real model. Lengths in tokens; outputs take the grid of inputs.

    num_layers: depth of the real model, None for the model's own. tolerance: largest held-out error, relative.
    """

    num_layers: int | None = None
    input_min: int = 128
    input_max: int = 1024
    input_step: int = 128
    repeat: int = 3
    runtime: str = "eager"
    mode: str = "curve"
    tolerance: float = 0.05
    output: Path | None = None
    add_new_column: bool = False


@dataclass(frozen=True)
class Request:
    """One run of the profiler. Field names are those of the command's flags.

    model: a Hub id, a local folder or a name of the built-in table. hardware: None for the device's short name.
    scaling: None to skip validation. hf_token is never printed or written.
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
    seed: int = 0
    append: bool = False
    overwrite: bool = False
    output_dir: Path = Path(".")
    scaling: Scaling | None = None
    verbose: bool = False
    hf_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not DEVICE.match(self.device):
            raise UsageError(f"--device {self.device}: use cuda, cuda:N or cpu (or fake for made-up times)")
        for option, value, least in (
            ("--num-layers", self.num_layers, 1),
            ("--repeat", self.repeat, 1),
            ("--warmup", self.warmup, 0),
        ):
            if value < least:
                raise UsageError(f"{option} {value}: must be a whole number of at least {least}")
        if not 0 <= self.precision < 1:
            raise UsageError(f"--precision {self.precision}: must be 0 (exactly --repeat passes) or a share below 1")
        if self.append and self.overwrite:
            raise UsageError("--append adds to a table and --overwrite starts it anew: use one of them")
