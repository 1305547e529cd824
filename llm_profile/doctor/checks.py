"""The checks of a machine, in the order in which they are told. Imports no torch.

A check is a function from the intended run to a Finding, or to None where it does not apply; to add one, write it and
give it a line of CHECKS.
"""

from collections.abc import Callable, Iterator, Mapping

from llm_profile.doctor import gpu_checks, host_checks, model_checks, profiler_checks
from llm_profile.doctor.finding import Finding, Intended, doubt
from llm_profile.errors import type_and_text

Check = Callable[[Intended], Finding | None]

CHECKS: Mapping[str, Check] = {
    "versions": host_checks.tested_versions,
    "GPU": gpu_checks.is_there,
    "driver": gpu_checks.driver_fits,
    "other processes": gpu_checks.other_processes,
    "clocks": gpu_checks.clocks,
    "power": gpu_checks.power_cap,
    "temperature": gpu_checks.temperature,
    "profilers": profiler_checks.others,
    "profiler": profiler_checks.records_kernels,
    "governor": host_checks.governor,
    "load": host_checks.load,
    "model": model_checks.can_be_found,
    "memory": model_checks.memory,
    "table": model_checks.table_there,
    "output folder": host_checks.output_folder,
    "disk": host_checks.disk_space,
    "compiler": host_checks.compiler,
}
"""What is checked -> its function."""


def findings(intended: Intended, checks: Mapping[str, Check]) -> Iterator[tuple[str, Finding]]:
    """Name and finding of each check that applies; one that fails itself is told as a warning."""
    for name, check in checks.items():
        try:
            found = check(intended)
        except Exception as error:
            found = doubt(f"not known: the check itself failed ({type_and_text(error)}); please report it")
        if found is not None:
            yield name, found
