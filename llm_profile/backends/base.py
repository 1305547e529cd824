"""What the measuring loop needs from a device. One file beside this one per way of timing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.sweep import SweepPoint

GRAPHS = 3
"""Captures of each point that share its replays, each with activations and weights in device memory of their own.

How long a kernel takes depends on where its tensors lie. In an H200, 16 graphs of one pass differed by 2 % (standard
deviation; median kernel below 5 us) to 9 %, the same way in each round of replays. Between two processes, with the
same weights in all graphs, 98.5 % of prefill rows agreed within 5 % or 100 ns, whether of 4 graphs or of 8; of 4 with
weights of their own, 99.9 %. As many passes of 3 graphs as of 4 are off a hundred by 0.03 to 0.16 % more (median).
"""


@dataclass(frozen=True)
class BlockKind:
    """Decoder blocks that are alike. count: in the full model. layers: their original indices. profiled: kept ones."""

    name: str
    count: int
    layers: tuple[int, ...]
    profiled: tuple[int, ...]


@dataclass(frozen=True)
class StepTimes:
    """Wall time of one real step, a value per repeat. lm_head of the last token only, as `generate` runs it."""

    point: SweepPoint
    wall_ns: tuple[int, ...]


class Backend(Protocol):
    """Times passes of a model with few blocks.

    clock: `gpu-kernel`, `cpu-wall` or `fake`: what the nanoseconds of its rows are. kinds: the model's kinds of
    blocks. block_rows: row -> kind, for rows of blocks; others are the model's. learned_positions: length of a learned
    position table, None where there is none. notices: what the user should know, a line each. conditions: what must
    not differ between runs that share a table (JSON scalars). facts: what is only recorded.
    """

    clock: str
    kinds: Sequence[BlockKind]
    block_rows: dict[str, str]
    learned_positions: int | None
    notices: list[str]

    def conditions(self) -> Mapping[str, Any]: ...

    def facts(self) -> Mapping[str, Any]: ...

    def sample(
        self, points: Sequence[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        """Measure points, yielding each as soon as it is known, in any order, each exactly once."""
        ...

    def close(self) -> None: ...


class Reality(Protocol):
    """Times real steps of the model at the asked depth, for validation. Steps that do not fit in memory are left out.

    Each of `repeat` rounds goes over all lengths, so that repeats are apart in time as two runs are; lengths are warmed
    before. notices: what makes the times doubtful, a line each.
    """

    runtime: str
    notices: list[str]

    def prefill(self, input_lens: Sequence[int], repeat: int) -> Iterator[StepTimes]:
        """Time to the first token of prompts of these lengths. Yields point (n, 0)."""
        ...

    def decode(self, windows: Sequence[Sequence[int]], repeat: int) -> Iterator[StepTimes]:
        """Decode steps of one token on caches of these lengths: windows of consecutive ones. Yields point (1, k).

        Some lengths of a window may stand for all of it.
        """
        ...

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        """Decode steps of `point.batch` sequences, all with caches of one length."""
        ...

    def close(self) -> None: ...
