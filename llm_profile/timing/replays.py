"""What the device did in one replay of a captured pass, and which of it belongs to which row. Imports no torch."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MEMORY = ("Memcpy", "Memset")
"""What the names of copies and memsets start with."""


@dataclass(frozen=True)
class Replay:
    """Kernels, copies and memsets of one replay of a graph, in the order in which they were captured.

    start_ns, duration_ns: [nodes], by a clock that agrees with time.time_ns. names: of each node.
    """

    start_ns: NDArray[np.int64]
    duration_ns: NDArray[np.int64]
    names: "NodeNames"


class NodeNames(tuple[str, ...]):
    """Names of the nodes of a replay. Replays of a graph share one object."""

    @cached_property
    def memory(self) -> tuple[bool, ...]:
        """Whether each node is a copy or a memset."""
        return tuple(name.startswith(MEMORY) for name in self)


@dataclass(frozen=True)
class NodeRows:
    """The row of each node of a captured graph, in the order in which the nodes were captured.

    rows: None for nodes outside the model, such as the copy of a cache before the pass. memory: whether a node is a
    copy or a memset. Nodes that do no work on the device are not among them.
    """

    rows: tuple[str | None, ...]
    memory: tuple[bool, ...]

    @cached_property
    def kept(self) -> NDArray[np.int64]:
        """Indices of the nodes that have a row."""
        return np.asarray([i for i, row in enumerate(self.rows) if row is not None], dtype=np.int64)

    @cached_property
    def kept_rows(self) -> tuple[str, ...]:
        """The rows of the nodes that have one."""
        return tuple(row for row in self.rows if row is not None)

    def fit(self, replay: Replay) -> bool:
        """Whether a replay has all nodes of the graph and no others.

        CUPTI 13 sometimes records a memset of a graph as a copy, or the other way round, so these are not told apart.
        """
        return replay.names.memory == self.memory

    def of(self, replay: Replay) -> "LabelledPass":
        """The pass that a replay ran. Call it if the replay fits."""
        if len(self.kept) == len(self.rows):
            return LabelledPass(self.kept_rows, replay.names, replay.start_ns, replay.duration_ns)
        names = tuple(replay.names[i] for i in self.kept.tolist())
        return LabelledPass(self.kept_rows, names, replay.start_ns[self.kept], replay.duration_ns[self.kept])


@dataclass(frozen=True)
class LabelledPass:
    """The kernels, copies and memsets of one pass: row, name, start and duration of each."""

    rows: tuple[str, ...]
    names: tuple[str, ...]
    start_ns: NDArray[np.int64]
    duration_ns: NDArray[np.int64]

    @property
    def total_ns(self) -> int:
        return int(self.duration_ns.sum())

    @property
    def end_ns(self) -> int:
        """End of the last kernel to end."""
        return int((self.start_ns + self.duration_ns).max())

    def row_ns(self) -> dict[str, int]:
        """Row -> sum of its durations, in the order in which rows first occur."""
        names = tuple(dict.fromkeys(self.rows))
        place = {row: i for i, row in enumerate(names)}
        sums = np.zeros(len(names), dtype=np.int64)
        np.add.at(sums, [place[row] for row in self.rows], self.duration_ns)
        return dict(zip(names, sums.tolist(), strict=True))

    def row_kernels(self) -> dict[str, list[str]]:
        """Row -> names of what it launched, in that order."""
        kernels: dict[str, list[str]] = {}
        for row, name in zip(self.rows, self.names, strict=True):
            kernels.setdefault(row, []).append(name)
        return kernels

    @property
    def overlap(self) -> float:
        """Share of the summed durations in which another kernel of the pass ran as well: 0 if none ran side by side."""
        total = self.total_ns
        if not total:
            return 0.0
        order = np.argsort(self.start_ns, kind="stable")
        start, end = self.start_ns[order], (self.start_ns + self.duration_ns)[order]
        before = np.maximum.accumulate(end)[:-1]
        side_by_side = np.clip(np.minimum(before, end[1:]) - start[1:], 0, None).sum()
        return float(side_by_side) / total


class ReplayRecorder(Protocol):
    """A way to record what the device does in replays of graphs.

    concurrent: whether passes may be captured while replays are recorded; otherwise
    captures inside `recording` would be recorded as well.
    """

    concurrent: bool

    def recording(self) -> AbstractContextManager[None]:
        """Context of replays. When it ends, the device has run them."""
        ...

    def graph_id(self, graph: Any) -> int:
        """A number that tells this torch.cuda.CUDAGraph from others."""
        ...

    def read(self, launched: Sequence[int]) -> list[Replay | None]:
        """The replays since the last call, one for each launch.

        launched: ids of the graphs that were launched since, in order. None stands for a replay with missing records.
        """
        ...

    def close(self) -> None: ...
