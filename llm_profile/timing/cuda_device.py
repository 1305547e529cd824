"""The CUDA device of `--device`: whether torch can use it, and its PCI address, by which NVML finds it."""

from typing import Any

import torch

from llm_profile.errors import UsageError


def check_cuda(device: str) -> None:
    """Make the CUDA device of this name torch's current one. Raises UsageError if torch cannot use it."""
    if not torch.cuda.is_available():
        build = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise UsageError(f"--device {device}: {build}; install a CUDA build of torch and a driver, or use --device cpu")
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"--device {device}: torch sees {count} GPU(s); the last one is cuda:{count - 1}")
    torch.cuda.set_device(index)


def pci_bus_id(device: torch.device) -> str | None:
    """PCI address of a CUDA device, as NVML writes it (00000000:18:00.0); None on ROCm, which has no NVML."""
    if torch.version.cuda is None:
        return None
    p: Any = torch.cuda.get_device_properties(device)
    return f"{p.pci_domain_id:08X}:{p.pci_bus_id:02X}:{p.pci_device_id:02X}.0"
