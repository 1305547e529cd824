"""Steps of the real model that are timed: what a process gives, and what validation needs. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llm_profile.points import SweepPoint

Step = tuple[SweepPoint, int]
"""A step and its wall time in nanoseconds."""


class Steps(Protocol):
    """Steps of one model in one process. `prepare` first: it runs each length once, as first uses are slow.

    Lengths that do not fit in memory are left out.
    """

    def prepare(self, input_lens: Sequence[int], windows: Sequence[Sequence[int]]) -> None: ...

    def round(self) -> Iterator[Step]:
        """Each prompt and each decode step that was prepared, once."""
        ...

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[tuple[SweepPoint, tuple[int, ...]]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class StepTimes:
    """Wall time of one real step, a value per repeat. lm_head of the last token only, as `generate` runs it.

    process: number of the process that timed it.
    """

    point: SweepPoint
    wall_ns: tuple[int, ...]
    process: int = 0


class Reality(Protocol):
    """Times real steps of the model at the asked depth, for validation. Steps that do not fit in memory are left out.

    Steps run in one or more processes; each yields its own StepTimes. notices: what makes the times doubtful, a line
    each. seconds: how long each part of the work took.
    """

    runtime: str
    notices: list[str]
    seconds: dict[str, float]

    def steps(self, input_lens: Sequence[int], windows: Sequence[Sequence[int]], repeat: int) -> Iterator[StepTimes]:
        """Time prompts of `input_lens` tokens, points (n, 0), and decode steps of one token, points (1, k).

        windows: runs of consecutive cache lengths k; some lengths of a window may stand for all of it. Each length
        runs once before it is timed, then in each of `repeat` rounds over all lengths in every process.
        """
        ...

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        """Decode steps of `point.batch` sequences, all with caches of one length. Call it after `steps`."""
        ...

    def close(self) -> None: ...
