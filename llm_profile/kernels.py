"""`--kernels`: whose kernels compute norms, rotary function, gate products and grouped heads. Imports no torch."""

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from llm_profile.errors import UsageError

FUSED = "fused"
KERNEL_CHOICES = ("model", FUSED)
"""Those of the model's code, or fused ones (passes/fused.py)."""

C_COMPILERS = ("gcc", "clang")
"""What Triton looks for where CC is not set."""

CPP_COMPILERS = ("g++",)
"""What Inductor looks for on a CPU where CXX is not set."""


def compiler_path(variable: str, names: tuple[str, ...]) -> str | None:
    """Path of the compiler that a variable of the environment names, or else of the first of `names` that is there."""
    wanted = (os.environ[variable],) if os.environ.get(variable) else names
    return next((path for name in wanted if (path := shutil.which(name.split()[0]))), None)


def python_headers() -> Path:
    """The header of Python, which compiled kernels include; it may be missing."""
    return Path(sysconfig.get_path("include")) / "Python.h"


def check_compilers(kernels: str, device: str) -> None:
    """Raise UsageError where fused kernels cannot be compiled on this machine. device: as of `--device`."""
    if kernels != FUSED:
        return
    missing = []
    if device.startswith("cuda"):
        missing += [] if find_spec("triton") else ["the package triton"]
        missing += [] if compiler_path("CC", C_COMPILERS) else ["a C compiler (gcc)"]
    else:
        missing += [] if compiler_path("CXX", CPP_COMPILERS) else ["a C++ compiler (g++)"]
    missing += [] if python_headers().exists() else ["Python's headers (python3-dev)"]
    if missing:
        raise UsageError(
            f"--kernels fused: Inductor needs {' and '.join(missing)} on this machine; install what is missing, or use "
            "--kernels model"
        )


def refuse_eager(kernels: str, runtime: str, instead: str = "--scaling-runtime cuda-graph") -> None:
    """Raise UsageError where the real model of a validation would not run the kernels of the table.

    runtime: as of `--scaling-runtime`. instead: what to use.
    """
    if kernels == FUSED and runtime == "eager":
        raise UsageError(
            f"--scaling-runtime eager: it runs the model as a script does, without the kernels of --kernels fused; use "
            f"{instead}"
        )
