"""Attention of the steps that simulators ask for: as measured, as fitted, or composed. No torch.

Where a table has measured compositions (`--axes`), the others are filled in by the model that is fitted to them
(serving/step_model.py). A sweep of one sequence has prompts without a history and decode steps only. What such a table
lacks is composed:

* A token in a KV cache adds `token_ns` to a decode step, the slope of the measured ones.
* n decode steps on caches of one length are one of them as measured, and `token_ns` for each token in the caches of the
  others.
* A chunk on a history is the prompt of its length, and for each token of the history the larger of `token_ns`, which
  reads it, and `pair_ns` for each token of the chunk, which computes with it. `pair_ns` is the time of long prompts
  over their pairs of a query and a key.
* A chunk and decode steps together are the sum of both.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.records import FILLED
from llm_profile.serving.curve import LengthCurve
from llm_profile.serving.step_model import ATTENTION, ATTENTION_OTHER, FEWEST_COMPOSITIONS, StepModel, compositions_of
from llm_profile.store.table import LatencyTable

COMPOSED, EXTRAPOLATED = "composed", "extrapolated"
"""Sources of a time beside those of records: composed as said above, the latter of lengths beyond the table's."""

COMPOSED_STEPS = (
    "attention of several decodes, of chunks on a history and of both together is composed of steps of one sequence: "
    "steps of 4 to 64 decodes on an H200 came within 11 % of real ones, and up to 22 % below where heads share no keys "
    "(docs/results.md)"
)
"""What has to be known of such times."""


@dataclass(frozen=True)
class AttentionTime:
    """Attention of one block in a step. source: MEASURED of records, FILLED of records or of the fitted model,
    COMPOSED or EXTRAPOLATED."""

    attention_ns: float
    other_ns: float
    source: str


class StepAttention:
    """Attention at any step of up to one prompt and any number of decode steps, from one table.

    Raises UsageError for a table with fewer than two prompts or two decode steps of one sequence.
    """

    def __init__(self, table: LatencyTable) -> None:
        prompts = {point.input_len: point for point in table.points() if point.kind == "prefill"}
        decodes = {point.kv_len: point for point in table.points() if point.kind == "decode"}
        for phase, points in (("prompts", prompts), ("decode steps", decodes)):
            if len(points) < 2:
                raise UsageError(
                    f"{table.model} on {table.hardware}: attention needs two {phase} of one sequence or more, and the "
                    f"table has {len(points)}; measure them with run_profile.py --append --mode both"
                )
        self._records = table.records
        self._fitted = StepModel.fit(table) if len(compositions_of(table)) >= FEWEST_COMPOSITIONS else None
        self._prompt = self._curve(ATTENTION, prompts)
        self._decode = self._curve(ATTENTION, decodes)
        self._other = self._curve(ATTENTION_OTHER, prompts)
        self.token_ns = self._decode.slope_ns
        self.pair_ns = self._prompt.pair_ns

    @property
    def notes(self) -> list[str]:
        """What has to be known of times that were not measured."""
        if self._fitted is None:
            return [COMPOSED_STEPS]
        errors = [f"{kind}: {held_out}" for kind, held_out in self._fitted.held_out_attention().items()]
        count = len(self._fitted.compositions)
        return [f"attention is filled in from {count} measured compositions; held out, {'; '.join(errors)}"]

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt of the table."""
        return self._prompt.longest

    @property
    def longest_cache(self) -> int:
        """Tokens in the longest KV cache of a decode step of the table."""
        return self._decode.longest

    def at(self, chunk: int = 0, history: int = 0, decodes: int = 0, cache: int = 0) -> AttentionTime:
        """A step of `chunk` tokens of one sequence on `history`, and `decodes` sequences with `cache` tokens each.

        Raises ValueError if both are none.
        """
        sequences = [(chunk, history)] * (chunk > 0) + [(1, cache)] * decodes
        point = SweepPoint.of(sequences)
        if point in self._records:
            return AttentionTime(
                self._row(ATTENTION, point), self._row(ATTENTION_OTHER, point), self._records[point].source
            )
        if self._fitted is not None:
            attention_ns, other_ns = (self._fitted.row_ns(row, point) for row in (ATTENTION, ATTENTION_OTHER))
            return AttentionTime(attention_ns, other_ns, FILLED if self._fitted.reaches(point) else EXTRAPOLATED)
        attention_ns = self._chunk_ns(chunk, history) + self._decodes_ns(decodes, cache)
        beyond = chunk > self.longest_prompt or max(history, cache) > self.longest_cache
        return AttentionTime(attention_ns, self._other.at(chunk + decodes), EXTRAPOLATED if beyond else COMPOSED)

    def _chunk_ns(self, chunk: int, history: int) -> float:
        if not chunk:
            return 0.0
        point = SweepPoint(chunk, history)
        if point in self._records:
            return self._row(ATTENTION, point)
        return self._prompt.at(chunk) + history * max(self.token_ns, chunk * self.pair_ns)

    def _decodes_ns(self, decodes: int, cache: int) -> float:
        if not decodes:
            return 0.0
        point = SweepPoint(1, cache, decodes)
        if point in self._records:
            return self._row(ATTENTION, point)
        return self._decode.at(cache) + (decodes - 1) * cache * self.token_ns

    def _row(self, row: str, point: SweepPoint) -> int:
        """A row that launched nothing took no time."""
        found = self._records[point].rows.get(row)
        return found.measurement.latency_ns if found else 0

    def _curve(self, row: str, points: Mapping[int, SweepPoint]) -> LengthCurve:
        lengths = sorted(points)
        return LengthCurve(np.array(lengths), np.array([self._row(row, points[length]) for length in lengths]))
