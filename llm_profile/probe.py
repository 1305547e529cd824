"""What small passes of a model show: which modules run, where attention is computed, which launch big kernels."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import AttentionInterface

from llm_profile.patches import patched

KERNELS = (
    # beginnings of operator names: matrix products, convolutions, attention, scans
    *("mm", "addmm", "bmm", "baddbmm", "addbmm", "addmv", "mv", "dot", "_grouped_mm"),
    *("_scaled_mm", "_scaled_grouped_mm", "_int_mm", "_weight_int4pack_mm", "_weight_int8pack_mm"),  # quantised
    *("linear", "mkldnn_linear", "convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution"),
    *("_scaled_dot_product", "_flash_attention", "_efficient_attention", "_fft"),
)
"""Operators that are a layer's work: where one runs, there is a layer."""


def is_kernel(operator: Any) -> bool:
    """Whether an operator (of a TorchDispatchMode) is a matrix product, a convolution, attention or a scan."""
    name = operator.name().rpartition("::")[2].partition(".")[0]
    return any(name == kernel or (kernel.startswith("_") and name.startswith(kernel)) for kernel in KERNELS)


@dataclass
class Probe:
    """fired: modules that ran, in order. attention_callers: those that asked for the attention interface.
    own_kernels: those that launch big kernels themselves, outside their children and the attention interface."""

    fired: list[nn.Module] = field(default_factory=list)
    attention_callers: set[nn.Module] = field(default_factory=set)
    own_kernels: set[nn.Module] = field(default_factory=set)


class _Watch(TorchDispatchMode):
    def __init__(self, probe: Probe, stack: list[nn.Module | None]) -> None:
        super().__init__()
        self.probe, self.stack = probe, stack

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        module = self.stack[-1] if self.stack else None
        if module is not None and is_kernel(func):
            self.probe.own_kernels.add(module)
        return func(*args, **(kwargs or {}))


def probe(model: nn.Module, forward: Callable[[], Any]) -> Probe:
    """Run `forward` (small passes of `model`) and watch it. Leaves no hook behind."""
    seen = Probe()
    stack: list[nn.Module | None] = []  # None while the attention interface computes
    handles = []

    def enter(module: nn.Module, _args: Any) -> None:
        seen.fired.append(module)
        stack.append(module)

    def leave(module: nn.Module, _args: Any, _output: Any) -> None:
        stack.pop()

    original = AttentionInterface.get_interface

    def get_interface(self: Any, *args: Any, **kwargs: Any) -> Any:
        if stack and stack[-1] is not None:
            seen.attention_callers.add(stack[-1])
        compute = original(self, *args, **kwargs)

        def attend(*args: Any, **kwargs: Any) -> Any:
            stack.append(None)
            try:
                return compute(*args, **kwargs)
            finally:
                stack.pop()

        return attend

    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, always_call=True))
        with patched(AttentionInterface, "get_interface", get_interface), _Watch(seen, stack):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    seen.fired = list(dict.fromkeys(seen.fired))
    return seen
