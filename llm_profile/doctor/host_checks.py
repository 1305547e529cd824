"""Checks of the host: software, processors, files. Imports no torch."""

import os
import shutil
import tempfile
from pathlib import Path

from llm_profile import versions
from llm_profile.cli.planning import nearest_folder
from llm_profile.doctor.finding import Finding, Intended, doubt, failure, fine
from llm_profile.errors import UsageError
from llm_profile.kernels import C_COMPILERS, FUSED, check_compilers, compiler_path, python_headers
from llm_profile.models.memory import gib

CPUS = Path("/sys/devices/system/cpu")

BUSY = 0.25
"""Load per processor above which eager times, which depend on the host, are doubtful."""

LITTLE_DISK, TOO_LITTLE_DISK = 2**30, 64 * 2**20
"""Bytes: a table of 4,096 points with its report takes some megabytes, its journal ten times as much."""


def tested_versions(intended: Intended) -> Finding:
    """torch and transformers against the releases that were tested."""
    found = versions.installed()
    missing = [name for name in versions.TESTED if name not in found]
    if missing:
        return failure(f"{' and '.join(missing)} not installed; install the tested set: {versions.install_command()}")
    try:
        versions.refuse_older()
    except UsageError as error:
        return failure(str(error))
    if text := versions.warning():
        return doubt(text)
    return fine(", ".join(f"{name} {version}" for name, version in found.items()) + ": tested")


def governor(intended: Intended) -> Finding:
    """What sets the clock of the processors."""
    files = CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")
    names = sorted({path.read_text(encoding="utf-8").strip() for path in files})
    if not names:
        return fine("the host does not tell who sets the clock of its processors, as virtual machines do")
    if names == ["performance"]:
        return fine("performance")
    return doubt(
        f"{', '.join(names)}: eager times, and the rate of the sweep, depend on the clock of the processors; "
        "`cpupower frequency-set -g performance` holds it up"
    )


def load(intended: Intended) -> Finding:
    """Other work on the host."""
    running, processors = os.getloadavg()[0], len(os.sched_getaffinity(0))
    text = f"load {running:.1f} on {processors} processors"
    if running / processors > BUSY:
        return doubt(f"{text}: eager times, and all times of --device cpu, depend on it; stop other work")
    return fine(text)


def output_folder(intended: Intended) -> Finding:
    """Whether files can be written where the table goes."""
    folder = nearest_folder(intended.request.output_dir / "table.csv")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return failure(f"cannot write to {folder} ({error.strerror or error}); choose another --output-dir")
    return fine(f"{folder} can be written to")


def disk_space(intended: Intended) -> Finding:
    """Free space where the table goes."""
    folder = nearest_folder(intended.request.output_dir / "table.csv")
    free = shutil.disk_usage(folder).free
    text = f"{gib(free)} free in {folder}"
    advice = "make room, or choose another --output-dir"
    if free < TOO_LITTLE_DISK:
        return failure(f"{text}: {advice}")
    return doubt(f"{text}: {advice}") if free < LITTLE_DISK else fine(text)


def compiler(intended: Intended) -> Finding:
    """What Inductor and Triton need, for fused kernels and for models that compile a part of themselves."""
    fused = intended.request.kernels == FUSED
    try:
        check_compilers(intended.request.kernels, intended.request.device)
    except UsageError as error:
        return failure(str(error))
    found, headers = compiler_path("CC", C_COMPILERS), python_headers()
    if found is None and not fused:
        wanted = os.environ.get("CC") or ", ".join(C_COMPILERS)
        return doubt(f"no C compiler ({wanted}): models that compile kernels would fail; install gcc")
    if not headers.exists():
        return doubt(f"{found}, but no {headers}: Triton would fail; install Python's headers (python3-dev)")
    return fine(found or "what --kernels fused needs is there")
