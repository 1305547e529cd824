"""All that a page shows of a table, gathered from its files. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_profile.errors import UsageError, type_and_text
from llm_profile.report.curves import SeriesCurves, row_weights, series_curves
from llm_profile.report.facts import (
    CPU,
    Gap,
    Noise,
    banners,
    condition_lines,
    gaps,
    headline,
    is_unfinished,
    noise_of,
    run_lines,
)
from llm_profile.report.roofline import Roofline, roofline
from llm_profile.report.serving import StepGrid, StepList, mixed_steps, step_grids
from llm_profile.report.validation_files import BROKEN, ValidationFile, validations_beside
from llm_profile.store.files import read_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable

Lines = Sequence[tuple[str, str]]
"""Names and values."""


@dataclass(frozen=True)
class Contents:
    """What a page shows.

    weights: how often each row counts in a pass, which is one of the full model unless the table is unfinished.
    is_of_gpu: whether times are of kernels, and not of a CPU. one_logit: whether a prompt pays `lm_head` for one token.
    notices: about files that were left out.
    """

    csv: Path
    hardware: str
    model: str
    headline: str
    banners: Sequence[str]
    notices: Sequence[str]
    is_of_full_model: bool
    is_of_gpu: bool
    curves: Sequence[SeriesCurves]
    weights: Mapping[str, int]
    one_logit: bool
    roofline: Roofline
    validations: Sequence[ValidationFile]
    noise: Noise
    grids: Sequence[StepGrid]
    mixed: StepList
    gaps: Sequence[Gap]
    conditions: Lines
    runs: Sequence[tuple[str, Lines]]


def gather(csv: Path) -> Contents:
    """Read a table and the validations beside it.

    Raises UsageError for what is no table of LLM-Profile, is damaged, or is of another schema, in one line that says
    which.
    """
    table = read_table(csv)
    validations, notices = validations_beside(csv, table)
    try:
        return _contents(csv, table, validations, notices)
    except BROKEN as error:
        paths = TablePaths.beside(csv)
        raise UsageError(
            f"{paths.meta} is damaged ({type_and_text(error)}); restore it, or start anew with --overwrite"
        ) from error


def _contents(
    csv: Path, table: LatencyTable, validations: Sequence[ValidationFile], notices: Sequence[str]
) -> Contents:
    return Contents(
        csv=csv,
        hardware=table.hardware,
        model=table.model,
        headline=headline(table),
        banners=tuple(banners(table, TablePaths.beside(csv).journal.exists())),
        notices=tuple(notices),
        is_of_full_model=not is_unfinished(table),
        is_of_gpu=table.meta["clock"] != CPU,
        curves=series_curves(table),
        weights=row_weights(table),
        one_logit=table.pays_one_logit,
        roofline=roofline(table),
        validations=tuple(validations),
        noise=noise_of(table),
        grids=step_grids(table),
        mixed=mixed_steps(table),
        gaps=gaps(table),
        conditions=tuple(condition_lines(table)),
        runs=tuple(run_lines(table)),
    )
