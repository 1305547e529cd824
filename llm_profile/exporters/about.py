"""Which tables may be exported, and what a bundle's metadata says of them. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llm_profile import __version__
from llm_profile.errors import UsageError
from llm_profile.exporters.bundle import Bundle, ExportRequest
from llm_profile.store.storage import sha256_of, to_json
from llm_profile.store.table import LatencyTable, refuse_predicted

WHOSE_KERNELS = "transformers' own"
"""Whose kernels the tables have measured; engines have others."""


def refuse_strange(table: LatencyTable, allow_cpu: bool, allow_predicted: bool) -> None:
    """Raises UsageError for a table whose numbers are not of a GPU's kernels, unless that is allowed."""
    clock = table.meta["clock"]
    if clock == "cpu-wall" and not allow_cpu:
        raise UsageError(f"{table.model} on {table.hardware}: wall times of a CPU; --allow-cpu exports them")
    refuse_predicted(table, allow_predicted)
    if clock not in ("cpu-wall", "gpu-kernel") and not allow_predicted:
        made_up = f"its clock is {clock}, not measured"
        raise UsageError(f"{table.model} on {table.hardware}: {made_up}; --allow-predicted exports it")


def scaling_text(table: LatencyTable) -> str:
    """What kind of times a table has, for the terminal."""
    scaling = table.meta.get("scaling")
    if not scaling:
        return f"{table.model}: measured times of kernels, not scaled"
    return f"{table.model}: scaled for {scaling.get('runtime', 'an unknown runtime')}"


def about_bundle(form: str, bundle: Bundle, tables: Sequence[LatencyTable], wanted: ExportRequest) -> bytes:
    """The metadata of a bundle: where its numbers come from, and what has to be known of them.

    form: the name of its format.
    """
    about = {
        "format": form,
        "llm_profile": __version__,
        "asked": asdict(wanted),
        "kernels": WHOSE_KERNELS,
        "tables": [_about_table(table) for table in tables],
        "targets": [asdict(target) for target in bundle.targets],
        "notes": list(bundle.notes),
        "sha256": {path: sha256_of(content) for path, content in bundle.files.items()},
    }
    return (to_json(about, indent=1) + "\n").encode()


def _about_table(table: LatencyTable) -> Mapping[str, Any]:
    scaling = table.meta.get("scaling")
    kept = ("mode", "runtime", "num_layers", "held_out_errors", "batch")
    return {
        "hardware": table.hardware,
        "model": table.model,
        "origin": table.meta["origin"],
        "clock": table.meta["clock"],
        "conditions": table.conditions,
        "points": len(table.records),
        "measured_points": len(table.measured_points()),
        "scaling": scaling and {name: scaling[name] for name in kept if name in scaling},
    }
