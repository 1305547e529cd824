"""Which real steps are timed for validation, and what was timed. No torch.

Requests share their steps: a pair is one prefill and a run of decode steps, so each length is timed once a repeat
however many pairs there are. Lengths that scaling is fitted on and lengths that it is judged on never meet.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np

from llm_profile.errors import UsageError, number_between, shown
from llm_profile.points import SweepPoint
from llm_profile.sweep import Pair
from llm_profile.validation.estimate import Estimate, FloatArray, PairLatency, decode_lens

WINDOW_STEPS = 4
"""Consecutive decode steps whose mean is one value. With three rounds in each of three processes, 36 timings."""

WINDOWS = 25
"""Windows over the decode steps that pairs need. Odd, so that both ends are fitted: 13 fitted, 12 held out between."""

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
class StepTimes:
    """Wall time of one real step, a value per repeat. lm_head of the last token only, as `generate` runs it.

    process: number of the process that timed it.
    """

    point: SweepPoint
    wall_ns: tuple[int, ...]
    process: int = 0


class Reality(Protocol):
    """Times real steps of the model at the asked depth, for validation. Steps that do not fit in memory are left out.

    Steps run in one or more processes; each yields its own StepTimes. notices: what makes the times doubtful, a line
    each. seconds: how long each part of the work took.
    """

    runtime: str
    notices: list[str]
    seconds: dict[str, float]

    def steps(self, input_lens: Sequence[int], windows: Sequence[Sequence[int]], repeat: int) -> Iterator[StepTimes]:
        """Time prompts of `input_lens` tokens, points (n, 0), and decode steps of one token, points (1, k).

        windows: runs of consecutive cache lengths k; some lengths of a window may stand for all of it. Each length
        runs once before it is timed, then in each of `repeat` rounds over all lengths in every process.
        """
        ...

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        """Decode steps of `point.batch` sequences, all with caches of one length. Call it after `steps`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class StepPlan:
    """Steps to be timed. windows: runs of consecutive cache lengths, ascending, that do not overlap."""

    pairs: tuple[Pair, ...]
    input_lens: tuple[int, ...]
    windows: tuple[range, ...]

    @property
    def points(self) -> set[SweepPoint]:
        """Every step of the plan."""
        decode = {SweepPoint(1, kv_len) for window in self.windows for kv_len in window}
        return decode | {SweepPoint(input_len, 0) for input_len in self.input_lens}


def powers_of_two(last: int) -> list[int]:
    """1, 2, 4, ... up to `last`."""
    return [1 << exponent for exponent in range(last.bit_length())]


def midpoints(values: Sequence[int]) -> list[int]:
    """Whole numbers halfway between neighbours of an ascending list, where there are any between."""
    return [(low + high) // 2 for low, high in pairwise(values) if high - low > 1]


def decode_windows(first: int, last: int) -> list[range]:
    """At most WINDOWS windows over cache lengths first..last, by turns to be fitted and to be held out.

    The first and last window touch the ends and are fitted; the held-out ones beside them are adjacent, so that
    held-out steps reach nearly as far. A range of few steps is covered by shorter windows, without gaps.
    """
    steps = last - first + 1
    if steps <= WINDOWS * WINDOW_STEPS:
        count = min(WINDOWS, steps if steps % 2 else steps - 1)
        edges = [first + steps * index // count for index in range(count + 1)]
        return [range(low, high) for low, high in pairwise(edges)]
    inner = WINDOWS - 2
    starts = [first + WINDOW_STEPS + (steps - 3 * WINDOW_STEPS) * index // (inner - 1) for index in range(inner)]
    return [range(start, start + WINDOW_STEPS) for start in (first, *starts, last + 1 - WINDOW_STEPS)]


def windows_beyond(first: int, last: int, table_last: int) -> list[range]:
    """Windows at powers of two outside the cache lengths first..last, and at the table's last one."""
    below = [power for power in powers_of_two(first) if power < first]
    tail = max(last + 1, table_last + 1 - WINDOW_STEPS)
    above = [power for power in powers_of_two(table_last) if last < power < tail]
    if tail <= table_last:
        above.append(tail)
    edges = [*pairwise([*below, first]), *pairwise([*above, table_last + 1])]
    return [range(low, min(low + WINDOW_STEPS, high)) for low, high in edges]


def plan_steps(
    pairs: Sequence[Pair], estimate: Estimate, missing: Iterable[SweepPoint] = ()
) -> tuple[StepPlan, StepPlan]:
    """The steps to fit scaling on, and the steps to judge it on: no length is in both.

    Fitted: the pairs' own lengths, powers of two, and both ends of the table. Held out: prompts halfway between fitted
    ones, every other decode window, and pairs of those prompts with output lengths halfway between the asked ones.
    Where the asked lengths leave nothing between (step 1), every other one of them is held out instead; a single one
    has a shorter prompt held out.
    missing: points that cannot run; no step beside the pairs' own is planned on one.
    """
    gone = set(missing)
    inputs, outputs = sorted({pair[0] for pair in pairs}), sorted({pair[1] for pair in pairs})
    last_input = int(estimate.prefill.lens[-1])
    anchors = {1, *powers_of_two(last_input), last_input}
    fitted_inputs = sorted({*anchors, *inputs})
    held_inputs = [middle for middle in midpoints(fitted_inputs) if inputs[0] < middle < inputs[-1]]
    if not held_inputs:
        held_inputs = [value for value in inputs[1:-1] if value not in anchors][::2]
        fitted_inputs = sorted({*fitted_inputs} - {*held_inputs})
    if not held_inputs:
        held_inputs = midpoints([value for value in fitted_inputs if value <= inputs[0]])[-1:]
    held_inputs = [value for value in held_inputs if SweepPoint(value, 0) not in gone]
    held_outputs = midpoints(outputs) or outputs

    last_kv = int(estimate.decode.lens[-1])
    first, last = max(1, last_kv + 1 - WINDOW_STEPS), max(1, last_kv + 1 - WINDOW_STEPS) - 1
    windows: list[range] = []
    needed = [steps for steps in map(decode_lens, pairs) if steps]
    if needed:
        first, last = min([*inputs, *held_inputs]), max(steps[-1] for steps in needed)
        windows = decode_windows(first, last)
    held_pairs = [(input_len, output_len) for input_len in held_inputs for output_len in held_outputs]
    held_pairs = [pair for pair in held_pairs if pair[0] + pair[1] - 2 <= last or pair[1] == 1]
    held_pairs = sorted({*held_pairs, *(pair for pair in pairs if pair[0] in held_inputs)})
    if not windows[1::2]:
        held_pairs = [(input_len, 1) for input_len in held_inputs]

    def runnable(windows: list[range]) -> tuple[range, ...]:
        kept = [window for window in windows if not any(SweepPoint(1, kv_len) in gone for kv_len in window)]
        return tuple(sorted(kept, key=lambda window: window.start))

    fitted = StepPlan(
        tuple(pair for pair in pairs if pair[0] in fitted_inputs),
        tuple(value for value in fitted_inputs if SweepPoint(value, 0) not in gone),
        runnable(windows[::2] + windows_beyond(first, last, last_kv)),
    )
    return fitted, StepPlan(tuple(held_pairs), tuple(held_inputs), runnable(windows[1::2]))


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
