"""The CUDA device that a user named: whether torch can use it, and its address for NVML."""

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
        raise UsageError(f"--device {device}: there are {torch.cuda.device_count()} GPUs; use cuda:0 and up")
    torch.cuda.set_device(index)


def pci_bus_id(device: torch.device) -> str | None:
    """PCI address by which NVML knows a CUDA device; None on ROCm."""
    if torch.version.cuda is None:
        return None
    p: Any = torch.cuda.get_device_properties(device)
    return f"{p.pci_domain_id:08X}:{p.pci_bus_id:02X}:{p.pci_device_id:02X}.0"
