"""What a table implies: rows x block counts -> passes -> TTFT, TPOT and total of an (input, output) pair. No torch.

A pass is the model's rows once, and the rows of each kind of block times the number of such blocks. Within a pass three
sorts of rows are told apart, because consumers look them up at different points:

* `rope` and `attn` are paid once per request, at the request's own lengths;
* `lm_head` of a prompt is paid for its last token only, so a prefill pass takes it from (1, 0), unless the model's code
  can compute no fewer logits than it has tokens (`logits_to_keep` of a run is false);
* every other row is paid once per step, at the step's token count.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_profile.errors import UsageError, shown
from llm_profile.points import SweepPoint
from llm_profile.sweep import DECODE, PREFILL, SHARED_POINT, Pair, Series

if TYPE_CHECKING:
    from llm_profile.store.table import LatencyTable

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


REQUEST_ROWS = ("rope", "attn")
"""Rows that simulators add once per request; with several kinds of blocks they are called `<kind>.rope`."""

HEAD_ROW = "lm_head"


def is_request_row(row: str) -> bool:
    """Whether `row` is paid once per request rather than once per step."""
    return row.rpartition(".")[2] in REQUEST_ROWS


def is_unnamed_row(row: str) -> bool:
    """Whether `row` is what a container launches besides its layers."""
    return row.endswith("_other")


@dataclass(frozen=True)
class PairLatency:
    """One request. tpot_ns: mean of the decode steps after the first token; None where there are none (output 1)."""

    input_len: int
    output_len: int
    ttft_ns: float
    tpot_ns: float | None

    @property
    def total_ns(self) -> float:
        """Time to the last token: TTFT + (output_len - 1) x TPOT."""
        return self.ttft_ns + (self.output_len - 1) * (self.tpot_ns or 0.0)


def decode_lens(pair: Pair) -> range:
    """Cache lengths of a pair's decode steps: step j = 1..output-1 finds input + j - 1 tokens in the cache."""
    input_len, output_len = pair
    return range(input_len, input_len + output_len - 1)


def whole_pairs(pairs: Iterable[Sequence[int]]) -> list[Pair]:
    """(input, output) pairs that a caller gave, as plain whole numbers; numpy's are taken, too.

    Raises UsageError, naming it, for what is no pair of lengths of at least 1, and where there is none.
    """
    try:
        checked = [_whole_pair(pair) for pair in pairs]
    except TypeError:
        raise UsageError(f"pairs {shown(pairs)}: must be a list of (input length, output length)") from None
    if not checked:
        raise UsageError("pairs: there is none; give at least one (input length, output length)")
    return checked


def _whole_pair(pair: Sequence[int]) -> Pair:
    try:
        input_len, output_len = (index(length) for length in pair if not isinstance(length, bool))
    except (TypeError, ValueError):
        input_len = output_len = 0
    if input_len < 1 or output_len < 1:
        raise UsageError(f"pair {shown(pair)}: must be two whole numbers of tokens, input and output, of at least 1")
    return input_len, output_len


def check_pairs(pairs: Sequence[Pair], points: Iterable[SweepPoint], missing: Mapping[SweepPoint, str]) -> None:
    """Refuse pairs that a table cannot estimate, before anything runs.

    points: what the table has, or what a plan will measure. missing: points without a measurement, with the reason.
    Lengths between two points of a sparse sweep count as known, lengths beyond its ends do not.
    Raises UsageError naming the first such pair and the option to change.
    """
    known = [point for point in points if point not in missing]
    if SHARED_POINT not in known:
        reason = missing.get(SHARED_POINT, "it was not measured")
        raise UsageError(f"every estimate needs the pass at {SHARED_POINT}, which the table lacks: {reason}")
    decode_missing = set(DECODE.of(missing))
    last_input, last_kv = (series.length(series.of(known)[-1]) for series in (PREFILL, DECODE))
    for pair in pairs:
        input_len, output_len = pair
        name, steps = f"(input {input_len}, output {output_len})", decode_lens(pair)
        for point, reason in missing.items():
            if point == PREFILL.at(input_len) or (point in decode_missing and point.kv_len in steps):
                raise UsageError(
                    f"{name} needs {point}, which is missing ({reason}): lower --scaling-input-max or "
                    f"--scaling-output-max"
                )
        if input_len > last_input:
            raise UsageError(
                f"{name} needs a prefill pass of {input_len} tokens, the table ends at {last_input}: "
                f"raise --prefill-max (with --mode both or prefill) or lower --scaling-input-max"
            )
        if steps and steps[-1] > last_kv:
            raise UsageError(
                f"{name} needs a decode step at kv_cache {steps[-1]}, the table ends at {last_kv}: "
                f"raise --decode-max (with --mode both) or lower --scaling-input-max or --scaling-output-max"
            )


@dataclass(frozen=True)
class Factors:
    """Factors of a phase's rows by length, shape [lengths]. step: of rows paid per step. request: per request."""

    lens: IntArray
    step: FloatArray
    request: FloatArray


