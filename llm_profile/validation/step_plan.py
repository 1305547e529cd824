"""Which steps of the real model are timed. Imports no torch.

Pairs share their steps: a pair is one prefill and a run of decode steps, so each length is timed once a repeat however
many pairs there are. No length is both in the steps that scaling is fitted on and in those that it is judged on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llm_profile.points import SweepPoint
from llm_profile.sweep import Pair
from llm_profile.validation.estimate import Estimate, decode_lens

WINDOW_STEPS = 4
"""Consecutive decode steps whose mean is one value. With three rounds in each of three processes, 36 timings."""


WINDOWS = 25
"""Windows over the decode steps that pairs need. Odd, so that both ends are fitted: 13 fitted, 12 held out between."""


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
