"""Which numbers the columns of a rows file may hold. Imports no torch.

Checksums find damage, but older tables have none, and files can be written by other programs.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llm_profile.records import MEASURED

if TYPE_CHECKING:  # needs a while to be imported
    import pyarrow as pa

STATISTICS = ("trimmed_mean_ns", "min_ns", "q1_ns", "median_ns", "q3_ns", "max_ns")

LEAST = {"n": 1, "blocks": 1, "launches": 0, "overlap": 0, "sm_clock_mhz": 0} | dict.fromkeys(STATISTICS, 0)
"""The least value of each column. A time of 0 is allowed: the row launched nothing there."""

WITHOUT_PASSES = ("n", *STATISTICS[1:])
"""Nobody ran the passes of an interpolated or predicted point: `n` is 0 there, and quantiles are no numbers (NaN)."""

MAY_LACK = ("input", "kv_cache", "batch", "sequences", "sm_clock_mhz")
"""Columns that may be empty in a line."""

TOO_LARGE = 2.0**63
"""Latencies are whole numbers of 64 bits, signed."""


def check_numbers(table: "pa.Table") -> None:
    """Raises ValueError, which names the line and the column, for the first number that cannot be."""
    import pyarrow.compute as pc

    for name in table.column_names:
        if name not in MAY_LACK and table[name].null_count:
            raise ValueError(f"{name} is empty in some lines")
    no_passes = _array(pc.not_equal(table["source"], MEASURED)).astype(bool)
    for name, least in LEAST.items():
        values = _array(table[name]).astype(float)
        possible = (values >= least) & (values < TOO_LARGE)
        if name in WITHOUT_PASSES:
            possible |= no_passes & (values == 0 if name == "n" else np.isnan(values))
        if name in MAY_LACK:
            possible |= _array(table[name].is_null())
        if not possible.all():
            line = int(np.argmin(possible))
            raise ValueError(
                f"{name} of {table['layer_name'][line]} in line {line} is {values[line]:g}, and must be at least "
                f"{least} and below 2^63"
            )


def _array(column: Any) -> NDArray[Any]:
    return np.asarray(column.to_numpy())
