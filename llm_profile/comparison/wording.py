"""Sentences and numbers that text and page of a comparison share. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence

from llm_profile.comparison.compare import ComparedPhase, ComparedRow, ComparedTable, Comparison
from llm_profile.comparison.ratio import CONFIDENCE, Ratio
from llm_profile.report.elements import counted
from llm_profile.validation.report_text import percent

COMPARED_COLUMNS = ("row", "A (us)", "B (us)", "B/A", f"{CONFIDENCE:.0%} interval", "by length", "verdict")

OTHER_KERNELS = "*"
"""Behind the name of a row that ran kernels of other names in B."""


def title_of(comparison: Comparison) -> str:
    """The two tables by name."""
    a, b = comparison.a, comparison.b
    return f"B against A: {b.model} on {b.hardware} against {a.model} on {a.hardware}"


def table_line(letter: str, told: ComparedTable) -> str:
    return f"{letter}: {told.path} ({told.model} on {told.hardware}, {counted(told.points, 'point')})"


def how_to_read(comparison: Comparison) -> str:
    """What the columns and verdicts mean."""
    within = percent(comparison.tolerance)
    return (
        f"Times are means over the common lengths, of one block for rows of blocks; B/A has a {CONFIDENCE:.0%} "
        "interval, and 'by length' the least and the most B/A of neighbouring lengths. "
        f"SAME: the interval lies within {within}; FASTER, SLOWER: beyond {within}; UNDECIDED: it crosses that bound. "
        f"{OTHER_KERNELS}: other kernels in B."
    )


def phase_lines(phase: ComparedPhase) -> Iterator[str]:
    """Which lengths are compared, and what stands in one table only."""
    first, last = phase.lengths[0], phase.lengths[-1]
    span = f"{first:,}" if first == last else f"{first:,} to {last:,}"
    yield f"{counted(len(phase.lengths), 'common length')}: {span}"
    for letter, lengths, rows in (
        ("A", phase.only_in_a, phase.rows_only_in_a),
        ("B", phase.only_in_b, phase.rows_only_in_b),
    ):
        if lengths:
            yield f"{counted(lengths, 'length')} measured in {letter} only, not compared"
        if rows:
            yield f"rows in {letter} only: {', '.join(rows)}"


def closing_lines(comparison: Comparison) -> Iterator[str]:
    """What was left out of the comparison, and what sums are of."""
    of = "the full model, with lm_head of one token in prompts" if comparison.of_full_model else "the profiled blocks"
    yield f"Sums are of {of}."
    if comparison.several_sequences:
        yield f"{counted(comparison.several_sequences, 'common point')} of several sequences or chunks: not compared."


def cells_of(row: ComparedRow) -> Sequence[str]:
    """A row's cells, in the order of COMPARED_COLUMNS."""
    return (
        f"{row.name}{OTHER_KERNELS if row.other_kernels else ''}",
        microseconds(row.a_ns),
        microseconds(row.b_ns),
        f"{row.ratio.value:.3f}",
        interval_text(row.ratio),
        f"{row.ratio.least:.2f} - {row.ratio.most:.2f}",
        row.verdict.value,
    )


def interval_text(ratio: Ratio) -> str:
    return f"{ratio.low:.3f} - {ratio.high:.3f}" if ratio.low > 0 else "unknown"


def microseconds(time_ns: float) -> str:
    """Four figures at least: `1.234`, `7,273`."""
    time_us = time_ns / 1e3
    return f"{time_us:,.{max(0, 4 - len(str(int(time_us))))}f}"


def refusal_text(incomparable: Sequence[str]) -> str:
    """Why --fail-above gives no verdict."""
    return f"--fail-above: no verdict on these tables: {' '.join(incomparable)} Leave it out to see the ratios"


def slower_text(slower: Mapping[str, Sequence[str]], share: float) -> str:
    """Why the exit code is not 0."""
    found = "; ".join(f"{phase}: {', '.join(rows)}" for phase, rows in slower.items())
    return f"decidedly slower by more than {percent(share)} (--fail-above): {found}"
