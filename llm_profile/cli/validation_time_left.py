"""How long a validation will still take, from the plan of its steps and the parts done so far. Imports no torch.

Every process of the real model opens it, runs each step once, then times each in every round. A part takes the mean
time that parts of its sort took for each step and block. How long a model takes to open is not known before one is
open, so there is no estimate until then.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llm_profile.request import ScalingRequest
from llm_profile.store.table import LatencyTable
from llm_profile.validation.estimate import Estimate, model_depth
from llm_profile.validation.processes import PROCESSES
from llm_profile.validation.step_plan import StepPlan, plan_steps
from llm_profile.validation.validate import batched_points, depths_to_time

ASSUMED = {"prepare": 2.0, "round": 1.0, "batched": 1.0}
"""Time of a step in parts of each sort, beside each other: first uses of a length are slow. Until they are measured."""


@dataclass(frozen=True)
class Part:
    """A part of the work. sort: `open`, or one of ASSUMED. steps: of the real model, each as often as it runs.

    size: steps, or 1 for `open`, times blocks.
    """

    sort: str
    steps: int
    size: float


def parts_of(table: LatencyTable, wanted: ScalingRequest) -> list[Part]:
    """The parts of a validation, in their order. Raises UsageError for pairs or depths that the table lacks."""
    parts: list[Part] = []
    depth, others = depths_to_time(model_depth(table), wanted.num_layers, wanted.other_depths)
    for of in (*others, depth):
        estimate = Estimate.of(table, of)
        plans = plan_steps(wanted.pairs, estimate, table.missing)
        parts += _of_processes(plans if of == depth else plans[:1], of, wanted)
        if of == depth:
            steps = len(batched_points(wanted.pairs, estimate)) * wanted.repeat
            parts.append(Part("batched", steps, steps * of))
    return parts


def _of_processes(plans: Sequence[StepPlan], depth: int, wanted: ScalingRequest) -> Iterator[Part]:
    steps = sum(len(plan.points) for plan in plans)
    for _process in range(wanted.processes or PROCESSES[wanted.runtime]):
        yield Part("open", 0, depth)
        yield Part("prepare", steps, steps * depth)
        yield from [Part("round", steps, steps * depth)] * wanted.repeat


class ValidationTimeLeft:
    """The time left of a validation. parts: in the order in which they are done. started_s: in seconds of any clock."""

    def __init__(self, parts: Sequence[Part], started_s: float) -> None:
        self._left = list(parts)
        self.done_steps = 0
        self.total_steps = sum(part.steps for part in parts)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._sizes: defaultdict[str, float] = defaultdict(float)
        self._last_s = started_s
        self._told: tuple[float, float] | None = None

    def part_done(self, sort: str, now_s: float) -> None:
        """A part of this sort is done: the next one of the plan."""
        at = next((index for index, part in enumerate(self._left) if part.sort == sort), None)
        if at is None:
            return
        part = self._left.pop(at)
        self._seconds[sort] += now_s - self._last_s
        self._sizes[sort] += part.size
        self._last_s = now_s
        self.done_steps += part.steps
        parts_s = [self._part_s(part) for part in self._left]
        known_s = [seconds for seconds in parts_s if seconds is not None]
        self._told = (sum(known_s), now_s) if len(known_s) == len(parts_s) else None

    def left_s(self, now_s: float) -> float | None:
        """Seconds left; None while they are not known."""
        told = self._told  # one value, as another thread may ask
        return None if told is None else max(0.0, told[0] - (now_s - told[1]))

    def _part_s(self, part: Part) -> float | None:
        if self._sizes[part.sort]:
            return part.size * self._seconds[part.sort] / self._sizes[part.sort]
        known = [sort for sort in ASSUMED if self._sizes[sort]]
        if part.sort not in ASSUMED or not known:
            return None
        seconds = sum(self._seconds[sort] for sort in known)
        return part.size * ASSUMED[part.sort] * seconds / sum(ASSUMED[sort] * self._sizes[sort] for sort in known)
