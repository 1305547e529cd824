"""Where the tokens of a packed pass lie: in the row of inputs, and in the KV cache, which holds all sequences."""

from functools import cached_property

import numpy as np
import torch

from llm_profile.points import SweepPoint


class PackedLayout:
    """The tensors that a packed pass of a point needs beside inputs and cache, all on one device.

    The cache holds history and new tokens of one sequence after the other, without gaps. total: of all sequences.
    positions, slots: [tokens], the place of each new token in its sequence, and in the cache. last: [n], the place of
    each sequence's last token in the row of inputs. starts_q, starts_kv: int32 [n + 1], where each sequence starts in
    the row of inputs and in the cache, then the end. longest_q, longest_kv: of any sequence.
    """

    def __init__(self, point: SweepPoint, device: torch.device) -> None:
        fed, history = np.array(point.sequences).T  # each [n]
        self.point, self.device = point, device
        self.sequences, self.tokens, self.total = point.batch, point.tokens, point.cache_len
        self.longest_q, self.longest_kv = int(fed.max()), int((fed + history).max())
        starts_q, starts_kv = _starts(fed), _starts(fed + history)
        place = np.arange(point.tokens) - np.repeat(starts_q[:-1], fed)  # of a new token among those of its sequence
        positions = np.repeat(history, fed) + place
        self._fed, self._history, self._starts = fed, history, (starts_q, starts_kv)
        self.positions = self._tensor(positions)
        self.slots = self._tensor(np.repeat(starts_kv[:-1], fed) + positions)
        self.last = self._tensor(starts_q[1:] - 1)
        self.starts_q, self.starts_kv = self._tensor(starts_q).int(), self._tensor(starts_kv).int()

    @property
    def is_even_decode(self) -> bool:
        """Whether each sequence feeds one token on a history of the same length."""
        return len(self.point.groups) == 1 and self.longest_q == 1

    @cached_property
    def padded(self) -> "Padding":
        """The same sequences, all made as long as the longest."""
        rows = np.minimum(np.arange(self.longest_q), self._fed[:, None] - 1)  # [n, longest_q]
        columns = np.minimum(np.arange(self.longest_kv), (self._fed + self._history)[:, None] - 1)  # [n, longest_kv]
        starts_q, starts_kv = self._starts
        kept = np.flatnonzero(np.arange(self.longest_q) < self._fed[:, None])  # [tokens]
        return Padding(
            self._tensor(starts_q[:-1, None] + rows),
            self._tensor(starts_kv[:-1, None] + columns),
            self._tensor(kept),
            self._tensor(self._history[:, None] + rows),
        )

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(self.device)


class Padding:
    """Sequences of a packed pass, filled up to the longest by repeating their last token, which no query may see.

    queries: [n, longest_q], keys: [n, longest_kv], places in the row of inputs and in the cache. kept: [tokens], the
    places of the real queries among all of them.
    """

    def __init__(self, queries: torch.Tensor, keys: torch.Tensor, kept: torch.Tensor, positions: torch.Tensor) -> None:
        self.queries, self.keys, self.kept = queries, keys, kept
        self._positions = positions  # of each query in its sequence, [n, longest_q]
        self._masks: dict[int | None, torch.Tensor] = {}

    def mask(self, window: int | None) -> torch.Tensor:
        """Which keys each query sees, [n, 1, longest_q, longest_kv]: at most `window` up to its own; None for all."""
        if window not in self._masks:
            behind = self._positions[:, :, None] - torch.arange(self.keys.shape[1], device=self.keys.device)
            seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
            self._masks[window] = seen[:, None]
        return self._masks[window]


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where each of these lengths starts when they follow one another, then the end."""
    return np.concatenate([[0], np.cumsum(lengths)])
