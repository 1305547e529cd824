"""What tables are made into for those who read them: a file beside this one and a line of EXPORTERS each. No torch."""

from collections.abc import Callable

from llm_profile.exporters.flat_csv import flat_csv
from llm_profile.store.table import LatencyTable

EXPORTERS: dict[str, Callable[[LatencyTable], bytes]] = {"csv": flat_csv}
"""By name, from a table to the content of a file."""
