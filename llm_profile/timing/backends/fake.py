"""A device whose times come from a formula, the same ones each time, without waiting. For tests and demonstrations.

Its tables say `fake` as their clock, and validation refuses them.
"""

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llm_profile.block_kinds import BlockKind
from llm_profile.compositions import is_sampled
from llm_profile.measurement import PointFailure, PointSample, RowSample, StoppingRule
from llm_profile.points import SweepPoint, key_of

KIND = "block"

ROWS: dict[str, tuple[bool, float, float, float]] = {
    # row -> (whether it is in a block, ns per pass, ns per input token, ns per cached token), in the order of a pass
    "embedding": (False, 2_000, 4, 0),
    "model_other": (False, 6_000, 5, 0),
    "input_layernorm": (True, 3_000, 9, 0),
    "q_proj": (True, 13_000, 40, 0),
    "k_proj": (True, 7_000, 10, 0),
    "v_proj": (True, 7_000, 10, 0),
    "rope": (True, 6_000, 30, 0),
    "attn_other": (True, 2_000, 8, 0),
    "attn": (True, 5_000, 50, 3),
    "o_proj": (True, 13_000, 40, 0),
    "block_other": (True, 1_500, 6, 0),
    "post_layernorm": (True, 3_000, 9, 0),
    "gate_proj": (True, 30_000, 140, 0),
    "act_fn": (True, 2_000, 10, 0),
    "up_proj": (True, 30_000, 140, 0),
    "mlp_other": (True, 1_500, 10, 0),
    "down_proj": (True, 30_000, 140, 0),
    "final_layernorm": (False, 3_000, 9, 0),
    "lm_head": (False, 240_000, 1_200, 0),
}

SAMPLER_ROWS: dict[str, tuple[bool, float, float, float]] = {
    "sampler_greedy": (False, 9_000, 700, 0),
    "sampler_temperature": (False, 14_000, 2_300, 0),
}
"""The same of rows that only points of `--axes per-sequence` have."""

NOISE = 0.004
"""Standard deviation of a row over passes, relative to its time; about that of an otherwise idle GPU."""


def row_ns(row: str, point: SweepPoint) -> float:
    """Nanoseconds of a row (of one block) at a point by the formula, without noise."""
    _, base, per_input, per_cached = (ROWS | SAMPLER_ROWS)[row]
    return base + per_input * point.tokens + per_cached * point.history


def rows_at(point: SweepPoint) -> list[str]:
    """The rows of a pass."""
    return [*ROWS, *(SAMPLER_ROWS if is_sampled(point) else ())]


class FakeBackend:
    """A `Backend` with made-up times.

    num_layers: blocks of the full model. profiled: blocks that are kept. delay_s: seconds to wait at each point.
    out_of_memory_at: points of this total length and above fail.
    """

    clock = "fake"
    learned_positions: int | None = None
    most_cached: int | None = None

    def __init__(
        self, num_layers: int = 32, profiled: int = 1, delay_s: float = 0.0, out_of_memory_at: int | None = None
    ) -> None:
        self.kinds: Sequence[BlockKind] = (
            BlockKind(KIND, num_layers, tuple(range(num_layers)), tuple(range(profiled))),
        )
        self.block_rows = {row: KIND for row, (in_block, *_) in ROWS.items() if in_block}
        self.notices = ["--device fake: times come from a formula, nothing is measured"]
        self._profiled = profiled
        self._delay_s = delay_s
        self._out_of_memory_at = out_of_memory_at

    def conditions(self) -> Mapping[str, Any]:
        return {"gpu": "fake", "num_layers": self._profiled}

    def facts(self) -> Mapping[str, Any]:
        return {}

    def sample(
        self, points: Iterable[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        for point in points:
            time.sleep(self._delay_s)
            if self._out_of_memory_at is not None and point.total_len >= self._out_of_memory_at:
                yield PointFailure(point, "out of memory")
                continue
            yield self._sample(point, rule)

    def close(self) -> None:
        pass

    def _sample(self, point: SweepPoint, rule: StoppingRule) -> PointSample:
        chance = random.Random(" ".join(map(str, key_of(point))))
        passes: list[dict[str, int]] = []
        while wanted := rule.passes_wanted([sum(p.values()) for p in passes]):
            passes += [self._one_pass(point, chance) for _ in range(wanted)]
        rows = {}
        for row in rows_at(point):
            pass_ns = tuple(p[row] for p in passes)
            rows[row] = RowSample(pass_ns, self._blocks(row), 1, (f"fake_{row}",))
        return PointSample(point, rows, tuple(sum(p.values()) for p in passes), "fake", 1980.0)

    def _blocks(self, row: str) -> int:
        return self._profiled if row in self.block_rows else 1

    def _one_pass(self, point: SweepPoint, chance: random.Random) -> dict[str, int]:
        return {
            row: round(self._blocks(row) * row_ns(row, point) * (1 + NOISE * chance.gauss(0, 1)))
            for row in rows_at(point)
        }
