"""Which shapes are measured: sweep points, their grids, and what is left to do. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from llm_profile.errors import UsageError

Pair = tuple[int, int]
"""(input length, output length) of one request, in tokens."""


@dataclass(frozen=True, order=True)
class SweepPoint:
    """One forward pass to be timed, and the key of everything that is known about it.

    input_len: tokens fed in this pass. kv_len: tokens in the KV cache before it. batch: sequences in the pass.
    """

    input_len: int
    kv_len: int
    batch: int = 1

    @property
    def phase(self) -> str:
        """`prefill` (empty cache) or `decode`. (1, 0) belongs to both and counts as prefill."""
        return "prefill" if self.kv_len == 0 else "decode"

    @property
    def total_len(self) -> int:
        """Tokens that attention covers: the cache before the pass and the pass's own."""
        return self.input_len + self.kv_len

    def __str__(self) -> str:
        return f"input {self.input_len}, kv_cache {self.kv_len}"


def every(step: int, first: int, last: int) -> list[int]:
    """`first`, then each multiple of `step`, then `last`: the ends always belong to a grid."""
    multiples = range(((first + step - 1) // step) * step, last + 1, step)
    return sorted({first, last, *multiples})


@dataclass(frozen=True)
class Sweep:
    """The lengths a user asked for.

    grid: `full`, every length is measured; `adaptive`, a part of them, and the others are interpolated.
    mode: `prefill`, `decode` or `both`. prefill: inputs 1..prefill_max by prefill_step, empty cache.
    decode: one token on a cache of 0..decode_max by decode_step; kv_cache 0 is the prefill pass of one token.
    """

    mode: str = "both"
    prefill_max: int = 2048
    decode_max: int = 2048
    prefill_step: int = 1
    decode_step: int = 1
    grid: str = "full"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"--mode {self.mode}: not a mode; choose one of {', '.join(MODES)}")
        if self.grid not in GRID_NAMES:
            raise UsageError(f"--grid {self.grid}: not a grid; choose one of {', '.join(GRID_NAMES)}")
        for option in ("prefill_max", "decode_max", "prefill_step", "decode_step"):
            value = getattr(self, option)
            if value < 1:
                raise UsageError(f"--{option.replace('_', '-')} {value}: must be a whole number of at least 1")

    def points(self) -> list[SweepPoint]:
        """Every point of the sweep in canonical order: prefill by input length, then decode by cache length."""
        points: list[SweepPoint] = []
        if self.mode in ("prefill", "both"):
            points += [SweepPoint(n, 0) for n in every(self.prefill_step, 1, self.prefill_max)]
        if self.mode in ("decode", "both"):
            points += [SweepPoint(1, k) for k in every(self.decode_step, 0, self.decode_max)]
        return list(dict.fromkeys(points))  # (1, 0) belongs to both


MODES = ("prefill", "decode", "both")

GRID_NAMES = ("full", "adaptive")


@dataclass(frozen=True)
class Plan:
    """What a run will do. unrunnable: points that must not run on this model, with the reason."""

    points: tuple[SweepPoint, ...]
    unrunnable: dict[SweepPoint, str]

    def left(self, known: Iterable[SweepPoint]) -> list[SweepPoint]:
        """The points still to be measured when those in `known` are done, in canonical order."""
        done = set(known)
        return [p for p in self.points if p not in done and p not in self.unrunnable]


def plan(sweep: Sweep, learned_positions: int | None = None) -> Plan:
    """Lay out a sweep. `learned_positions`: length of the model's learned position table, None for any other model.

    A pass beyond a learned table reads past its end, which kills the CUDA context: such points are never run.
    """
    points = tuple(sweep.points())
    unrunnable: dict[SweepPoint, str] = {}
    if learned_positions is not None:
        unrunnable = {
            p: f"beyond the model's {learned_positions} learned positions"
            for p in points
            if p.total_len > learned_positions
        }
    return Plan(points, unrunnable)
