"""Checks of the GPU: is it there, does the driver fit, is it free, cool and at its full clock. Imports no torch."""

import os
from contextlib import suppress
from typing import Any

from llm_profile.cards import short_device_name
from llm_profile.doctor.finding import Finding, Intended, doubt, failure, fine
from llm_profile.doctor.gpu_handle import Gpu
from llm_profile.errors import UsageError
from llm_profile.models.memory import gib
from llm_profile.timing.telemetry import BENIGN_REASONS, REASONS

SM_CLOCK, GRAPHICS_CLOCK = 1, 0
"""NVML_CLOCK_SM, NVML_CLOCK_GRAPHICS."""

CORE_TEMPERATURE, SLOWDOWN_THRESHOLD = 0, 1
"""NVML_TEMPERATURE_GPU, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN."""

HOT = 10
"""Degrees Celsius below the temperature at which the GPU slows down: from there on a sweep is likely to reach it."""

NO_NVML = "not known: NVML cannot be asked; if this is an NVIDIA GPU, make libnvidia-ml.so.1 of the driver visible"


def is_there(intended: Intended) -> Finding:
    """Whether torch can use the device."""
    found = intended.gpu
    if found is None:
        return fine(f"none needed for --device {intended.request.device}")
    if isinstance(found, UsageError):
        return failure(str(found))
    _free, total = found.free_and_total()
    return fine(f"{found.name}, {gib(total)}; its tables lie in {short_device_name(found.name)}/")


def driver_fits(intended: Intended) -> Finding | None:
    """The CUDA version of the driver against that of torch."""
    if not intended.is_on_gpu:
        return None
    import torch

    if torch.version.cuda is None:
        return None  # ROCm, or a build for CPUs, which `is_there` tells
    driver, newest = _driver()
    if newest is None:
        return doubt(NO_NVML)
    text = f"driver {driver} has CUDA {_dotted(newest)}, torch {torch.__version__} is of CUDA {torch.version.cuda}"
    if newest >= _number(torch.version.cuda):
        return fine(text)
    if newest // 1000 == _number(torch.version.cuda) // 1000:
        return fine(f"{text}, which runs on it, being of the same major version")
    advice = "update the driver, or install a build of torch for that CUDA"
    if isinstance(intended.gpu, Gpu):
        return doubt(f"{text} and runs through a compatibility package: {advice}")
    return failure(f"{text}: {advice}")


def _driver() -> tuple[str, int | None]:
    """Version of the driver, and the newest CUDA that it runs, 13000 for 13.0; None without NVML."""
    with suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion()), int(pynvml.nvmlSystemGetCudaDriverVersion())
    return "", None


def _number(dotted: str) -> int:
    """`13.0` -> 13000, as NVML writes it."""
    major, minor = (dotted.split(".") + ["0"])[:2]
    return 1000 * int(major) + 10 * int(minor)


def _dotted(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def other_processes(intended: Intended) -> Finding | None:
    """Whether somebody else computes on the GPU. This process does, and in a container its id may be another one."""
    if not isinstance(gpu := intended.gpu, Gpu):
        return None
    running = gpu.ask("nvmlDeviceGetComputeRunningProcesses")
    if running is None:
        return doubt(NO_NVML)
    pids = [process.pid for process in running]
    others = [pid for pid in pids if pid != os.getpid()]
    count = len(others) if os.getpid() in pids else max(0, len(others) - 1)
    if not count:
        return fine("no other process computes on this GPU")
    named = f" (of pids {', '.join(map(str, others[:5]))})"
    return doubt(f"{count} other process(es) compute on this GPU{named}: times would be doubtful; stop them")


def clocks(intended: Intended) -> Finding | None:
    """The SM clock, its maximum, what holds it down, and application clocks below their default."""
    if not isinstance(gpu := intended.gpu, Gpu):
        return None
    now, most = gpu.ask("nvmlDeviceGetClockInfo", SM_CLOCK), gpu.ask("nvmlDeviceGetMaxClockInfo", SM_CLOCK)
    if now is None or most is None:
        return doubt(NO_NVML)
    applied = gpu.ask("nvmlDeviceGetApplicationsClock", GRAPHICS_CLOCK)
    default = gpu.ask("nvmlDeviceGetDefaultApplicationsClock", GRAPHICS_CLOCK)
    text = f"SM clock {now} of at most {most} MHz"
    if applied is not None:
        text += f", application clock {applied} MHz"
    if applied is not None and default is not None and applied < default:
        return doubt(f"{text}, below its default of {default} MHz: reset it with `nvidia-smi -rac`")
    bits = gpu.ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
    reasons = sorted({name for bit, name in REASONS.items() if bits & bit} - BENIGN_REASONS)
    if reasons:
        return doubt(f"{text}, held down by {', '.join(reasons)}: end other work, check cooling and power")
    return fine(text)


def power_cap(intended: Intended) -> Finding | None:
    """The power limit against the card's default."""
    if not isinstance(gpu := intended.gpu, Gpu):
        return None
    limit, default = (
        gpu.ask(f"nvmlDeviceGetPowerManagement{which}") for which in ("Limit", "DefaultLimit")
    )  # in milliwatts
    if limit is None or default is None:
        return fine("not told by this GPU")
    if limit < default:
        return doubt(
            f"power is capped at {_watts(limit)}, {_watts(default)} are the default: long prompts run at a lower "
            f"clock; `nvidia-smi -pl {default // 1000}` lifts it"
        )
    return fine(f"power limit {_watts(limit)}, default {_watts(default)}")


def _watts(milliwatts: int) -> str:
    return f"{milliwatts / 1000:.0f} W"


def temperature(intended: Intended) -> Finding | None:
    """How far the GPU is from slowing down."""
    if not isinstance(gpu := intended.gpu, Gpu):
        return None
    now: Any = gpu.ask("nvmlDeviceGetTemperature", CORE_TEMPERATURE)
    slowdown: Any = gpu.ask("nvmlDeviceGetTemperatureThreshold", SLOWDOWN_THRESHOLD)
    if now is None:
        return fine("not told by this GPU")
    if slowdown is None:
        return fine(f"{now} C")
    if now > slowdown - HOT:
        return doubt(f"{now} C, and it slows down at {slowdown} C: let it cool, and check its cooling")
    return fine(f"{now} C, it slows down at {slowdown} C")
