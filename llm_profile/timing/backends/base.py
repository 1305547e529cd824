"""The interface of a way of timing. Each implementation is a file beside this one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from llm_profile.block_kinds import BlockKind
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.points import SweepPoint

GRAPHS = 3
"""CUDA graphs that the pass of each point is captured in. Each has its own activations and weights in device memory,
and the replays of the point are divided evenly among them.

How long a kernel takes depends on where in memory its tensors lie. On an H200, kernels below 5 us differed among 16
graphs of one pass by 2 (median) to 9 % (standard deviation), in the same way in each round of replays. Between two
processes, 98.5 % of prefill rows agreed within 5 % or 100 ns if all graphs had the same weights, with 4 graphs and with
8; with 4 graphs that had weights of their own, 99.9 % did. With 3 graphs instead of 4 and as many passes, rows differ
from those of a hundred passes by 0.03 to 0.16 % more (median).
"""


class Backend(Protocol):
    """Times passes of a model with few blocks.

    clock: what the nanoseconds of its rows are: `gpu-kernel`, `cpu-wall` or `fake`. kinds: the model's kinds of
    blocks. block_rows: row -> kind of block, for rows of blocks; the other rows are those of the model.
    learned_positions: length of the model's learned position table, None if it has none. most_cached: tokens of all
    sequences that the cache of packed passes has memory for, None for no limit. notices: what the user should know, a
    line each. conditions: what must be the same in all runs that add to one table. facts: what is recorded of a
    run and may differ. Both are JSON values by name.
    """

    clock: str
    kinds: Sequence[BlockKind]
    block_rows: dict[str, str]
    learned_positions: int | None
    most_cached: int | None
    notices: list[str]

    def conditions(self) -> Mapping[str, Any]: ...

    def facts(self) -> Mapping[str, Any]: ...

    def sample(
        self, points: Iterable[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        """Measure points and yield the result of each as soon as it is known: each once, in any order.

        points: taken a few at a time, so that others may take from the same ones meanwhile.
        rule: when a point has enough passes. warmup: most passes of a point before those that count.
        """
        ...

    def close(self) -> None: ...
