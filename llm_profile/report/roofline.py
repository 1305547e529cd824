"""How near rows come to what the GPU can do: FLOP/s over FLOP per byte. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_profile.cards import short_device_name
from llm_profile.gpus import GPUS
from llm_profile.points import SweepPoint
from llm_profile.report.curves import thinned
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import DECODE, PREFILL
from llm_profile.work import Model, NoWork

SHOWN_LENGTHS = {"prefill": 40, "decode": 8}
"""Lengths of a phase that are drawn, evenly spaced on a logarithmic scale."""


@dataclass(frozen=True)
class RooflinePlace:
    """Where a row lies at a length. intensity: FLOP per byte moved at least. flops_per_sec: what it reached."""

    length: int
    intensity: float
    flops_per_sec: float


@dataclass(frozen=True)
class Roof:
    """The least time of work is the longer one of its FLOPs / flops_per_sec and its bytes / bandwidth."""

    flops_per_sec: float
    bandwidth_bytes_per_sec: float
    source: str


@dataclass(frozen=True)
class Roofline:
    """places: by row and phase. roof: None where the peaks of the GPU are unknown. left_out: rows without places.

    why_not: why there are no places, or no roof.
    """

    places: Mapping[str, Mapping[str, Sequence[RooflinePlace]]]
    roof: Roof | None
    left_out: tuple[str, ...]
    why_not: str | None


def roofline(table: LatencyTable) -> Roofline:
    """Of the rows whose work is known."""
    names, dtype = table.row_names(), str(table.conditions.get("dtype"))
    if (degree := table.conditions["tp"]) > 1:
        return Roofline({}, None, tuple(names), f"No rows are drawn: each does a part of its work, of {degree} ranks.")
    try:
        model = Model.of(table.meta.get("config") or {}, dtype)
    except NoWork as error:
        return Roofline({}, None, tuple(names), f"No rows are drawn: {error}.")
    found: dict[str, dict[str, list[RooflinePlace]]] = {}
    for phase, series in (("prefill", PREFILL), ("decode", DECODE)):
        for point in _spread_out(series.of(table.records), SHOWN_LENGTHS[phase]):
            for row in table.records[point].rows:
                if place := _place(table, model, row, point, series.length(point)):
                    found.setdefault(row, {}).setdefault(phase, []).append(place)
    roof = _roof(table, dtype)
    gpu = table.conditions.get("gpu") or table.hardware
    why_not = (
        None if roof else f"The peak rates of {gpu} in {dtype} are not in llm_profile/gpus.py, so no roof is drawn."
    )
    return Roofline(found, roof, tuple(row for row in names if row not in found), why_not)


def _roof(table: LatencyTable, dtype: str) -> Roof | None:
    """By the device that measured, not by the name of the folder, which anyone chooses."""
    gpu = table.conditions.get("gpu")
    peaks = GPUS.get(short_device_name(gpu)) if isinstance(gpu, str) else None
    if peaks is None or dtype not in peaks.flops_per_sec:
        return None
    return Roof(peaks.flops_per_sec[dtype], peaks.bandwidth_bytes_per_sec, peaks.source)


def _place(table: LatencyTable, model: Model, row: str, point: SweepPoint, length: int) -> RooflinePlace | None:
    work, latency_ns = model.work(row, point), table.latency_ns(row, point)
    if work is None or latency_ns == 0:
        return None
    return RooflinePlace(length, work.flops / work.bytes, work.flops / latency_ns * 1e9)


def _spread_out(points: Sequence[SweepPoint], most: int) -> list[SweepPoint]:
    """At most `most` points, both ends among them, whose total lengths grow by about the same factor."""
    if len(points) <= most:
        return list(points)
    factor = (points[-1].total_len / points[0].total_len) ** (1 / (most - 1))
    chosen = [points[0]]
    for point in points[1:-1]:
        if point.total_len >= factor * chosen[-1].total_len:
            chosen.append(point)
    return thinned([*chosen, points[-1]], most)
