"""Steps of the real model as they were timed, and pairs composed of them. Imports no torch."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llm_profile.errors import UsageError, number_between, shown
from llm_profile.points import SweepPoint
from llm_profile.sweep import Pair
from llm_profile.validation.estimate import FloatArray, PairLatency, decode_lens
from llm_profile.validation.real_steps import Reality
from llm_profile.validation.step_plan import StepPlan

LONGEST_STEP_NS = 1e15
"""Of a step that a caller timed: eleven days. More is a mistake of units."""


QUANTITIES = ("ttft", "tpot", "total")


def quantity_ns(pair: PairLatency, quantity: str) -> float | None:
    """One of QUANTITIES of a pair, in nanoseconds; None for the TPOT of one token."""
    value: float | None = getattr(pair, f"{quantity}_ns")
    return value


def relative_spread(values: Sequence[float]) -> float:
    """(max - min) / median."""
    return (max(values) - min(values)) / statistics.median(values)


@dataclass(frozen=True)
class MeasuredSteps:
    """Wall times of real steps.

    steps: nanoseconds per repeat. windows: cache lengths that are averaged together. processes: number of the process
    that each repeat ran in; empty where all ran in one.
    """

    steps: Mapping[SweepPoint, tuple[float, ...]]
    windows: tuple[Sequence[int], ...]
    processes: tuple[int, ...] = ()

    @classmethod
    def of(cls, steps: Mapping[SweepPoint, Sequence[float]]) -> "MeasuredSteps":
        """Single decode steps, none averaged with its neighbours.

        Raises UsageError for what is no time in nanoseconds per repeat of a SweepPoint.
        """
        if not isinstance(steps, Mapping):
            raise UsageError(f"measured {shown(steps)}: must be times in nanoseconds, per repeat, by SweepPoint")
        walls = {point: _walls(point, times) for point, times in steps.items()}
        decode = sorted(point.kv_len for point in walls if point.kind == "decode")
        return cls(walls, tuple((kv_len,) for kv_len in decode))

    @property
    def repeats(self) -> int:
        """How often every step was timed."""
        return min(map(len, self.steps.values()), default=0)

    @property
    def input_lens(self) -> list[int]:
        """Timed prompt lengths, ascending."""
        return sorted(point.input_len for point in self.steps if point.kind == "prefill")

    @cached_property
    def window_kv(self) -> FloatArray:
        """Mean cache length of each window, ascending. Shape [windows]."""
        return np.array([statistics.fmean(window) for window in self.windows])

    @cached_property
    def window_walls_ns(self) -> FloatArray:
        """Mean step of each window in each repeat. Shape [windows, repeats]."""
        rows = [[self.steps[SweepPoint(1, kv)][: self.repeats] for kv in window] for window in self.windows]
        return np.array([np.mean(row, axis=0) for row in rows]).reshape(len(rows), self.repeats)

    @cached_property
    def window_ns(self) -> FloatArray:
        """Median over repeats of each window's mean step. Shape [windows]."""
        return np.asarray(np.median(self.window_walls_ns, axis=1))

    def prefill_ns(self, input_len: int) -> float:
        """Median TTFT of a prompt of this length. Raises UsageError where it was not timed."""
        return float(statistics.median(self._prefill_walls(input_len)))

    def pair(self, pair: Pair) -> PairLatency:
        """A request composed from the medians of its steps; decode steps between windows are interpolated."""
        return self._compose(pair, self.prefill_ns(pair[0]), self.window_ns)

    def spread(self, pair: Pair) -> dict[str, float | None]:
        """Run-to-run (max - min) / median of each of QUANTITIES, the request composed from each repeat alone.

        Within a process; of several, the mean.
        """
        found = [self._spread_of([self._run(pair, [run]) for run in runs]) for runs in self._runs_of_processes()]
        return {
            quantity: statistics.fmean(known) if (known := _known([of[quantity] for of in found])) else None
            for quantity in QUANTITIES
        }

    def spread_between(self, pair: Pair) -> dict[str, float | None]:
        """(max - min) / median of each of QUANTITIES over processes, each by the medians of its repeats.

        None where all repeats ran in one process.
        """
        of_processes = self._runs_of_processes()
        if len(of_processes) < 2:
            return dict.fromkeys(QUANTITIES)
        return self._spread_of([self._run(pair, runs) for runs in of_processes])

    def _runs_of_processes(self) -> list[list[int]]:
        """Numbers of the repeats that ran in each process."""
        processes = self.processes or (0,) * self.repeats
        return [[run for run, of in enumerate(processes) if of == process] for process in sorted({*processes})]

    def _run(self, pair: Pair, runs: Sequence[int]) -> PairLatency:
        """The request composed from the medians of these repeats."""
        walls = self._prefill_walls(pair[0])
        window_ns = np.median(self.window_walls_ns[:, runs], axis=1)
        return self._compose(pair, statistics.median(walls[run] for run in runs), window_ns)

    @staticmethod
    def _spread_of(requests: Sequence[PairLatency]) -> dict[str, float | None]:
        values = {quantity: _known([quantity_ns(run, quantity) for run in requests]) for quantity in QUANTITIES}
        return {quantity: relative_spread(of) if len(of) == len(requests) else None for quantity, of in values.items()}

    @property
    def drift(self) -> float:
        """How much slower steps were in the last repeat of a process than in its first: median of last / first - 1."""
        ends = [(runs[0], runs[-1]) for runs in self._runs_of_processes()]
        ratios = [walls[last] / walls[first] for walls in self.steps.values() for first, last in ends]
        return statistics.median(ratios) - 1 if ratios else 0.0

    def _prefill_walls(self, input_len: int) -> tuple[float, ...]:
        try:
            return self.steps[SweepPoint(input_len, 0)]
        except KeyError:
            raise UsageError(
                f"the real model gave no prefill of {input_len} tokens: lower --scaling-input-max or "
                f"--scaling-num-layers"
            ) from None

    def _compose(self, pair: Pair, ttft_ns: float, window_ns: FloatArray) -> PairLatency:
        steps = decode_lens(pair)
        if not steps:
            return PairLatency(*pair, ttft_ns, None)
        if not self.windows:
            raise UsageError(
                f"the real model gave no decode step for (input {pair[0]}, output {pair[1]}): "
                f"lower --scaling-input-max or --scaling-num-layers"
            )
        return PairLatency(*pair, ttft_ns, float(np.mean(np.interp(np.array(steps), self.window_kv, window_ns))))


