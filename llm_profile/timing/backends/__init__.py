"""The ways of timing points, one for each kind of device of `--device`. Importing this imports no torch."""

from collections.abc import Callable

from llm_profile.models.hub import ModelSource
from llm_profile.request import Request
from llm_profile.timing.backends.base import Backend
from llm_profile.timing.backends.fake import FakeBackend


def _cuda(request: Request, source: ModelSource) -> Backend:
    from llm_profile.passes.loading import requested_subject
    from llm_profile.timing.backends.gpu_kernels import GpuKernelBackend
    from llm_profile.timing.cuda_device import check_cuda

    check_cuda(request.device)
    return GpuKernelBackend(requested_subject(request, source), request.timer)


def _cpu(request: Request, source: ModelSource) -> Backend:
    from llm_profile.passes.loading import requested_subject
    from llm_profile.timing.backends.cpu_wall import CpuWallBackend

    return CpuWallBackend(requested_subject(request, source))


def _fake(request: Request, source: ModelSource) -> Backend:
    depth = source.config.get("num_hidden_layers")
    return FakeBackend(depth if isinstance(depth, int) else request.num_layers, request.num_layers)


BACKENDS: dict[str, Callable[[Request, ModelSource], Backend]] = {"cuda": _cuda, "cpu": _cpu, "fake": _fake}
"""Kind of device, `--device` without the index -> opens its backend with the model of a request."""


def open_backend(request: Request, source: ModelSource) -> Backend:
    """The backend of the request's device, with the model loaded.

    Raises UsageError for a device that is not there and for a model that cannot be measured.
    """
    return BACKENDS[request.device.partition(":")[0]](request, source)


def release_memory(device: str) -> None:
    """Free the device memory that torch still holds for closed backends, so that other processes can use it."""
    if device.startswith("cuda"):
        import gc

        import torch

        gc.collect()
        torch.cuda.empty_cache()
