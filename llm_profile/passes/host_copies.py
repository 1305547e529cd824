"""Copies from host to device within a pass, made so that they can be captured in a CUDA graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HostCopies(TorchDispatchMode):
    """Makes the host-to-device copies of a pass from buffers in pinned memory.

    A model may copy a small tensor from host to device in each pass, such as a rotary table made on the host. From
    pageable memory such a copy waits for the device, so it cannot be captured in a graph; from pinned memory it does
    not wait. The n-th copy of a pass uses the n-th buffer of its shape and type. Buffers are never freed, since
    replayed graphs read them. If the first pass made no such copy, later passes are not intercepted: a dispatch mode
    takes more host time per operator than the operator itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pinned: dict[tuple[int, torch.Size, torch.dtype], torch.Tensor] = {}
        self._next = 0
        self._idle = False

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Context of one pass, whose copies use the buffers in order, from the first."""
        if self._idle:
            yield
            return
        self._next = 0
        with self:
            yield
        self._idle = not self._pinned

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu":
            device = kwargs.get("device")
            if device is not None and torch.device(device).type != "cpu":
                return self._copy(args[0], torch.device(device), kwargs)
        return func(*args, **kwargs)

    def _copy(self, host: torch.Tensor, device: torch.device, kwargs: dict[str, Any]) -> torch.Tensor:
        dtype = kwargs.get("dtype") or host.dtype
        key = (self._next, host.shape, dtype)
        if key not in self._pinned:
            self._pinned[key] = torch.empty(host.shape, dtype=dtype, pin_memory=True)
        pinned = self._pinned[key]
        self._next += 1
        pinned.copy_(host)
        return torch.empty_like(pinned, device=device, pin_memory=False).copy_(pinned, non_blocking=True)