def _walls(point: object, times: object) -> tuple[float, ...]:
    if not isinstance(point, SweepPoint) or not point.is_flat:
        what = point if isinstance(point, SweepPoint) else f"{shown(point)} is no SweepPoint"
        raise UsageError(f"measured: {what}; prefill is at (n, 0), decode at (1, k)")
    if isinstance(times, str | bytes) or not isinstance(times, Iterable):
        raise UsageError(f"measured at {point}: {shown(times)}; must be a list of nanoseconds, one per repeat")
    walls = tuple(number_between(f"measured at {point}:", wall_ns, 1e-3, LONGEST_STEP_NS) for wall_ns in times)
    if not walls:
        raise UsageError(f"measured at {point}: no time; must be a list of nanoseconds, one per repeat")
    return walls


def time_steps(reality: Reality, plans: Sequence[StepPlan], repeat: int) -> list[MeasuredSteps]:
    """Time the steps of plans that have none in common on the real model. Steps that do not fit in memory are left out.

    Each round goes over the steps of all plans: a machine that slows down meanwhile makes no difference between them.
    Raises UsageError where nothing at all was timed.
    """
    input_lens = sorted(input_len for plan in plans for input_len in plan.input_lens)
    windows = sorted((window for plan in plans for window in plan.windows), key=lambda window: window.start)
    timed = sorted(reality.steps(input_lens, windows, repeat), key=lambda step: step.process)
    if not timed and (input_lens or windows):
        raise UsageError("the real model completed no step at all: lower --scaling-num-layers")
    processes = tuple(process for process in sorted({step.process for step in timed}) for _ in range(repeat))
    walls: dict[SweepPoint, tuple[float, ...]] = {}
    for step in timed:
        walls[step.point] = walls.get(step.point, ()) + tuple(map(float, step.wall_ns))
    everywhere = {point: times for point, times in walls.items() if len(times) == len(processes)}
    return [_of_plan(plan, everywhere, processes) for plan in plans]


def _of_plan(
    plan: StepPlan, walls: Mapping[SweepPoint, tuple[float, ...]], processes: tuple[int, ...]
) -> MeasuredSteps:
    windows = [tuple(kv_len for kv_len in window if SweepPoint(1, kv_len) in walls) for window in plan.windows]
    return MeasuredSteps(
        {point: walls[point] for point in sorted(plan.points) if point in walls},
        tuple(window for window in windows if window),
        processes,
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
