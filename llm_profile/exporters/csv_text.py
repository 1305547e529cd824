"""Lines as a CSV, as every file of this project has it: LF line ends, quotes only where they are needed. No torch."""

import csv
import io
from collections.abc import Iterable, Sequence


def csv_bytes(header: Sequence[str], lines: Iterable[Sequence[object]]) -> bytes:
    """The content of a CSV file in UTF-8. lines: as many values each as the header has names."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue().encode()
