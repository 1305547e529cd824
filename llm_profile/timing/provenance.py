"""Under which conditions numbers were measured: what must not differ between runs of a table, what is recorded."""

import os
import platform
import socket
from typing import TYPE_CHECKING, Any

from llm_profile import __version__

if TYPE_CHECKING:
    import torch


def device_conditions(device: "torch.device") -> dict[str, Any]:
    """What about the machine decides a kernel's time: names and versions, compared when a sweep is resumed."""
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
    """What is recorded of a run's machine and never compared."""
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
