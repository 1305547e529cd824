"""The card of a prediction: by its name, or by a file with its figures. Imports no torch."""

import difflib
from pathlib import Path

from llm_profile.cards import short_device_name
from llm_profile.errors import UsageError, shown, type_and_text
from llm_profile.gpus import GPUS, GpuFigures, rates_of
from llm_profile.json_text import parse_json
from llm_profile.prediction.card import KERNEL_SHARES

FIGURES: dict[str, tuple[float, float, float]] = {
    # field -> least and largest value that a card may have, and its unit
    "bandwidth_gb_per_sec": (10, 100_000, 1e9),
    "half_tflops": (1, 100_000, 1e12),
    "multiprocessors": (1, 2_000, 1),
    "l2_mib": (0.25, 4_096, 2**20),
    "clock_mhz": (300, 6_000, 1e6),
}
"""What a file must say of a card. half_tflops: dense products in 16 bits with sums in float32, without sparsity."""

OPTIONAL: dict[str, tuple[float, float, float]] = {
    "power_watts": (1, 10_000, 1),
    "memory_gb": (0.5, 10_000, 1e9),
    "single_tflops": (0.1, 10_000, 1e12),
}
"""What a file may say besides; predictions do not need it."""

WHOLE = ("multiprocessors",)


def find_gpu(hardware: str) -> GpuFigures:
    """A card of the table by its short name, or its driver's. Raises UsageError, with near names, for another."""
    name = hardware if hardware in GPUS else short_device_name(hardware)
    if name in GPUS:
        return GPUS[name]
    lower = {known.lower(): known for known in GPUS}
    near = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    meant = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(GPUS)}"
    raise UsageError(f"--hardware {hardware}: not a card of the table; {meant} Or give its figures by --gpu-spec FILE")


def read_gpu(path: Path) -> GpuFigures:
    """The card that a JSON file describes. Raises UsageError with a line for each figure that is missing or absurd."""
    try:
        told = parse_json(path.read_bytes(), constants=False)
        if not isinstance(told, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise UsageError(f"--gpu-spec {path}: {type_and_text(error)}; give a JSON object of figures") from error
    known = {*FIGURES, *OPTIONAL, "architecture", "bfloat16", "source"}
    wrong = [f"{name}: not a figure; choose from {', '.join(sorted(known))}" for name in told if name not in known]
    wrong += [text for name in FIGURES if (text := _wrong(name, told.get(name), FIGURES[name]))]
    wrong += [text for name in OPTIONAL if name in told and (text := _wrong(name, told[name], OPTIONAL[name]))]
    if told.get("architecture") not in KERNEL_SHARES:
        wrong.append(f"architecture: {shown(told.get('architecture'))}; choose one of {', '.join(KERNEL_SHARES)}")
    if not isinstance(told.get("bfloat16", True), bool):
        wrong.append(f"bfloat16: {shown(told['bfloat16'])}; must be true or false")
    if wrong:
        raise UsageError("\n".join(f"--gpu-spec {path}: {text}" for text in wrong))
    figures = {name: told[name] * unit for name, (_least, _most, unit) in (FIGURES | OPTIONAL).items() if name in told}
    half = figures["half_tflops"]
    return GpuFigures(
        architecture=told["architecture"],
        bandwidth_bytes_per_sec=figures["bandwidth_gb_per_sec"],
        flops_per_sec=rates_of(half, figures.get("single_tflops", half / 4), told.get("bfloat16", True)),
        multiprocessors=int(figures["multiprocessors"]),
        l2_bytes=int(figures["l2_mib"]),
        clock_hz=figures["clock_mhz"],
        power_watts=figures.get("power_watts", 0.0),
        memory_bytes=figures.get("memory_gb", 0.0),
        source=str(told.get("source", path.name)),
    )


def _wrong(name: str, value: object, limits: tuple[float, float, float]) -> str | None:
    """Why a figure cannot be used; None where it can."""
    least, most, _unit = limits
    if value is None:
        return f"{name}: missing; a number from {least:g} to {most:g}"
    fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not fits or (name in WHOLE and not isinstance(value, int)):
        kind = "whole number" if name in WHOLE else "number"
        return f"{name}: {shown(value)}; must be a {kind} from {least:g} to {most:g}"
    return None
