"""The SM clock and throttle reasons of the GPU during a sweep, sampled through NVML by a thread of its own."""

import os
import statistics
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

INTERVAL_S = 0.1
"""Seconds between two samples. A query takes up to 10 ms with a busy driver (H200), so more would slow the sweep."""

KEPT_SAMPLES = 100_000
"""Most samples that are kept: those of almost 3 hours. Older ones are dropped; a session needs the last seconds."""

BENIGN_REASONS = frozenset({"gpu_idle", "applications_clocks_setting"})
"""Reasons for a clock below its maximum that are harmless, so they are not recorded."""

REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (NVML API reference): why the clock is below its maximum."""


class Telemetry:
    """Samples the SM clock of one GPU until it is closed.

    driver: version of the driver. reasons: throttle reasons seen so far. Without NVML, `available` is False, and driver
    and clocks are None.
    """

    def __init__(self, pci_bus_id: str | None) -> None:
        self.driver: str | None = None
        self.reasons: set[str] = set()
        self._samples: list[tuple[int, int]] = []  # (time.time_ns, MHz)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._handle: Any = None
        self._nvml: Any = None
        if pci_bus_id is not None:
            self._open(pci_bus_id)

    @property
    def available(self) -> bool:
        return self._handle is not None

    def _open(self, pci_bus_id: str) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id.encode())
            self.driver = pynvml.nvmlSystemGetDriverVersion()
        except Exception:  # some machines have no NVML (AMD, some containers), which is no error
            self._handle = None
            return
        self._nvml = pynvml
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        nvml = self._nvml
        while not self._stop.wait(INTERVAL_S):
            try:
                clock = nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)
                bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
            except nvml.NVMLError:
                continue
            self._samples.append((time.time_ns(), clock))
            self.reasons |= {name for bit, name in REASONS.items() if bits & bit} - BENIGN_REASONS
            if len(self._samples) > KEPT_SAMPLES:
                # a new list, since another thread may be reading the old one
                self._samples = self._samples[KEPT_SAMPLES // 2 :]

    def other_processes(self, own_pid: int) -> list[int]:
        """Ids of other processes that compute on this GPU now; empty if NVML cannot tell.

        In a container with its own process ids, NVML gives those of the host. Then `own_pid` is not among them, and
        this process cannot be told from others.
        """
        if not self.available:
            return []
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError:
            return []
        pids = [process.pid for process in running]
        return [pid for pid in pids if pid != own_pid] if own_pid in pids else []

    def limits(self) -> dict[str, int]:
        """What holds the GPU's speed down, as it is set now: highest clocks in MHz, power in milliwatts.

        Empty without NVML; what the GPU does not tell is left out.
        """
        if not self.available:
            return {}
        nvml, handle = self._nvml, self._handle
        asked = {
            "max_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "max_memory_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "application_sm_clock_mhz": lambda: nvml.nvmlDeviceGetApplicationsClock(handle, nvml.NVML_CLOCK_SM),
            "power_limit_mw": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
        }
        told: dict[str, int] = {}
        for name, ask in asked.items():
            with suppress(nvml.NVMLError):
                told[name] = int(ask())
        return told

    def sm_clock_mhz(self, start_ns: int, end_ns: int) -> float | None:
        """Median SM clock from `start_ns` to `end_ns` (as of time.time_ns), with the sample before and after; None
        without samples."""
        return median_between(self._samples, start_ns, end_ns)

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1)
            self._nvml.nvmlShutdown()
            self._thread = None


def median_between(samples: Sequence[tuple[int, int]], start: int, end: int) -> float | None:
    """Median of (time, value) samples from `start` to `end`, with the sample before and after; None without samples."""
    first = max(bisect_left(samples, start, key=itemgetter(0)) - 1, 0)
    last = bisect_right(samples, end, key=itemgetter(0)) + 1
    chosen = [value for _, value in samples[first:last]]
    return float(statistics.median(chosen)) if chosen else None


def sharing_notice(telemetry: Telemetry, ours: Collection[int] = ()) -> list[str]:
    """A warning, as a list of one line, if other processes compute on the GPU; otherwise an empty list.

    ours: ids of further processes that belong to this run.
    """
    others = [pid for pid in telemetry.other_processes(os.getpid()) if pid not in ours]
    if not others:
        return []
    return [f"{len(others)} other process(es) use this GPU (pid {others[0]}, ...): times are doubtful; stop them"]
