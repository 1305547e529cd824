"""What a serving step is: one forward pass to be timed, and the key of everything that is known about it.

Imports no torch. A step has one sequence or many; each feeds some tokens and has a history, the tokens that are in its
KV cache before the pass. `key_of` and `record_of` say how files name a point, and nothing else does.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

KINDS = ("decode", "prefill", "chunk", "batch", "mixed")
"""What points are, in the order in which they are measured. Of one sequence: `decode` feeds one token on a history,
`prefill` has no history, `chunk` feeds several tokens on one. Of several: `batch` if all are of one length, else
`mixed`."""

Lengths = tuple[int, int]
"""(tokens fed, history) of one sequence."""


@dataclass(frozen=True, order=True, init=False, slots=True)
class SweepPoint:
    """The sequences of one forward pass.

    SweepPoint(n, k) feeds n tokens on a history of k, SweepPoint(n, k, b) has b such sequences, and SweepPoint.of takes
    sequences of any lengths. groups: (tokens, history, how many sequences), sorted, each length once, so that the same
    step is the same point however it was made. Both raise ValueError where there is no sequence, or one without tokens,
    and TypeError for what is no whole number.
    """

    groups: tuple[tuple[int, int, int], ...]

    def __init__(self, input_len: int, kv_len: int, batch: int = 1) -> None:
        object.__setattr__(self, "groups", (_group(input_len, kv_len, batch),))

    @classmethod
    def of(cls, sequences: Iterable[Lengths] | Mapping[Lengths, int]) -> "SweepPoint":
        """The point of these (tokens, history), in any order; of a mapping, as many of each as it says."""
        groups = sorted(_group(*lengths, count) for lengths, count in Counter(sequences).items())
        if not groups:
            raise ValueError("a point needs a sequence")
        point = cls(*groups[0])
        object.__setattr__(point, "groups", tuple(groups))
        return point

    @property
    def kind(self) -> str:
        """One of KINDS. (1, 0) is the first prefill and the first decode step, and counts as prefill."""
        tokens, history, batch = self.groups[0]
        if len(self.groups) > 1:
            return "mixed"
        if batch > 1:
            return "batch"
        if history == 0:
            return "prefill"
        return "decode" if tokens == 1 else "chunk"

    @property
    def is_flat(self) -> bool:
        """Whether this is a prefill or a decode step of one sequence, which (input, kv_cache) tell from all others."""
        return self.kind in ("prefill", "decode")

    @property
    def input_len(self) -> int:
        """Tokens fed of each sequence. Raises ValueError where sequences are of different lengths."""
        return self._only_group()[0]

    @property
    def kv_len(self) -> int:
        """Tokens in the KV cache of each sequence before the pass. Raises ValueError as `input_len` does."""
        return self._only_group()[1]

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return sum(count for _tokens, _history, count in self.groups)

    @property
    def sequences(self) -> tuple[Lengths, ...]:
        """(tokens, history) of each sequence, sorted."""
        return tuple((tokens, history) for tokens, history, count in self.groups for _ in range(count))

    @property
    def tokens(self) -> int:
        """Tokens fed of all sequences together."""
        return sum(tokens * count for tokens, _history, count in self.groups)

    @property
    def history(self) -> int:
        """Tokens in the KV caches of all sequences together before the pass."""
        return sum(history * count for _tokens, history, count in self.groups)

    @property
    def cache_len(self) -> int:
        """Tokens in the KV caches of all sequences together after the pass."""
        return self.tokens + self.history

    @property
    def total_len(self) -> int:
        """Tokens that the attention of the longest sequence covers: its history, and those fed."""
        return max(tokens + history for tokens, history, _count in self.groups)

    def _only_group(self) -> tuple[int, int, int]:
        if len(self.groups) > 1:
            raise ValueError(f"{self}: they are not of one length")
        return self.groups[0]

    def __str__(self) -> str:
        if len(self.groups) > 1:
            return f"{self.batch} sequences of input {self.tokens}, kv_cache {self.history} in all"
        tokens, history, batch = self.groups[0]
        return f"input {tokens}, kv_cache {history}" + (f", batch {batch}" if batch > 1 else "")


def _group(tokens: int, history: int, count: int) -> tuple[int, int, int]:
    tokens, history, count = index(tokens), index(history), index(count)
    if tokens < 1 or history < 0 or count < 1:
        raise ValueError(f"input {tokens}, kv_cache {history}, batch {count}: must be at least 1, 0 and 1")
    return tokens, history, count


def canonical_order(point: SweepPoint) -> tuple[int, list[tuple[int, int, int]]]:
    """Sorting key of points in files: by batch, then by history, then by tokens fed."""
    return point.batch, [(history, tokens, count) for tokens, history, count in point.groups]


KEY_COLUMNS = ("input", "kv_cache", "batch")
"""What files call the tokens fed of each sequence, its history, and how many there are, where all have one length."""

SEQUENCES = "sequences"
"""What files call the list of [tokens, history, number of such sequences] where lengths differ."""


def key_of(point: SweepPoint) -> list[Any]:
    """A point in short, as JSON: [tokens, history, batch], or a list of such where lengths differ."""
    groups = [list(group) for group in point.groups]
    return groups if len(groups) > 1 else groups[0]


def point_of_key(key: Sequence[Any]) -> SweepPoint:
    """The point that `key_of` named. Raises ValueError and TypeError for what is none."""
    if not all(isinstance(group, Sequence) for group in key):
        return SweepPoint(*key)
    counts: Counter[Lengths] = Counter()
    for tokens, history, count in key:
        counts[tokens, history] += count
    return SweepPoint.of(counts)


def record_of(point: SweepPoint) -> dict[str, Any]:
    """A point by the names that files have, as JSON: KEY_COLUMNS, or SEQUENCES where lengths differ."""
    key = key_of(point)
    return {SEQUENCES: key} if point.kind == "mixed" else dict(zip(KEY_COLUMNS, key, strict=True))


def point_of_record(record: Mapping[str, Any]) -> SweepPoint:
    """The point that `record_of` named; a record may hold more. Raises ValueError, TypeError and KeyError for none."""
    sequences = record.get(SEQUENCES)
    return point_of_key([record[name] for name in KEY_COLUMNS] if sequences is None else sequences)
