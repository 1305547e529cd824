"""Which points are measured: series, the sweep that a user asked for, and what of it can run. Imports no torch."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from llm_profile.compositions import AXES, LONGEST_CHUNK, LONGEST_HISTORY, axis_points
from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint

Pair = tuple[int, int]
"""(input length, output length) of one request, in tokens."""

SHARED_POINT = SweepPoint(1, 0)
"""The pass of one token on an empty cache: the first prefill point and the first decode point."""


NUMBERS = ("input_len", "kv_len", "batch")
"""What points of one length are made of, in the order in which SweepPoint takes them."""


@dataclass(frozen=True)
class Series:
    """Points along a line: one number varies, and the others are fixed.

    start: the first point. varies: which of NUMBERS grows from there on.
    """

    start: SweepPoint
    varies: str

    @property
    def first(self) -> int:
        """The shortest length."""
        return self.length(self.start)

    def length(self, point: SweepPoint) -> int:
        """Where a point of the series lies on it: the number that varies."""
        length: int = getattr(point, self.varies)
        return length

    def at(self, length: int) -> SweepPoint:
        """The point of this length."""
        start, varies = self.start, self.varies
        return SweepPoint(*(length if name == varies else getattr(start, name) for name in NUMBERS))

    def has(self, point: SweepPoint) -> bool:
        """Whether a point lies on the series."""
        if point.kind == "mixed" or self.length(point) < self.first:
            return False
        return all(getattr(point, name) == getattr(self.start, name) for name in NUMBERS if name != self.varies)

    def of(self, points: Iterable[SweepPoint]) -> list[SweepPoint]:
        """Those of `points` that lie on the series, by length."""
        return sorted(filter(self.has, points), key=self.length)


SERIES = {
    "prefill": Series(SHARED_POINT, varies="input_len"),
    "decode": Series(SHARED_POINT, varies="kv_len"),
}
"""By name. The options `--<name>-max` and `--<name>-step` say which lengths of a series are measured."""

PREFILL, DECODE = SERIES["prefill"], SERIES["decode"]

MODES = {"prefill": ("prefill",), "decode": ("decode",), "both": ("prefill", "decode")}
"""`--mode`: the series of a sweep."""

GRID_NAMES = ("full", "adaptive")


def series_of(point: SweepPoint) -> str | None:
    """The first of SERIES that a point lies on, None where there is none: (1, 0) counts as prefill."""
    return next((name for name, series in SERIES.items() if series.has(point)), None)


def every(step: int, first: int, last: int) -> list[int]:
    """`first`, then each multiple of `step`, then `last`: the ends always belong to a grid."""
    multiples = range(((first + step - 1) // step) * step, last + 1, step)
    return sorted({first, last, *multiples})


@dataclass(frozen=True)
class Sweep:
    """The lengths a user asked for.

    grid: `full`, every length is measured; `adaptive`, a part of them, and the others are interpolated.
    mode: one of MODES, which series. prefill: inputs 1..prefill_max by prefill_step, empty cache.
    decode: one token on a cache of 0..decode_max by decode_step; kv_cache 0 is the prefill pass of one token.
    axes: those of AXES whose compositions are measured too. axes_longest: most tokens of a sequence of a composition,
    which is what the model has positions for.
    """

    mode: str = "both"
    prefill_max: int = 2048
    decode_max: int = 2048
    prefill_step: int = 1
    decode_step: int = 1
    grid: str = "full"
    axes: tuple[str, ...] = ()
    axes_longest: int = LONGEST_HISTORY + LONGEST_CHUNK

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"--mode {self.mode}: not a mode; choose one of {', '.join(MODES)}")
        if self.grid not in GRID_NAMES:
            raise UsageError(f"--grid {self.grid}: not a grid; choose one of {', '.join(GRID_NAMES)}")
        if unknown := [axis for axis in self.axes if axis not in AXES]:
            raise UsageError(f"--axes {unknown[0]}: not an axis; choose some of {', '.join(AXES)}")
        for option in (f"{name}_{end}" for end in ("max", "step") for name in SERIES):
            value = getattr(self, option)
            if value < 1:
                raise UsageError(f"--{option.replace('_', '-')} {value}: must be a whole number of at least 1")

    @classmethod
    def of_record(cls, record: Any) -> "Sweep | None":
        """The sweep that `record()` told; None for what is none, or has fields that are unknown here."""
        try:
            return cls(**record | {"axes": tuple(record.get("axes", ()))})
        except (AttributeError, TypeError, UsageError):
            return None

    def record(self) -> dict[str, Any]:
        """What metadata keeps of the sweep of a run."""
        axes = {"axes": list(self.axes)} if self.axes else {}
        flat = {name: value for name, value in asdict(self).items() if not name.startswith("axes")}
        return flat | ({**axes, "axes_longest": self.axes_longest} if axes else {})

    @property
    def series(self) -> tuple[str, ...]:
        """The series that it has points on, by name."""
        return MODES[self.mode]

    def longest_and_step(self, name: str) -> tuple[int, int]:
        """The longest length of a series, by its name, and the step between its lengths."""
        return getattr(self, f"{name}_max"), getattr(self, f"{name}_step")

    def points(self) -> list[SweepPoint]:
        """Every point of the sweep: prefill by input length, then decode by cache length, then compositions."""
        return [*self.flat_points(), *self.compositions()]

    def compositions(self) -> list[SweepPoint]:
        """The points of the axes. None of them is flat."""
        return axis_points(self.axes, self.axes_longest)

    def flat_points(self) -> list[SweepPoint]:
        """Those of one sequence in canonical order: prefill by input length, then decode by cache length."""
        points: list[SweepPoint] = []
        for name in self.series:
            longest, step = self.longest_and_step(name)
            points += map(SERIES[name].at, every(step, SERIES[name].first, longest))
        return list(dict.fromkeys(points))

    def __contains__(self, point: SweepPoint) -> bool:
        """Whether `points()` has a point, found without laying them out."""
        if not point.is_flat:
            return point in self.compositions()
        return any(self._has(name, point) for name in self.series if SERIES[name].has(point))

    def _has(self, name: str, point: SweepPoint) -> bool:
        length, (longest, step) = SERIES[name].length(point), self.longest_and_step(name)
        return length in (SERIES[name].first, longest) or (length < longest and length % step == 0)


@dataclass(frozen=True)
class Plan:
    """What a run will do. unrunnable: points that must not run on this model, with the reason."""

    points: tuple[SweepPoint, ...]
    unrunnable: dict[SweepPoint, str]

    def left(self, known: Iterable[SweepPoint]) -> list[SweepPoint]:
        """The points still to be measured when those in `known` are done, in canonical order."""
        done = set(known)
        return [p for p in self.points if p not in done and p not in self.unrunnable]


def plan(sweep: Sweep, learned_positions: int | None = None, most_cached: int | None = None) -> Plan:
    """Lay out a sweep. `learned_positions`: length of the model's learned position table, None for any other model.

    A pass beyond a learned table reads past its end, which kills the CUDA context: such points are never run.
    most_cached: tokens of all sequences that there is memory for in a composition, None for no limit.
    """
    points = tuple(sweep.points())
    unrunnable: dict[SweepPoint, str] = {}
    if most_cached is not None:
        unrunnable = {
            p: f"memory suffices for a cache of {most_cached} tokens, of all sequences"
            for p in points
            if not p.is_flat and p.cache_len > most_cached
        }
    if learned_positions is not None:
        unrunnable |= {
            p: f"beyond the model's {learned_positions} learned positions"
            for p in points
            if p.total_len > learned_positions
        }
    return Plan(points, unrunnable)
