"""What tables are made into for those who read them: files beside this one and a line here each. No torch."""

from collections.abc import Callable

from llm_profile.exporters.bundle import BundleFormat
from llm_profile.exporters.flat_csv import flat_csv
from llm_profile.store.table import LatencyTable

EXPORTERS: dict[str, Callable[[LatencyTable], bytes]] = {"csv": flat_csv}
"""By name, from a table to the content of a file."""

BUNDLES: dict[str, BundleFormat] = {}
"""`export --format`: the files of simulators."""
