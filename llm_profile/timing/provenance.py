"""The machine that numbers were measured on: its conditions, which must be the same in all runs of a table, and facts,
which are only recorded.
"""

import os
import platform
import socket
from typing import TYPE_CHECKING, Any

from llm_profile import __version__

if TYPE_CHECKING:
    import torch


def device_conditions(device: "torch.device") -> dict[str, Any]:
    """What decides how long a kernel takes: names of hardware and versions of software, by name of the condition."""
    import torch
    import transformers

    conditions: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.type == "cuda":
        conditions["gpu"] = torch.cuda.get_device_name(device)
        conditions["cuda"] = torch.version.cuda or f"rocm {torch.version.hip}"
    else:
        conditions["gpu"] = None
        conditions["cpu"] = cpu_name()
        conditions["cpu_threads"] = torch.get_num_threads()
    return conditions


def device_facts(device: "torch.device") -> dict[str, Any]:
    """What is recorded about the machine of a run, by name; it may differ between the runs of a table."""
    import torch

    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "llm_profile": __version__,
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu_memory_bytes"] = properties.total_memory
        facts["gpu_multiprocessors"] = properties.multi_processor_count
        facts["gpu_l2_bytes"] = properties.L2_cache_size
    return facts


def cpu_name() -> str:
    """The processor's model name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"
