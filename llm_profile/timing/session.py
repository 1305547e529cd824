"""One session of torch's profiler, with ranges opened by this project and the device's activity as its only events.

Recording every operator, as `torch.profiler.profile` does, would cost host time at each of thousands of points.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._profiler import RecordScope, _ExperimentalConfig
from torch.autograd import (
    DeviceType,
    ProfilerActivity,
    ProfilerConfig,
    ProfilerState,
    _disable_profiler,
    _enable_profiler,
    _prepare_profiler,
)

from llm_profile.timing.trace import Kernel, Launch, Range, Trace

PASS_RANGE = "llm_profile.pass"
"""Range around one eager pass, or around the replays of one graph; the point's index follows after a colon."""

ROW_RANGE = "llm_profile.row:"
"""Prefix of ranges that name rows."""

LAUNCH = re.compile(r"^(cuda|hip|cu[A-Z])")
"""Names of runtime and driver calls. Events of torch 2.11 have no activity type that would tell them."""


class RangeRecorder:
    """Opens and closes profiler ranges named after rows (a ranges.Recorder)."""

    def __init__(self) -> None:
        self._open: list[Any] = []

    def enter(self, row: str) -> None:
        opened = torch.profiler.record_function(ROW_RANGE + row)
        opened.__enter__()
        self._open.append(opened)

    def leave(self) -> None:
        self._open.pop().__exit__(None, None, None)


@contextmanager
def pass_range(index: int) -> Iterator[None]:
    """Mark what is launched inside as passes of point `index` of the session."""
    with torch.profiler.record_function(f"{PASS_RANGE}:{index}"):
        yield


class Events:
    """What the profiler recorded in one session."""

    def __init__(self) -> None:
        self._recorded: Any = ()

    def keep(self, recorded: Any) -> None:
        """Take the events of a session that has ended."""
        self._recorded = recorded

    def read(self) -> Trace:
        """The events by kind. A session has a thousand of them a point, so each name is matched only once."""
        by_name: dict[str, list[Any]] = defaultdict(list)
        for event in self._recorded.events():
            by_name[event.name()].append(event)
        trace = Trace()
        for name, events in by_name.items():
            on_host = events[0].device_type() == DeviceType.CPU
            if name.startswith((ROW_RANGE, PASS_RANGE)):  # the device has events of that name, too
                prefix, ranges = (
                    (ROW_RANGE, trace.rows) if name.startswith(ROW_RANGE) else (f"{PASS_RANGE}:", trace.passes)
                )
                ranges += [_range(name.removeprefix(prefix), e) for e in events if e.device_type() == DeviceType.CPU]
            elif on_host and LAUNCH.match(name):
                trace.launches += [Launch(e.correlation_id(), e.start_ns(), name) for e in events]
            elif not on_host and not events[0].is_user_annotation():
                trace.kernels += [Kernel(e.correlation_id(), e.start_ns(), e.duration_ns(), name) for e in events]
        return trace


def _range(name: str, event: Any) -> Range:
    start_ns = event.start_ns()
    return Range(name, start_ns, start_ns + event.duration_ns())


@contextmanager
def record() -> Iterator[Events]:
    """One profiling session. Its events can be read once the context has ended; the device is synchronised before.

    Uses the profiler below `torch.profiler.profile`, whose own post-processing in Python costs seconds a session.
    """
    session = Events()
    config = ProfilerConfig(ProfilerState.KINETO, False, False, False, False, False, _ExperimentalConfig(), "")
    activities = {ProfilerActivity.CPU, ProfilerActivity.CUDA}
    _prepare_profiler(config, activities)
    _enable_profiler(config, activities, {RecordScope.USER_SCOPE})  # type: ignore[call-arg]
    try:
        yield session
    finally:
        torch.cuda.synchronize()
        session.keep(_disable_profiler())
