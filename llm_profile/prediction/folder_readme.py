"""The README of a folder with predicted tables, so that nobody takes them for measurements. Imports no torch."""

from pathlib import Path

from llm_profile.store.storage import write_whole
from llm_profile.store.table import LatencyTable

MARK = "<!-- written by run_profile.py predict -->"

TEXT = """{mark}
# {hardware}: predicted tables

**Nothing here was measured.** `run_profile.py predict` computed the tables whose metadata says `"origin": "predicted"`
from the figures of the card and from tables of other cards ({cards}). docs/prediction.md of LLM-Profile says how.

* `.csv`: latencies in the form of a measured table. `.rows.parquet`: with `low_ns` and `high_ns`, between which 9 of 10
  measurements should lie. `.meta.json`: what the prediction rests on.
* {worth}
* Measuring takes its place: the same names are used, and the prediction is kept as `<model>.predicted.*`. Then
  `python3 run_profile.py compare <model>.predicted.csv <model>.csv --allow-predicted` says how good it was.
* Exports, validation and comparisons refuse predicted tables without `--allow-predicted`.
"""

KNOWN = (
    "Cards of this generation ({generation}) were measured, and intervals were calibrated on models that were left out."
)
UNKNOWN = (
    "No card of this generation ({generation}) was measured. How good the prediction is cannot be known from other "
    "generations; the widths of its intervals are a judgement, no statistic: a factor of about 1.3 to 1.6 to each side."
)


def write_readme(folder: Path, table: LatencyTable) -> Path | None:
    """Write the README of the folder of a predicted table; one that somebody else wrote is left alone (None)."""
    path = folder / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    about = table.meta["prediction"]
    worth = (KNOWN if about["generation_was_measured"] else UNKNOWN).format(generation=about["generation"])
    cards = ", ".join(sorted({name.rpartition(" on ")[2] for name in about["from"]}))
    text = TEXT.format(mark=MARK, hardware=table.hardware, cards=cards, worth=worth)
    write_whole(path, text.encode())
    return path
