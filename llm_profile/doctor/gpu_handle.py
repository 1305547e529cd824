"""The GPU of a run, as torch and NVML know it. Imports torch inside functions only."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llm_profile.errors import UsageError, type_and_text


@dataclass(frozen=True)
class Gpu:
    """name: the driver's. free_and_total: asks for both, in bytes. nvml, handle: None where NVML cannot be asked."""

    name: str
    free_and_total: Callable[[], tuple[int, int]]
    nvml: Any = None
    handle: Any = None

    def ask(self, function: str, *arguments: Any) -> Any:
        """`nvml.<function>(handle, *arguments)`; None for what this GPU, or this driver, does not tell."""
        if self.nvml is None:
            return None
        try:
            return getattr(self.nvml, function)(self.handle, *arguments)
        except (self.nvml.NVMLError, AttributeError):
            return None


def open_gpu(device: str) -> Gpu:
    """Open the GPU that torch calls `device`; this process holds a context on it from here on.

    Raises UsageError if torch cannot use it.
    """
    import torch

    from llm_profile.timing.cuda_device import check_cuda, pci_bus_id

    check_cuda(device)
    where = torch.device(device)
    try:
        torch.cuda.synchronize(where)
    except RuntimeError as error:
        raise UsageError(
            f"--device {device}: it takes no work ({type_and_text(error)}); end what occupies it"
        ) from error
    nvml, handle = _of_nvml(pci_bus_id(torch.device("cuda", torch.cuda.current_device())))
    return Gpu(torch.cuda.get_device_name(where), lambda: torch.cuda.mem_get_info(where), nvml, handle)


def _of_nvml(bus_id: str | None) -> tuple[Any, Any]:
    """NVML and its handle of a GPU; None twice without NVML, as on AMD and in some containers."""
    if bus_id is not None:
        with suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            return pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(bus_id.encode())
    return None, None
