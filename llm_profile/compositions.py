"""`--axes`: the compositions of serving steps that are measured beside the flat sweep. Imports no torch.

A composition is a pass of several sequences, packed as serving engines run it: batches of decode steps (`decode`),
prompts and chunks of prompts (`chunk`), both together (`mixed`), and the head and samplers of n sequences
(`per-sequence`). The lengths of an axis are no product grid: they are spread over its range by a Halton sequence, with
the corners of the range first. So few of them fill it evenly, and they are the same ones in each run.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from llm_profile.points import Lengths, SweepPoint

MOST_SEQUENCES = 256
"""Sequences of the largest batch: what serving engines take by default (vLLM's `max_num_seqs`)."""

LONGEST_HISTORY = 16_384
"""Longest history of a sequence, in tokens, where the model has positions for it."""

SHORTEST = 16
"""Fewest tokens of a chunk, and of a history."""

LONGEST_CHUNK = 2048
MOST_TOKENS = 8192
"""Tokens fed in a pass, all sequences together: what serving engines take at most by default."""

MOST_CHUNKS = 4
"""Chunks in a mixed step."""

FEW_LENGTHS = 8
"""Different histories among the decode steps of a mixed pass."""

HALTON_BASES = (2, 3, 5, 7, 11, 13)
"""Of the Halton sequence, one for each number that a composition is made of."""

Numbers = tuple[float, ...]
"""A point of the Halton sequence, each number in [0, 1)."""

HELD_OUT_FROM = 1000
"""Number in the Halton sequence of the first held-out composition, behind all that are measured."""


class Axis(NamedTuple):
    """number: of compositions that are measured. of: longest sequence -> the corners, and what makes any other one."""

    number: int
    of: Callable[[int], tuple[list[SweepPoint], Callable[[Numbers], SweepPoint]]]


def axis_points(axes: Iterable[str], longest: int) -> list[SweepPoint]:
    """The compositions of these axes, each once, in a fixed order. longest: most tokens of a sequence."""
    return list(_axis_points(tuple(axes), longest))


@lru_cache
def _axis_points(axes: tuple[str, ...], longest: int) -> tuple[SweepPoint, ...]:
    return tuple(dict.fromkeys(point for axis in axes for point in _of_axis(AXES[axis], longest)))


def held_out(axis: str, longest: int, count: int, most_cached: int) -> list[SweepPoint]:
    """Compositions of an axis that no sweep measures, of at most `most_cached` tokens in the caches of all sequences.

    They are further points of the Halton sequence. Fewer than `count` where the range has no more.
    """
    measured = set(axis_points([axis], longest))
    numbers = range(HELD_OUT_FROM, HELD_OUT_FROM + 100 * count)
    make = AXES[axis].of(longest)[1]
    found = (point for number in numbers if (point := make(halton(number))) not in measured)
    return list(dict.fromkeys(point for point in found if point.cache_len <= most_cached))[:count]


def is_sampled(point: SweepPoint) -> bool:
    """Whether a composition is one of `per-sequence`, whose pass ends with samplers."""
    return point.kind == "batch" and (point.input_len, point.kv_len) == (1, 0)


def halton(number: int) -> Numbers:
    """A point of the Halton sequence, by its number from 1 on (Halton 1960)."""
    return tuple(_radical_inverse(number, base) for base in HALTON_BASES)


def _radical_inverse(number: int, base: int) -> float:
    value, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        value += digit * scale
    return value


def _between(share: float, least: int, most: int) -> int:
    """A whole number from `least` to `most`, as far along as `share` says, on a logarithmic scale."""
    most = max(least, most)
    return min(most, round(math.exp(math.log(least) + share * (math.log(most + 1) - math.log(least)))))


def _of_axis(axis: Axis, longest: int) -> list[SweepPoint]:
    """The corners, then further points up to the axis' number of them; fewer where a short range has no more."""
    corners, make = axis.of(longest)
    found = dict.fromkeys(corners)
    for index in range(1, 4 * axis.number):
        if len(found) >= axis.number:
            break
        found[make(halton(index))] = None
    return [point for point in found if not point.is_flat]  # a model of two positions has such


def _decode(longest: int) -> tuple[list[SweepPoint], Callable[[Numbers], SweepPoint]]:
    """One token of each of n sequences of one history. One sequence alone is a decode step of the flat sweep."""
    history = max(1, min(LONGEST_HISTORY, longest - 1))
    least = min(SHORTEST, history)
    corners = [SweepPoint(1, end, n) for n in (2, MOST_SEQUENCES) for end in (least, history)]

    def make(at: Numbers) -> SweepPoint:
        return SweepPoint(1, _between(at[1], least, history), _between(at[0], 2, MOST_SEQUENCES))

    return corners, make


def _chunk(longest: int) -> tuple[list[SweepPoint], Callable[[Numbers], SweepPoint]]:
    """Several tokens of a prompt on what of it is in the cache, and prompts without a history, several at once."""
    most = max(1, min(LONGEST_CHUNK, longest - 1))
    least = min(SHORTEST, most)

    def of(tokens: int, history: int, count: int) -> SweepPoint:
        history = min(history, LONGEST_HISTORY, longest - tokens)
        count = max(1, min(count, MOST_TOKENS // tokens))
        return SweepPoint(tokens, history, max(2, count) if history == 0 else count)

    corners = [of(tokens, history, n) for tokens in (least, most) for history in (0, longest) for n in (1, 16)]

    def make(at: Numbers) -> SweepPoint:
        tokens = _between(at[0], least, most)
        history = 0 if at[2] < 0.25 else _between(at[1], least, longest - tokens)
        count = 1 if at[3] < 0.4 else _between(at[4], 2, 16)
        return of(tokens, history, count)

    return corners, make


def _mixed(longest: int) -> tuple[list[SweepPoint], Callable[[Numbers], SweepPoint]]:
    """Chunks and decode steps together, or decode steps alone whose histories differ, alike or few long among short."""
    most = max(1, min(LONGEST_CHUNK, longest - 1))
    history = max(1, min(LONGEST_HISTORY, longest - 1))
    least = min(SHORTEST, history)
    shortest = min(2 * least, history)

    def of(chunks: int, tokens: int, past: int, decodes: int, kv_len: int, skew: bool) -> SweepPoint:
        counts: Counter[Lengths] = Counter(_histories(decodes, kv_len, least, skew))
        counts[tokens, min(past, longest - tokens)] += chunks
        return SweepPoint.of(+counts)

    corners = [
        of(1, tokens, past, decodes, kv_len, skew=False)
        for tokens, past in ((min(SHORTEST, most), 0), (most, 0), (most, history // 2))
        for decodes in (1, MOST_SEQUENCES - 1)
        for kv_len in (shortest, history)
    ]

    def make(at: Numbers) -> SweepPoint:
        chunks = int(at[3] * (MOST_CHUNKS + 1))
        tokens = _between(at[1], min(SHORTEST, most), most)
        past = 0 if at[5] < 0.5 else _between(2 * at[5] - 1, least, history)
        return of(chunks, tokens, past, _between(at[0], 2, 252), _between(at[2], shortest, history), at[4] < 0.5)

    return corners, make


def _histories(decodes: int, kv_len: int, least: int, skew: bool) -> Iterator[Lengths]:
    """Decode steps with histories up to `kv_len`: from a third of it on; or one long in eight, the others short."""
    for number in range(decodes):
        place = number % FEW_LENGTHS
        if skew:
            yield (1, kv_len if place == 0 else min(kv_len, least + place * kv_len // 128))
        else:
            yield (1, max(1, round(kv_len * (FEW_LENGTHS // 2 + place + 0.5) / (1.5 * FEW_LENGTHS))))


def _per_sequence(_longest: int) -> tuple[list[SweepPoint], Callable[[Numbers], SweepPoint]]:
    """One token of each of n new sequences: n rows of the head, then samplers. One alone is a point of the sweep."""
    halves = (2**power for power in range(1, MOST_SEQUENCES.bit_length()))
    steps = (3 * 2**power for power in range((MOST_SEQUENCES // 3).bit_length()))
    corners = [SweepPoint(1, 0, n) for n in sorted({*halves, *steps})]
    return corners, lambda at: SweepPoint(1, 0, _between(at[0], 2, MOST_SEQUENCES))


AXES = {
    "decode": Axis(110, _decode),
    "chunk": Axis(120, _chunk),
    "mixed": Axis(150, _mixed),
    "per-sequence": Axis(15, _per_sequence),
}
"""`--axes`, by name. Their compositions are at most 400 in all."""
