"""What a validation found, in the figures that the end of a run tells, from its JSON. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_profile.errors import EXIT_COMPLETE, EXIT_OVER_TOLERANCE
from llm_profile.validation.judgement import Errors
from llm_profile.validation.measured_steps import QUANTITIES
from llm_profile.validation.report import NOISY


@dataclass(frozen=True)
class ValidationOutcome:
    """Figures of a validation with the scaling that was applied; fields have their meaning in ValidationReport.

    errors: of held-out pairs, by quantity.
    """

    runtime: str
    depth: int
    model_depth: int
    processes: int
    mode: str
    errors: Mapping[str, Errors | None]
    spread: Mapping[str, float | None]
    spread_between: Mapping[str, float | None]
    tolerance: float
    over_tolerance: tuple[str, ...]
    noisy: Mapping[str, float]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "ValidationOutcome":
        """That of a `<model>.validation.json`. Raises KeyError, TypeError or ValueError where it lacks a figure."""
        mode = str(told["applied"]["mode"])
        errors = told["scalings"][mode]["held_out_errors"]
        return cls(
            runtime=str(told["runtime"]),
            depth=int(told["num_layers"]),
            model_depth=int(told["model_num_layers"]),
            processes=int(told["processes"]),
            mode=mode,
            errors={quantity: Errors(**of) if (of := errors[quantity]) else None for quantity in QUANTITIES},
            spread=_spread(told["spread"]),
            spread_between=_spread(told["spread_between_processes"]),
            tolerance=float(told["tolerance"]),
            over_tolerance=tuple(map(str, told["over_tolerance"])),
            noisy={str(quantity): float(value) for quantity, value in told["noisy"].items()},
            warnings=tuple(map(str, told["warnings"])),
        )

    @property
    def noise_limit(self) -> float:
        """Spread between processes above which the machine is too noisy, a ratio."""
        return max(NOISY, self.tolerance)

    @property
    def exit_code(self) -> int:
        """As that of the ValidationReport."""
        return EXIT_OVER_TOLERANCE if self.over_tolerance or self.noisy else EXIT_COMPLETE


def _spread(told: Mapping[str, Any]) -> dict[str, float | None]:
    return {quantity: None if (value := told[quantity]) is None else float(value) for quantity in QUANTITIES}
