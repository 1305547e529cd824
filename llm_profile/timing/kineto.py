"""Graph replays recorded by torch's profiler, in a session of its own for each reading."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from llm_profile.timing import session
from llm_profile.timing.replays import Replay
from llm_profile.timing.trace import graph_replays


class KinetoRecorder:
    """A `ReplayRecorder` by torch's profiler."""

    concurrent = False

    def __init__(self) -> None:
        self._events = session.Events()
        with session.record():
            pass  # copies in graphs captured before the first session would be recorded as kernels of another name

    @contextmanager
    def recording(self) -> Iterator[None]:
        with session.record() as self._events:
            yield

    def graph_id(self, graph: torch.cuda.CUDAGraph) -> int:
        return id(graph)

    def read(self, launched: Sequence[int]) -> list[Replay | None]:
        replays = graph_replays(self._events.read())
        if len(replays) != len(launched):  # a launch is missing, and nothing says which
            return [None] * len(launched)
        return [replay if replay.names else None for replay in replays]

    def close(self) -> None:
        self._events = session.Events()
