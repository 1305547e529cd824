"""What tables are made into for those who read them: files beside this one and a line here each. No torch."""

from collections.abc import Callable

from llm_profile.exporters import (
    llmservingsim_0_2,
    llmservingsim_0_2_lookup,
    llmservingsim_1_0,
    llmservingsim_1_0_lookup,
    llmservingsim_1_1,
    llmservingsim_1_1_lookup,
    vidur,
    vidur_lookup,
)
from llm_profile.exporters.bundle import BundleFormat, ExportRequest
from llm_profile.exporters.flat_csv import flat_csv
from llm_profile.store.table import LatencyTable

EXPORTERS: dict[str, Callable[[LatencyTable], bytes]] = {"csv": flat_csv}
"""By name, from a table to the content of a file."""

BUNDLES: dict[str, BundleFormat] = {
    "llmservingsim-0.2": BundleFormat(
        llmservingsim_0_2.export,
        llmservingsim_0_2_lookup.step,
        marker="inference_serving/generate_trace.py",
        defaults=ExportRequest(max_kv=2048),
    ),
    "llmservingsim-1.0": BundleFormat(
        llmservingsim_1_0.export,
        llmservingsim_1_0_lookup.step,
        marker="inference_serving/trace_generator.py",
        defaults=ExportRequest(max_kv=2048),
    ),
    "llmservingsim-1.1": BundleFormat(
        llmservingsim_1_1.export,
        llmservingsim_1_1_lookup.step,
        marker="serving/core/trace_generator.py",
        versions=llmservingsim_1_1_lookup.VERSIONS,
    ),
    "vidur": BundleFormat(
        vidur.export,
        vidur_lookup.step,
        marker="vidur/main.py",
        defaults=ExportRequest(max_kv=4096),
    ),
}
"""`export --format`: the files of simulators."""