@dataclass(frozen=True)
class Passes:
    """Passes of one phase, by length. All arrays have shape [lengths], times are nanoseconds at the estimate's depth.

    lens: input lengths (prefill) or cache lengths (decode), ascending. step_ns: rows paid once per step, without
    `lm_head` where a prompt pays it for one token. head_ns: such an `lm_head`, over the pass's own tokens. request_ns:
    rows paid once per request.
    """

    lens: IntArray
    step_ns: FloatArray
    head_ns: FloatArray
    request_ns: FloatArray

    def at(self, lens: ArrayLike, values: FloatArray) -> FloatArray:
        """`values` at `lens`; between the points of a sparse sweep the two neighbours' mean by distance.

        Raises LookupError beyond the first or last known length: nothing is extrapolated.
        """
        wanted = np.asarray(lens)
        outside = wanted[(wanted < self.lens[0]) | (wanted > self.lens[-1])]
        if outside.size:
            raise LookupError(f"length {int(outside.flat[0])} lies outside the table's {self.lens[0]}..{self.lens[-1]}")
        return np.asarray(np.interp(wanted, self.lens, values), dtype=np.float64)

    def times(self, factors: Factors) -> "Passes":
        """These passes with every row multiplied by its factor."""
        step, request = factors.step, factors.request
        return Passes(self.lens, self.step_ns * step, self.head_ns * step, self.request_ns * request)


@dataclass(frozen=True)
class Estimate:
    """Every prefill and decode step of one sequence that a table implies for a model of `depth` blocks."""

    depth: int
    prefill: Passes
    decode: Passes

    @classmethod
    def of(cls, table: "LatencyTable", depth: int | None = None) -> "Estimate":
        """Add up a table's rows. depth: the model's first so many blocks; None for all of them.

        Raises UsageError for a depth that the model does not have, an unfinished table, or one without (1, 0).
        """
        full = model_depth(table)
        depth = full if depth is None else depth
        if isinstance(depth, bool) or not isinstance(depth, SupportsIndex) or not 1 <= index(depth) <= full:
            raise UsageError(f"--scaling-num-layers {shown(depth)}: the model has {full} layers; choose 1..{full}")
        if "block_rows" not in table.meta:
            raise UsageError(f"the table of {table.model} is unfinished; let run_profile.py finish it first")
        if SHARED_POINT not in table.records:
            raise UsageError(f"the table of {table.model} lacks the pass at {SHARED_POINT}, which every estimate needs")
        blocks = {kind["name"]: sum(layer < depth for layer in kind["layers"]) for kind in table.meta["kinds"]}
        head = HEAD_ROW if table.pays_one_logit else None
        weight = table.row_weights(blocks)

        def passes(series: Series) -> Passes:
            points = series.of(table.records)
            sums = np.zeros((3, len(points)))
            for column, point in enumerate(points):
                # A row that launched nothing at this point is not among its record's rows: there is nothing to add.
                for row in table.records[point].rows:
                    sort = 2 if is_request_row(row) else 1 if row == head else 0
                    sums[sort, column] += weight[row] * table.latency_ns(row, point)
            return Passes(np.array([series.length(point) for point in points], dtype=np.int64), *sums)

        return cls(depth, passes(PREFILL), passes(DECODE))

    @property
    def interpolated(self) -> bool:
        """Whether the table is sparse, so that lengths between its points are interpolated."""
        return any(bool(np.any(np.diff(passes.lens) > 1)) for passes in (self.prefill, self.decode))

    def prefill_ns(self, input_lens: ArrayLike) -> FloatArray:
        """TTFT of prompts of these lengths: passes at (n, 0), `lm_head` as prompts pay it. Shape of `input_lens`."""
        passes = self.prefill
        return passes.at(input_lens, passes.step_ns + passes.request_ns) + passes.head_ns[0]

    def decode_ns(self, kv_lens: ArrayLike) -> FloatArray:
        """Decode steps on caches of these lengths: the passes at (1, k). Shape of `kv_lens`."""
        passes = self.decode
        return passes.at(kv_lens, passes.step_ns + passes.head_ns + passes.request_ns)

    def pair(self, pair: Pair) -> PairLatency:
        """TTFT, TPOT and total of one request. Raises LookupError beyond the table."""
        steps = decode_lens(pair)
        tpot_ns = float(np.mean(self.decode_ns(np.array(steps)))) if steps else None
        return PairLatency(*pair, float(self.prefill_ns(pair[0])), tpot_ns)

    def composed_ns(self, kv_lens: ArrayLike, sequences: int = 1) -> FloatArray:
        """A decode step as simulators compose it: rows paid per step at (sequences, 0), `rope` and `attn` at (1, k)
        once per sequence. Shape of `kv_lens`. Raises LookupError beyond the table."""
        step_ns = self.prefill.at(sequences, self.prefill.step_ns + self.prefill.head_ns)
        request_ns: FloatArray = sequences * self.decode.at(kv_lens, self.decode.request_ns)
        return step_ns + request_ns

    def times(self, prefill: Factors, decode: Factors) -> "Estimate":
        """What the same table implies with its rows multiplied by these factors, which are its own lengths'."""
        return Estimate(self.depth, self.prefill.times(prefill), self.decode.times(decode))


def model_depth(table: "LatencyTable") -> int:
    """Blocks of the full model that a table stands for."""
    return sum(int(kind["count"]) for kind in table.meta["kinds"])
