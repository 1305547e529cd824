"""One session of torch's profiler, whose only events are the ranges of this project, the runtime's calls and GPU work.

`torch.profiler.profile` also records every operator, which would take host time at each of thousands of points.
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
"""Name of the range around one eager pass; `:` and the index of the point in the session follow."""

ROW_RANGE = "llm_profile.row:"
"""Start of the names of ranges around layers; the name of the row follows."""

LAUNCH = re.compile(r"^(cuda|hip|cu[A-Z])")
"""Names of calls of the CUDA or HIP runtime and driver. Events of torch 2.11 have no type that tells them apart."""


class RangeRecorder:
    """Opens and closes a profiler range for each row: a `Recorder` of layers/ranges.py."""

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
    """Context: what is launched inside belongs to passes of the point with this index in the session."""
    with torch.profiler.record_function(f"{PASS_RANGE}:{index}"):
        yield


class Events:
    """What the profiler recorded in one session."""

    def __init__(self) -> None:
        self._recorded: Any = ()

    def keep(self, recorded: Any) -> None:
        """Store the events of a session that has ended."""
        self._recorded = recorded

    def read(self) -> Trace:
        """The events as ranges, launches and kernels."""
        # A session has about a thousand events per point with few different names: each name is matched only once.
        by_name: dict[str, list[Any]] = defaultdict(list)
        for event in self._recorded.events():
            by_name[event.name()].append(event)
        trace = Trace()
        for name, events in by_name.items():
            on_host = events[0].device_type() == DeviceType.CPU
            if name.startswith((ROW_RANGE, PASS_RANGE)):  # a range has an event on the device too, which is left out
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
    """Context of one profiling session. Its events can be read when the context has ended, which waits for the device.

    It uses the profiler that `torch.profiler.profile` is built on, since the post-processing of the latter in Python
    takes seconds per session.
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
