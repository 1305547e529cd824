"""Samples of the GPU's clock: which of them count for a point, and machines without NVML."""

import statistics
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.timing import telemetry
from llm_profile.timing.telemetry import Telemetry, median_between

SAMPLES = st.lists(st.tuples(st.integers(0, 1000), st.integers(300, 2000)), max_size=30).map(sorted)


@given(SAMPLES, st.integers(-10, 1010), st.integers(0, 500))
def test_the_median_is_of_the_samples_within_and_one_on_each_side(
    samples: list[tuple[int, int]], start: int, length: int
) -> None:
    end = start + length
    before = [value for at, value in samples if at < start][-1:]
    within = [value for at, value in samples if start <= at <= end]
    after = [value for at, value in samples if at > end][:1]
    chosen = before + within + after
    found = median_between(samples, start, end)
    assert found == (statistics.median(chosen) if chosen else None)
    assert (found is None) == (not samples), "any sample says something"


class FakeNvml:
    """A fake `pynvml` with a GPU at `clock` MHz. reasons: bits of throttle reasons. broken: functions that fail."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.clock, self.reasons = 1980, 0
        self.broken: set[str] = set()
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.called.append(name)
            if name in self.broken:
                raise self.NVMLError(name)
            answers = {
                "nvmlDeviceGetClockInfo": self.clock,
                "nvmlDeviceGetCurrentClocksThrottleReasons": self.reasons,
                "nvmlSystemGetDriverVersion": "580.1",
                "nvmlDeviceGetHandleByPciBusId": "handle",
                "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=7), SimpleNamespace(pid=8)],
            }
            return answers.get(name)

        return call


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    driver = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(telemetry, "INTERVAL_S", 0.001)
    yield driver
    assert not [thread for thread in threading.enumerate() if thread.name == "telemetry"], "closed"


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_clocks_and_reasons_are_sampled(nvml: FakeNvml) -> None:
    nvml.reasons = 0x1 | 0x4 | 0x40  # gpu_idle, sw_power_cap, hw_thermal_slowdown
    started = time.time_ns()
    watcher = Telemetry("00000000:01:00.0")
    try:
        assert watcher.available and watcher.driver == "580.1"
        wait_for(lambda: watcher.sm_clock_mhz(started, time.time_ns()) is not None)
        assert watcher.sm_clock_mhz(started, time.time_ns()) == 1980
        wait_for(lambda: watcher.reasons)
        assert watcher.reasons == {"sw_power_cap", "hw_thermal_slowdown"}, "an idle GPU is no trouble"
        assert watcher.other_processes(own_pid=7) == [8]
        assert watcher.other_processes(own_pid=6) == [], "its own process is not among them: other process ids, unknown"
        nvml.broken.add("nvmlDeviceGetComputeRunningProcesses")
        assert watcher.other_processes(own_pid=7) == []
    finally:
        watcher.close()
    assert nvml.called[-1] == "nvmlShutdown"


def test_a_query_that_fails_is_left_out(nvml: FakeNvml) -> None:
    nvml.broken.add("nvmlDeviceGetClockInfo")
    watcher = Telemetry("00000000:01:00.0")
    try:
        wait_for(lambda: nvml.called.count("nvmlDeviceGetClockInfo") > 3)
        assert watcher.sm_clock_mhz(0, time.time_ns()) is None
        nvml.broken.clear()
        wait_for(lambda: watcher.sm_clock_mhz(0, time.time_ns()) == 1980)
    finally:
        watcher.close()


def test_old_samples_are_dropped(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "KEPT_SAMPLES", 10)
    watcher = Telemetry("00000000:01:00.0")
    try:
        wait_for(lambda: nvml.called.count("nvmlDeviceGetClockInfo") > 40)
        assert watcher.sm_clock_mhz(0, time.time_ns()) == 1980
    finally:
        watcher.close()
    assert len(watcher._samples) <= 10


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByPciBusId", "nvmlSystemGetDriverVersion"])
def test_without_a_driver_nothing_is_known(nvml: FakeNvml, broken: str) -> None:
    nvml.broken.add(broken)
    watcher = Telemetry("00000000:01:00.0")
    assert not watcher.available and watcher.driver is None
    assert watcher.sm_clock_mhz(0, time.time_ns()) is None and watcher.other_processes(1) == []
    watcher.close()


def test_without_an_address_nothing_is_asked(nvml: FakeNvml) -> None:
    watcher = Telemetry(None)
    assert not watcher.available
    watcher.close()
    assert nvml.called == []
