"""The validations that lie beside a table: how far its estimates are from the real model. Imports no torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError, type_and_text
from llm_profile.json_text import parse_json
from llm_profile.store.storage import storage_errors
from llm_profile.store.table import LatencyTable
from llm_profile.validation.estimate import Estimate, PairLatency
from llm_profile.validation.judgement import BatchedStep, Errors, judge_pairs
from llm_profile.validation.measured_steps import QUANTITIES
from llm_profile.validation.report import REPORT_SCHEMA
from llm_profile.validation.scaling import SCALING_MODES, scaling_of

ENDING = ".validation.json"

UNSCALED = "kernels"
"""The estimate without a scaling: the sum of the kernels."""

BROKEN = (KeyError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
"""What reading a JSON raises that has other fields, or fields of other types or sizes, than it should."""


@dataclass(frozen=True)
class ValidationFile:
    """A table compared with the real model.

    depth: of `model_depth` blocks, those that ran. mode: the applied scaling. processes: None where it is not told.
    is_current: whether the table is still the one that was validated. estimates: by way, a PairLatency for each of
    `measured`; held_out says which of these pairs were not fitted. errors: of held-out pairs, by way and quantity.
    spread: mean (max - min) / median of each quantity from run to run; spread_between: between processes.
    noisy: quantities that differ too much between processes to say anything, with that spread. of_steps: errors of
    decode steps by the way in which they are read from the scaled table; of_depths: of extrapolating over depth.
    not_fitted: ways of scaling that could not be fitted, with the reason.
    """

    file: str
    runtime: str
    depth: int
    model_depth: int
    mode: str
    repeat: int
    processes: int | None
    tolerance: float
    validated: str
    is_current: bool
    held_out: tuple[bool, ...]
    measured: tuple[PairLatency, ...]
    estimates: Mapping[str, tuple[PairLatency, ...]]
    errors: Mapping[str, Mapping[str, Errors | None]]
    spread: Mapping[str, float | None]
    spread_between: Mapping[str, float | None]
    noisy: Mapping[str, float]
    over_tolerance: tuple[str, ...]
    batched: tuple[BatchedStep, ...]
    of_steps: Mapping[str, Errors | None]
    of_depths: Mapping[str, Errors | None]
    not_fitted: Mapping[str, str]
    warnings: tuple[str, ...]


def validations_beside(csv: Path, table: LatencyTable) -> tuple[list[ValidationFile], list[str]]:
    """All validations of a table, and a line for each file that cannot be read.

    They are the `<model>*.validation.json` files that name the table. Raises UsageError where the folder cannot be
    read.
    """
    found, notices = [], []
    with storage_errors("read", csv):
        names = sorted(path.name for path in csv.parent.iterdir() if _may_be_of(path, csv))
        contents = [(name, (csv.parent / name).read_bytes()) for name in names]
    for name, content in contents:
        try:
            told = parse_json(content)
            if not _is_of(told, csv, table):
                continue
            if told["schema"] != REPORT_SCHEMA:
                notices.append(
                    f"{name} is left out: its schema is {told['schema']!r}, and {REPORT_SCHEMA} is read here"
                )
                continue
            found.append(_validation(name, told, table))
        except BROKEN as error:
            notices.append(
                f"{name} is left out, as it is damaged ({type_and_text(error)}); validation.py writes it anew"
            )
    return found, notices


def _may_be_of(path: Path, csv: Path) -> bool:
    return path.name.startswith(csv.stem) and path.name.endswith(ENDING) and path.is_file()


def _is_of(told: Any, csv: Path, table: LatencyTable) -> bool:
    named = told["provenance"]["table"], told["hardware"], told["model"]
    return named == (csv.name, table.hardware, table.model)


def _validation(name: str, told: Mapping[str, Any], table: LatencyTable) -> ValidationFile:
    """Raises one of BROKEN for a JSON that is no report."""
    pairs, mode = told["pairs"], str(told["applied"]["mode"])
    measured = _latencies(pairs, "measured_ns")
    held_out = tuple(pair["held_out"] is True for pair in pairs)
    is_current = told["provenance"]["runs"] == table.meta["runs"]
    estimates = {UNSCALED: _latencies(pairs, "kernels_ns")}
    estimates |= dict(_scaled_anew(told, table, measured)) if is_current else {}
    estimates[mode] = _latencies(pairs, "scaled_ns")
    errors = {way: {q: _errors(of["held_out_errors"][q]) for q in QUANTITIES} for way, of in told["scalings"].items()}
    return ValidationFile(
        file=name,
        runtime=str(told["runtime"]),
        depth=int(told["num_layers"]),
        model_depth=int(told["model_num_layers"]),
        mode=mode,
        repeat=int(told["repeat"]),
        processes=int(told["processes"]) if "processes" in told else None,
        tolerance=_number(told["tolerance"]),
        validated=str(told["provenance"].get("validated")),
        is_current=is_current,
        held_out=held_out,
        measured=measured,
        estimates={way: estimates[way] for way in (UNSCALED, *SCALING_MODES) if way in estimates},
        errors={UNSCALED: _judged(estimates[UNSCALED], measured, held_out), **errors},
        spread=_spread(told["spread"]),
        spread_between=_spread(told.get("spread_between_processes", {})),
        noisy={str(quantity): _number(value) for quantity, value in told.get("noisy", {}).items()},
        over_tolerance=tuple(map(str, told["over_tolerance"])),
        batched=tuple(map(_batched, told["batched"])),
        of_steps={str(way): _errors(of) for way, of in (told.get("recombination") or {}).items()},
        of_depths={str(quantity): _errors(of) for quantity, of in (told.get("depth_extrapolation") or {}).items()},
        not_fitted={str(way): str(reason) for way, reason in (told.get("not_fitted") or {}).items()},
        warnings=tuple(map(str, told["warnings"])),
    )


def _scaled_anew(
    told: Mapping[str, Any], table: LatencyTable, measured: Sequence[PairLatency]
) -> Iterator[tuple[str, tuple[PairLatency, ...]]]:
    """What each scaling makes of the table, which the JSON has of the applied one only."""
    try:
        estimate = Estimate.of(table, told["num_layers"])
    except UsageError:
        return
    for way, parameters in told["scalings"].items():
        scaled = scaling_of(estimate, way, parameters).applied_to(estimate)
        yield way, tuple(scaled.pair((pair.input_len, pair.output_len)) for pair in measured)


def _judged(
    estimated: Sequence[PairLatency], measured: Sequence[PairLatency], held_out: Sequence[bool]
) -> dict[str, Errors | None]:
    chosen = [index for index, is_held_out in enumerate(held_out) if is_held_out]
    return judge_pairs([estimated[index] for index in chosen], [measured[index] for index in chosen])


def _latencies(pairs: Sequence[Mapping[str, Any]], field: str) -> tuple[PairLatency, ...]:
    return tuple(
        PairLatency(
            int(pair["input"]),
            int(pair["output"]),
            _time_ns(pair[field]["ttft"]),
            None if pair[field]["tpot"] is None else _time_ns(pair[field]["tpot"]),
        )
        for pair in pairs
    )


def _errors(told: Mapping[str, Any] | None) -> Errors | None:
    if told is None:
        return None
    mean, p90, worst = (_number(told[name]) for name in ("mean", "p90", "worst"))
    return Errors(mean, p90, worst, int(told["n"]))


def _spread(told: Mapping[str, Any]) -> dict[str, float | None]:
    return {quantity: None if (value := told.get(quantity)) is None else _number(value) for quantity in QUANTITIES}


def _batched(told: Mapping[str, Any]) -> BatchedStep:
    times = (_time_ns(told[name]) for name in ("measured_ns", "composed_ns", "request_ns"))
    return BatchedStep(int(told["sequences"]), int(told["kv_len"]), *times)


def _number(value: Any) -> float:
    """Raises ValueError for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]} is no number")
    return float(value)


def _time_ns(value: Any) -> float:
    """Raises ValueError for what is no time."""
    if not _number(value) > 0:
        raise ValueError(f"{str(value)[:40]} is no time")
    return float(value)
