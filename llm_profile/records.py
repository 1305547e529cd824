"""What is kept of one point: statistics, not passes. Imports no torch."""

from dataclasses import dataclass

import numpy as np

from llm_profile.measurement import Measurement, PointSample, trimmed_mean

ROW_SCHEMA = 2
"""Version of what a row means and of how records are stored; tables of other versions do not mix.

Version 1 kept medians and quantiles, of which no trimmed mean can be made: its tables are refused, not upgraded.
"""

PASS = "pass"
"""Stands for the whole pass where rows are stored. No layer has this name: it is a word of the Python language."""


INTERVAL_COVERS = 0.9
"""Share of measurements that intervals of estimates and predictions are to hold."""

MEASURED, FILLED, PREDICTED = "measured", "filled", "predicted"
"""Sources of a record: passes that ran, the records of neighbours, or tables of other cards."""


@dataclass(frozen=True, slots=True)
class RowRecord:
    """One row at one point. measurement: per pass and block, in ns. launches: per pass, over all `blocks` blocks."""

    measurement: Measurement
    blocks: int
    launches: int
    kernels: tuple[str, ...]

    @property
    def in_pass_ns(self) -> float:
        """The row's part of a pass: its time over all profiled blocks."""
        return self.measurement.trimmed_mean_ns * self.blocks


@dataclass(frozen=True, slots=True)
class PointRecord:
    """All that is kept of a point. rows: by name, in the order of the pass. whole_pass: device time of passes, in ns.

    timed_by, sm_clock_mhz, overlap, notes: as in PointSample. run: index of the run that measured it.
    source: MEASURED, FILLED or PREDICTED.
    """

    rows: dict[str, RowRecord]
    whole_pass: Measurement
    timed_by: str
    sm_clock_mhz: float | None
    overlap: float
    notes: tuple[str, ...]
    run: int
    source: str = MEASURED

    @property
    def is_measured(self) -> bool:
        """Whether this is of passes that ran, and neither filled in nor predicted."""
        return self.source == MEASURED

    @classmethod
    def of(cls, sample: PointSample, run: int) -> "PointRecord":
        """Raises ValueError for no passes, and for rows that were not seen in every pass."""
        if PASS in sample.rows:
            raise ValueError(f"a row cannot be called {PASS}")
        rows = list(sample.rows.values())
        whole_pass, *measurements = _measure(
            [sample.pass_ns, *(row.pass_ns for row in rows)], [1, *(row.blocks for row in rows)]
        )
        return cls(
            rows={
                name: RowRecord(measurement, row.blocks, row.launches, row.kernels)
                for (name, row), measurement in zip(sample.rows.items(), measurements, strict=True)
            },
            whole_pass=whole_pass,
            timed_by=sample.timed_by,
            sm_clock_mhz=sample.sm_clock_mhz,
            overlap=sample.overlap,
            notes=sample.notes,
            run=run,
        )


def _measure(pass_ns: list[tuple[int, ...]], blocks: list[int]) -> list[Measurement]:
    """`Measurement.of` for every row of a point at once, which takes a tenth of the time for 22 rows."""
    passes = len(pass_ns[0])
    if not passes or any(len(row) != passes for row in pass_ns):
        raise ValueError(f"rows of {sorted({len(row) for row in pass_ns})} passes at one point: each needs them all")
    times, divisor = np.asarray(pass_ns, dtype=np.float64), np.asarray(blocks)  # [row, pass], [row]
    means = trimmed_mean(times) / divisor  # [row]
    quantiles = np.quantile(times / divisor[:, np.newaxis], (0.0, 0.25, 0.5, 0.75, 1.0), axis=1)  # [quantile, row]
    return [Measurement(passes, mean, *row) for mean, row in zip(means.tolist(), quantiles.T.tolist(), strict=True)]
