"""From the events of a session of torch's profiler to passes and replays, as plain data. Imports no torch."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from llm_profile.timing.replays import LabelledPass, NodeNames, Replay


class Range(NamedTuple):
    """A range around a pass or a layer, by the host's clock. name: the point's index or the row, without the prefix."""

    name: str
    start_ns: int
    end_ns: int


class Launch(NamedTuple):
    """A call of the runtime that may start work on the device. correlation: id that it shares with that work."""

    correlation: int
    start_ns: int
    name: str


class Kernel(NamedTuple):
    """A kernel, copy or memset, by the device's clock. correlation: id that it shares with its launch."""

    correlation: int
    start_ns: int
    duration_ns: int
    name: str


@dataclass
class Trace:
    """The events of one session, in any order. Add all of them before reading `started`, which is computed once."""

    passes: list[Range] = field(default_factory=list)
    rows: list[Range] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)

    @cached_property
    def started(self) -> list[tuple[Launch, list[Kernel]]]:
        """Each launch with the kernels that it started: all of a replay's kernels have one launch. Ordered by start."""
        of_launch: dict[int, list[Kernel]] = {launch.correlation: [] for launch in self.launches}
        for kernel in sorted(self.kernels, key=attrgetter("start_ns")):
            if kernel.correlation in of_launch:
                of_launch[kernel.correlation].append(kernel)
        return [(launch, of_launch[launch.correlation]) for launch in sorted(self.launches, key=attrgetter("start_ns"))]


class Timeline:
    """Answers which range is the innermost one at a time, for ranges that nest strictly."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self._times: list[int] = []
        self._owners: list[str | None] = []
        stack: list[Range] = []

        def mark(time: int, owner: str | None) -> None:
            self._times.append(time)
            self._owners.append(owner)

        for r in sorted(ranges, key=lambda r: (r.start_ns, -r.end_ns)):
            while stack and stack[-1].end_ns <= r.start_ns:
                ended = stack.pop()
                mark(ended.end_ns, stack[-1].name if stack else None)
            stack.append(r)
            mark(r.start_ns, r.name)
        while stack:
            ended = stack.pop()
            mark(ended.end_ns, stack[-1].name if stack else None)

    def owner(self, time_ns: int) -> str | None:
        """Name of the innermost range that covers `time_ns`, None if none does."""
        at = bisect_right(self._times, time_ns) - 1
        return self._owners[at] if at >= 0 else None


def labelled_passes(trace: Trace) -> dict[int, list[LabelledPass]]:
    """Index of a point -> its eager passes in a session, every kernel with its row.

    A kernel belongs to the innermost range of a row that was open on the host when it was launched. What was launched
    outside the range of the whole model is not part of the pass, such as the copy of a cache before it. A pass without
    kernels is left out.
    """
    rows = Timeline(trace.rows)
    ranges = sorted(trace.passes, key=attrgetter("start_ns"))
    starts = [r.start_ns for r in ranges]
    owned: list[list[tuple[str, Kernel]]] = [[] for _ in ranges]
    for launch, kernels in trace.started:
        at = bisect_right(starts, launch.start_ns) - 1
        if at >= 0 and launch.start_ns < ranges[at].end_ns and (owner := rows.owner(launch.start_ns)) is not None:
            owned[at] += [(owner, kernel) for kernel in kernels]
    result: dict[int, list[LabelledPass]] = {}
    for r, of_pass in zip(ranges, owned, strict=True):
        if of_pass:
            of_pass.sort(key=lambda pair: pair[1].start_ns)
            result.setdefault(int(r.name), []).append(_labelled(of_pass))
    return result


def _labelled(owned: list[tuple[str, Kernel]]) -> LabelledPass:
    rows, kernels = zip(*owned, strict=True)
    replay = _replay(kernels)
    return LabelledPass(rows, replay.names, replay.start_ns, replay.duration_ns)


def graph_replays(trace: Trace) -> list[Replay]:
    """The replay of each launch of a graph in a session, in the order of the launches."""
    return [_replay(kernels) for launch, kernels in trace.started if launch.name.endswith("GraphLaunch")]


def _replay(kernels: Sequence[Kernel]) -> Replay:
    """Kernels as a replay. A graph that was captured from one stream runs its nodes in the order of the capture."""
    return Replay(
        np.asarray([k.start_ns for k in kernels], dtype=np.int64),
        np.asarray([k.duration_ns for k in kernels], dtype=np.int64),
        NodeNames(k.name for k in kernels),
    )
