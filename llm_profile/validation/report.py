"""What validation found: for programs as JSON, for the shell as an exit code. No torch."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_profile.errors import EXIT_COMPLETE, EXIT_OVER_TOLERANCE
from llm_profile.points import SweepPoint
from llm_profile.store.storage import write_json
from llm_profile.validation.estimate import PairLatency
from llm_profile.validation.judgement import BatchedStep, Errors
from llm_profile.validation.measured_steps import QUANTITIES, quantity_ns
from llm_profile.validation.scaling import Scaling

REPORT_SCHEMA = 1
"""Version of the JSON that programs read."""

NOISY = 0.10
"""Mean spread between processes, (max - min) / median, above which the machine is too noisy to say anything. A larger
tolerance takes its place."""


@dataclass(frozen=True)
class PairResult:
    """One (input, output) pair. kernels: the table's own sum. scaled: the same with the applied scaling.

    spread: run-to-run (max - min) / median of each quantity; None where there is none (TPOT of one token).
    spread_between: the same between processes; None where there was one.
    """

    held_out: bool
    measured: PairLatency
    kernels: PairLatency
    scaled: PairLatency
    spread: Mapping[str, float | None]
    spread_between: Mapping[str, float | None]

    def as_json(self) -> dict[str, Any]:
        """For programs, nanoseconds."""
        return {
            "input": self.measured.input_len,
            "output": self.measured.output_len,
            "held_out": self.held_out,
            "spread": dict(self.spread),
            "spread_between_processes": dict(self.spread_between),
            **{
                f"{way}_ns": {quantity: quantity_ns(getattr(self, way), quantity) for quantity in QUANTITIES}
                for way in ("measured", "kernels", "scaled")
            },
        }


@dataclass(frozen=True)
class StepResult:
    """One step of the real model. wall_ns: per repeat. kernels_ns, scaled_ns: as in PairResult."""

    point: SweepPoint
    held_out: bool
    wall_ns: tuple[float, ...]
    kernels_ns: float
    scaled_ns: float

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "input": self.point.input_len,
            "kv_cache": self.point.kv_len,
            "held_out": self.held_out,
            "wall_ns": list(self.wall_ns),
            "median_ns": statistics.median(self.wall_ns),
            "kernels_ns": self.kernels_ns,
            "scaled_ns": self.scaled_ns,
        }


def noise_limit(tolerance: float) -> float:
    """Spread between processes above which a machine is too noisy to say anything; both are ratios."""
    return max(NOISY, tolerance)


@dataclass(frozen=True)
class ValidationReport:
    """A table compared with the real model.

    runtime: how the real model ran. depth: of `model_depth` blocks, the ones it had. mode: the applied way of scaling.
    scaling: what to apply to the table; of `model_depth` blocks where the excess was extrapolated over depths
    `measured_depths`, else of `depth`. scalings: every way that could be fitted, at `depth`. not_fitted: the others,
    with the reason. errors: of held-out pairs, by way and quantity. spread: mean run-to-run spread of held-out pairs
    inside a process; spread_between: between `processes`, None of one; of all pairs where none is held out.
    recombination, batched: how the applied scaling's rows add up to steps in a simulator. depth_errors: where two
    other depths were measured, errors of pairs at `depth` extrapolated from them. tolerance, errors and spreads are
    ratios.
    """

    hardware: str
    model: str
    clock: str
    runtime: str
    depth: int
    model_depth: int
    measured_depths: tuple[int, ...]
    repeat: int
    mode: str
    tolerance: float
    scaling: Scaling
    scalings: Mapping[str, Scaling]
    not_fitted: Mapping[str, str]
    pairs: tuple[PairResult, ...]
    steps: tuple[StepResult, ...]
    errors: Mapping[str, Mapping[str, Errors | None]]
    spread: Mapping[str, float | None]
    spread_between: Mapping[str, float | None]
    processes: int
    recombination: Mapping[str, Errors | None]
    batched: tuple[BatchedStep, ...] = ()
    depth_errors: Mapping[str, Errors | None] | None = None
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def over_tolerance(self) -> list[str]:
        """The quantities whose held-out mean error is above the tolerance, the run-to-run spread, and the spread
        between processes."""
        found = []
        for quantity, errors in self.errors[self.mode].items():
            spreads = (self.spread[quantity] or 0.0, self.spread_between[quantity] or 0.0)
            if errors is not None and errors.mean > max(self.tolerance, *spreads):
                found.append(quantity)
        return found

    @property
    def noise_limit(self) -> float:
        """Spread between processes above which the machine is too noisy, a ratio."""
        return noise_limit(self.tolerance)

    @property
    def noisy(self) -> dict[str, float]:
        """The quantities that differ between processes by more than that, with the spread: no factor holds then."""
        limit = self.noise_limit
        return {name: value for name, value in self.spread_between.items() if value is not None and value > limit}

    @property
    def exit_code(self) -> int:
        """EXIT_OVER_TOLERANCE, for a machine that is too noisy as well, or EXIT_COMPLETE."""
        return EXIT_OVER_TOLERANCE if self.over_tolerance or self.noisy else EXIT_COMPLETE

    def as_json(self) -> dict[str, Any]:
        """For programs: times in nanoseconds, errors and spreads as ratios."""

        def shown(errors: Mapping[str, Errors | None]) -> dict[str, Any]:
            return {name: asdict(value) if value else None for name, value in errors.items()}

        scalings = {
            mode: {"num_layers": scaling.depth, **scaling.parameters, "held_out_errors": shown(self.errors[mode])}
            for mode, scaling in self.scalings.items()
        }
        return {
            "schema": REPORT_SCHEMA,
            "hardware": self.hardware,
            "model": self.model,
            "clock": self.clock,
            "runtime": self.runtime,
            "batch": 1,
            "num_layers": self.depth,
            "model_num_layers": self.model_depth,
            "measured_depths": list(self.measured_depths),
            "repeat": self.repeat,
            "applied": {"mode": self.mode, "num_layers": self.scaling.depth, **self.scaling.parameters},
            "average_scaling_factor": self.scalings["global"].parameters["factor"],
            "tolerance": self.tolerance,
            "over_tolerance": self.over_tolerance,
            "noisy": self.noisy,
            "processes": self.processes,
            "spread": dict(self.spread),
            "spread_between_processes": dict(self.spread_between),
            "scalings": scalings,
            "not_fitted": dict(self.not_fitted),
            "recombination": shown(self.recombination),
            "batched": [{**asdict(step), "error": step.error} for step in self.batched],
            "depth_extrapolation": None if self.depth_errors is None else shown(self.depth_errors),
            "warnings": list(self.warnings),
            "pairs": [pair.as_json() for pair in self.pairs],
            "steps": [step.as_json() for step in self.steps],
            "provenance": dict(self.provenance),
        }

    def write(self, path: Path) -> None:
        """Write the JSON whole. Raises UsageError where the file system refuses."""
        write_json(path, self.as_json())


def mean_spread(spreads: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean spread of each of QUANTITIES over pairs; None where there is none."""
    spread: dict[str, float | None] = {}
    for quantity in QUANTITIES:
        known = [value for of_pair in spreads if (value := of_pair[quantity]) is not None]
        spread[quantity] = statistics.fmean(known) if known else None
    return spread
