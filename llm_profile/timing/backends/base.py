"""What the measuring loop needs from a device. One file beside this one per way of timing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from llm_profile.block_kinds import BlockKind
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.points import SweepPoint

GRAPHS = 3
"""Captures of each point that share its replays, each with activations and weights in device memory of their own.

How long a kernel takes depends on where its tensors lie. In an H200, 16 graphs of one pass differed by 2 % (standard
deviation; median kernel below 5 us) to 9 %, the same way in each round of replays. Between two processes, with the
same weights in all graphs, 98.5 % of prefill rows agreed within 5 % or 100 ns, whether of 4 graphs or of 8; of 4 with
weights of their own, 99.9 %. As many passes of 3 graphs as of 4 are off a hundred by 0.03 to 0.16 % more (median).
"""


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
