"""From the events of a profiling session to kernels per pass and row, as plain data. Imports no torch."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from operator import attrgetter
from typing import NamedTuple


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


NAME = attrgetter("name")

MEMORY = ("Memcpy", "Memset")
"""What the names of copies and memsets start with."""


@cache
def kernel_kind(name: str) -> str:
    """The name of a kernel, or `memory` for any copy or memset.

    CUPTI 13 sometimes records a memset of a graph as a copy, or the other way round. With gpt-oss-20b on an H200, 40
    of 352 replays had such an event, one of 211 to 243 each; it took as long as under its right name.
    """
    return "memory" if name.startswith(MEMORY) else name


def kernel_kinds(kernels: Iterable[Kernel]) -> tuple[str, ...]:
    """The kind of each kernel. Passes of a point that run the same kernels in the same order have the same kinds."""
    return tuple(map(kernel_kind, map(NAME, kernels)))


@dataclass
class Trace:
    """The events of one session, in any order. Add all of them before reading `by_pass`, which is computed once."""

    passes: list[Range] = field(default_factory=list)
    rows: list[Range] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)

    @cached_property
    def by_pass(self) -> list[tuple[int, list[tuple[Launch, list[Kernel]]]]]:
        """For each range around passes: (index of the point, each launch with the kernels that it started).

        Ranges, launches and kernels are ordered by their start. Launches that started nothing are left out.
        """
        ranges = sorted(self.passes, key=attrgetter("start_ns"))
        starts = [r.start_ns for r in ranges]
        found: list[list[tuple[Launch, list[Kernel]]]] = [[] for _ in ranges]
        started: dict[int, list[Kernel]] = {}  # by correlation: a replay of a graph is one launch of many kernels
        for launch in sorted(self.launches, key=attrgetter("start_ns")):
            at = bisect_right(starts, launch.start_ns) - 1
            if at >= 0 and launch.start_ns < ranges[at].end_ns:
                kernels = started[launch.correlation] = []
                found[at].append((launch, kernels))
        for kernel in self.kernels:
            if kernel.correlation in started:
                started[kernel.correlation].append(kernel)
        for kernels in started.values():
            kernels.sort(key=attrgetter("start_ns"))
        return [(int(r.name), [pair for pair in of if pair[1]]) for r, of in zip(ranges, found, strict=True)]


@dataclass(frozen=True, slots=True)
class LabelledPass:
    """One pass: its kernels in the order in which they ran, and the row of each."""

    rows: tuple[str, ...]
    kernels: tuple[Kernel, ...]

    @property
    def duration_ns(self) -> int:
        return sum(map(attrgetter("duration_ns"), self.kernels))

    @property
    def end_ns(self) -> int:
        """End of the last kernel."""
        return self.kernels[-1].start_ns + self.kernels[-1].duration_ns


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
    outside the range of the whole model is not part of the pass, such as the copy of a cache before it.
    """
    rows = Timeline(trace.rows)
    result: dict[int, list[LabelledPass]] = {}
    for index, launches in trace.by_pass:
        if any(launch.name.endswith("GraphLaunch") for launch, _ in launches):
            continue
        owned = [
            (owner, kernel)
            for launch, kernels in launches
            if (owner := rows.owner(launch.start_ns)) is not None
            for kernel in kernels
        ]
        owned.sort(key=lambda pair: pair[1].start_ns)
        owners, of_pass = zip(*owned, strict=True) if owned else ((), ())
        result.setdefault(index, []).append(LabelledPass(owners, of_pass))
    return result


def graph_replays(trace: Trace) -> dict[int, list[list[Kernel]]]:
    """Index of a point -> the kernels of each of its graph replays in a session, in the order in which they ran."""
    result: dict[int, list[list[Kernel]]] = {}
    for index, launches in trace.by_pass:
        replays = [kernels for launch, kernels in launches if launch.name.endswith("GraphLaunch")]
        if replays:
            result.setdefault(index, []).extend(replays)
    return result


class Labels:
    """The row of each kernel of a pass, learned from the labelled passes of all points.

    A graph that was captured from one stream replays its kernels in the order of the capture. So a replay that runs
    kernels of the same names in the same order as a labelled pass has the rows of that pass. If two such labelled
    passes have different rows, no replay gets the rows of either.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, ...], tuple[str, ...] | None] = {}

    def __bool__(self) -> bool:
        return bool(self._rows)

    def learn(self, labelled: LabelledPass) -> None:
        """Store the rows of the kernels of a labelled pass."""
        names = tuple(map(NAME, labelled.kernels))
        if self._rows.setdefault(names, labelled.rows) != labelled.rows:
            self._rows[names] = None

    def label(self, kernels: Sequence[Kernel]) -> LabelledPass | None:
        """These kernels with their rows; None if the rows are not known."""
        rows = self._rows.get(tuple(map(NAME, kernels)))
        return None if rows is None else LabelledPass(rows, tuple(kernels))


def overlap(kernels: Sequence[Kernel]) -> float:
    """Overlap of kernels as a share of their summed time: 0 if they ran one after the other."""
    total = sum(k.duration_ns for k in kernels)
    if not total:
        return 0.0
    covered, end = 0, 0
    for k in sorted(kernels, key=attrgetter("start_ns")):
        ended = k.start_ns + k.duration_ns
        if ended > end:
            covered += ended - max(k.start_ns, end)
            end = ended
    return 1.0 - covered / total
