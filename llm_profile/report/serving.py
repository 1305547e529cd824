"""Serving steps that a table has beside prompts and decode steps of one sequence. Imports no torch."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from llm_profile.points import SweepPoint, canonical_order
from llm_profile.store.table import LatencyTable

MOST_STEPS = 50
"""Most steps of sequences of several lengths that are listed."""


@dataclass(frozen=True)
class StepGrid:
    """Steps of sequences of one length by two numbers. down, across: what they count. pass_ns: by (down, across)."""

    title: str
    down: str
    across: str
    pass_ns: Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class StepList:
    """Steps of sequences of several lengths: the first MOST_STEPS of `count`, with the time of the pass in ns."""

    count: int
    steps: tuple[tuple[str, int], ...]


def step_grids(table: LatencyTable) -> list[StepGrid]:
    """Batches by number of sequences and history, for each number of tokens fed; chunks by tokens and history."""
    chunks = {(p.input_len, p.kv_len): table.pass_ns(p) for p in _of_kind("chunk", table.records)}
    batches: dict[int, dict[tuple[int, int], int]] = {}
    for point in _of_kind("batch", table.records):
        batches.setdefault(point.input_len, {})[point.batch, point.kv_len] = table.pass_ns(point)
    grids = [
        StepGrid(f"Steps of several sequences, {tokens} new {_tokens(tokens)} each", "sequences", "history", of)
        for tokens, of in sorted(batches.items())
    ]
    if chunks:
        grids.append(StepGrid("Chunks of a prompt on a history", "tokens", "history", chunks))
    return grids


def mixed_steps(table: LatencyTable) -> StepList:
    """Steps of sequences of several lengths."""
    points = list(_of_kind("mixed", table.records))
    return StepList(len(points), tuple((str(point), table.pass_ns(point)) for point in points[:MOST_STEPS]))


def _of_kind(kind: str, points: Iterable[SweepPoint]) -> Iterator[SweepPoint]:
    return iter(sorted((point for point in points if point.kind == kind), key=canonical_order))


def _tokens(count: int) -> str:
    return "token" if count == 1 else "tokens"
