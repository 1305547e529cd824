"""A comparison as JSON, for programs. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from llm_profile.comparison.compare import ComparedPhase, ComparedRow, ComparedTable, Comparison
from llm_profile.comparison.ratio import CONFIDENCE

COMPARISON_SCHEMA = 1
"""Version of the document."""


def as_document(comparison: Comparison, fail_above: float | None) -> dict[str, Any]:
    """What `--json` prints. fail_above: as a ratio; None where it was not given. Ratios are those of B / A."""
    return {
        "schema": COMPARISON_SCHEMA,
        "a": _table(comparison.a),
        "b": _table(comparison.b),
        "incomparable": list(comparison.incomparable),
        "warnings": list(comparison.warnings),
        "differing": {name: {"a": a, "b": b} for name, a, b in comparison.differing},
        "confidence": CONFIDENCE,
        "tolerance": comparison.tolerance,
        "sums_of": "full model" if comparison.of_full_model else "profiled blocks",
        "points_of_several_sequences": comparison.several_sequences,
        "phases": {phase.name: _phase(phase) for phase in comparison.phases},
        "fail_above": fail_above,
        "slower": {} if fail_above is None else comparison.slower_by(fail_above),
    }


def _table(told: ComparedTable) -> Mapping[str, Any]:
    return {
        "path": str(told.path),
        "hardware": told.hardware,
        "model": told.model,
        "points": told.points,
        "notes": list(told.notes),
    }


def _phase(phase: ComparedPhase) -> Mapping[str, Any]:
    return {
        "common_lengths": len(phase.lengths),
        "first_length": phase.lengths[0],
        "last_length": phase.lengths[-1],
        "lengths_only_in_a": phase.only_in_a,
        "lengths_only_in_b": phase.only_in_b,
        "rows_only_in_a": list(phase.rows_only_in_a),
        "rows_only_in_b": list(phase.rows_only_in_b),
        "sum": _row(phase.sum),
        "rows": {row.name: _row(row) for row in phase.rows},
    }


def _row(row: ComparedRow) -> Mapping[str, Any]:
    ratio = row.ratio
    known = ratio.low > 0  # infinity is not of JSON
    return {
        "a_ns": row.a_ns,
        "b_ns": row.b_ns,
        "ratio": ratio.value,
        "interval": [ratio.low, ratio.high] if known else None,
        "least": ratio.least,
        "most": ratio.most,
        "verdict": row.verdict.value,
        "other_kernels": row.other_kernels,
    }
