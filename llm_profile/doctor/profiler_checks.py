"""Checks of the profiler: whether another one holds CUPTI, and whether a kernel is recorded. Imports no torch."""

import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llm_profile.doctor.finding import Finding, Intended, doubt, failure, fine
from llm_profile.doctor.gpu_handle import Gpu
from llm_profile.errors import type_and_text

PROC = Path("/proc")

VARIABLES = ("CUDA_INJECTION64_PATH", "NSYS_PROFILING_SESSION_ID", "NVTX_INJECTION64_PATH", "KINETO_USE_DAEMON")
"""Environment variables by which profilers get into a program."""

PROGRAMS = {
    *("nsys", "nsys-launcher", "ncu", "nv-nsight-cu-cli", "nvprof", "nvvp"),
    *("dcgm-exporter", "nv-hostengine", "dcgmi", "dynolog"),
}
"""Programs that may hold CUPTI or the GPU's counters, as /proc names them (15 letters at most)."""

TRIED_KERNELS = 3
"""Launched for the trial."""


def others(intended: Intended) -> Finding | None:
    """Profilers in the environment or among the processes; CUPTI serves one at a time."""
    if not intended.is_on_gpu:
        return None
    variables = [name for name in VARIABLES if os.environ.get(name)]
    programs = sorted({name for name in _running() if name in {program[:15] for program in PROGRAMS}})
    advice = []
    if variables:
        advice.append(f"set in the environment: {', '.join(variables)}; unset them")
    if programs:
        advice.append(f"running: {', '.join(programs)}; stop them while you measure")
    if advice:
        return doubt(f"other profilers may hold CUPTI: {', and '.join(advice)}")
    return fine("no other profiler in the environment or among the processes")


def _running() -> Iterator[str]:
    """Names of all processes that can be seen."""
    for path in PROC.glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended
            yield path.read_text(encoding="utf-8", errors="replace").strip()


def records_kernels(intended: Intended) -> Finding | None:
    """A trial: some small kernels under torch's profiler, which a run depends on."""
    if not isinstance(intended.gpu, Gpu):
        return None
    advice = "end other profilers (nsys, ncu, DCGM), unset CUDA_INJECTION64_PATH, check that libcupti fits the driver"
    try:
        recorded = recorded_kernels(intended.request.device)
    except Exception as error:
        return failure(f"torch's profiler fails ({type_and_text(error)}): {advice}")
    if not recorded:
        return failure(f"torch's profiler records no kernel: {advice}")
    return fine(f"torch's profiler records kernels ({recorded} of {TRIED_KERNELS})")


def recorded_kernels(device: str) -> int:
    """How many of TRIED_KERNELS kernels the profiler has seen."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    values = torch.ones(1024, device=device)
    torch.cuda.synchronize(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of several cycles, which this has not
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(TRIED_KERNELS):
                values.add_(1)
            torch.cuda.synchronize(device)
        events = profiler.events() or ()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
