"""The CSV that simulators read: prefill and decode of one sequence, by (layer_name, input, kv_cache). No torch.

Chunks and steps of several sequences have no place in its key; they stand in the rows file.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llm_profile.store.files import CSV_HEADER
from llm_profile.store.table import LatencyTable

if TYPE_CHECKING:
    from pandas import DataFrame


def flat_csv(table: LatencyTable) -> bytes:
    """The content of a table's CSV."""
    return csv_content(to_frame(table))


def to_frame(table: LatencyTable) -> "DataFrame":
    """The CSV as a pandas DataFrame: each key once, prefill before decode; integer latencies."""
    from pandas import DataFrame

    return DataFrame(_rows(table), columns=list(CSV_HEADER))


def csv_content(frame: "DataFrame") -> bytes:
    """A CSV of a data frame, with LF line ends."""
    return frame.to_csv(index=False, lineterminator="\n").encode()


def _rows(table: LatencyTable) -> Iterator[tuple[str, str, str, int, int, int]]:
    points = [point for point in table.points() if point.is_flat]
    for name in dict.fromkeys(name for point in points for name in table.records[point].rows):
        for point in points:
            row = table.records[point].rows.get(name)
            latency_ns = row.measurement.latency_ns if row else 0
            yield table.hardware, table.model, name, point.input_len, point.kv_len, latency_ns
