"""Watches small passes of a model: which modules run, and which of them compute attention, matrix products and such."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import AttentionInterface

from llm_profile.models.patches import SCAN_FUNCTION, modelling_functions, patched

KERNELS = (
    # names of operators, for those with an underscore their beginnings: matrix products, convolutions, attention,
    # Fourier transforms
    *("mm", "addmm", "bmm", "baddbmm", "addbmm", "addmv", "mv", "dot", "_grouped_mm"),
    *("_scaled_mm", "_scaled_grouped_mm", "_int_mm", "_weight_int4pack_mm", "_weight_int8pack_mm"),  # quantised
    *("linear", "mkldnn_linear", "convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution"),
    *("_scaled_dot_product", "_flash_attention", "_efficient_attention", "_fft"),
)
"""Operators that do the work of a layer: a module that runs one is a layer, as is one that calls a SCAN_FUNCTION."""


def is_kernel(operator: Any) -> bool:
    """Whether an operator, as a TorchDispatchMode receives it, is one of KERNELS."""
    name = operator.name().rpartition("::")[2].partition(".")[0]
    return any(name == kernel or (kernel.startswith("_") and name.startswith(kernel)) for kernel in KERNELS)


@dataclass
class Probe:
    """What was seen of a model's modules.

    fired: those that ran, in the order of their first run. attention_callers: those that called the attention
    interface. own_kernels: those that ran an operator of KERNELS or a SCAN_FUNCTION themselves, not in a child or in
    the attention interface.
    """

    fired: list[nn.Module] = field(default_factory=list)
    attention_callers: set[nn.Module] = field(default_factory=set)
    own_kernels: set[nn.Module] = field(default_factory=set)


class _Watch(TorchDispatchMode):
    """Adds the innermost running module to `own_kernels` for each operator of KERNELS. stack: of `running_modules`."""

    def __init__(self, probe: Probe, stack: list[Any]) -> None:
        super().__init__()
        self.probe, self.stack = probe, stack

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        module = self.stack[-1] if self.stack else None
        if module is not None and is_kernel(func):
            self.probe.own_kernels.add(module)
        return func(*args, **(kwargs or {}))


@contextmanager
def running_modules(
    model: nn.Module, entered: Callable[[nn.Module], None] = lambda _module: None
) -> Iterator[list[Any]]:
    """A list that at any time holds the modules whose forward is running, outermost first.

    entered: called with each module as its forward starts.
    """
    stack: list[Any] = []

    def enter(module: nn.Module, _args: Any) -> None:
        entered(module)
        stack.append(module)

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        stack.pop()

    with ExitStack() as undo:
        for module in model.modules():
            undo.callback(module.register_forward_pre_hook(enter).remove)
            undo.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield stack


def noting_caller(
    function: Callable[..., Any], running: list[Any], note: Callable[[nn.Module], object]
) -> Callable[..., Any]:
    """`function`, with `note` called first with the module that calls it. running: the list of `running_modules`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if running and running[-1] is not None:
            note(running[-1])
        return function(*args, **kwargs)

    return run


def probe(model: nn.Module, forward: Callable[[], Any]) -> Probe:
    """Run `forward`, which makes small passes of `model`, and watch the modules. All hooks are removed at the end."""
    seen = Probe()
    original = AttentionInterface.get_interface

    def get_interface(self: Any, *args: Any, **kwargs: Any) -> Any:
        if stack and stack[-1] is not None:
            seen.attention_callers.add(stack[-1])
        compute = original(self, *args, **kwargs)

        def attend(*args: Any, **kwargs: Any) -> Any:
            stack.append(None)  # operators of the attention interface count for no module
            try:
                return compute(*args, **kwargs)
            finally:
                stack.pop()

        return attend

    with ExitStack() as undo:
        stack = undo.enter_context(running_modules(model, seen.fired.append))
        for namespace, name, function in modelling_functions(model, SCAN_FUNCTION):
            undo.enter_context(patched(namespace, name, noting_caller(function, stack, seen.own_kernels.add)))
        undo.enter_context(patched(AttentionInterface, "get_interface", get_interface))
        undo.enter_context(_Watch(seen, stack))
        forward()
    seen.fired = list(dict.fromkeys(seen.fired))
    return seen
