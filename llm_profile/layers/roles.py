"""Norms and activations among the layers of a model, found by what they compute and not by their names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llm_profile.layers.probe import running_modules

TOLERANCE_OF_ROLES = 1e-2
"""Largest difference of outputs that are taken as the same, as a share of the largest value. bfloat16 has steps of
0.8 % of a value."""


@dataclass(frozen=True)
class Call:
    """Arguments of a call: copies of what a module or function was given in a pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def first_tensor(self) -> torch.Tensor | None:
        """The first argument, if it is a tensor of floating point numbers."""
        first = self.args[0] if self.args else next(iter(self.kwargs.values()), None)
        return first if isinstance(first, torch.Tensor) and first.is_floating_point() else None

    def with_first(self, value: torch.Tensor) -> "Call":
        """The same call with another first argument."""
        if self.args:
            return Call((value, *self.args[1:]), self.kwargs)
        return Call((), {**self.kwargs, next(iter(self.kwargs)): value})


@dataclass
class Roles:
    """What one pass showed of a model. Of modules that several blocks share, and of several calls, the first counts.

    norms, activations: childless modules, each with a call of one token. products: activation whose output its
    container multiplies with something -> this container. container_calls: a call of each of these. unclear: childless
    modules without parameters whose output is multiplied too, but which are neither.
    """

    norms: dict[nn.Module, Call] = field(default_factory=dict)
    activations: dict[nn.Module, Call] = field(default_factory=dict)
    products: dict[nn.Module, nn.Module] = field(default_factory=dict)
    container_calls: dict[nn.Module, Call] = field(default_factory=dict)
    unclear: list[nn.Module] = field(default_factory=list)


def find_roles(model: nn.Module, forward: Callable[[], Any]) -> Roles:
    """Run `forward`, a pass of one token, and tell norms and activations by what they compute. Gradients are off."""
    calls: dict[nn.Module, Call] = {}
    roles = Roles()

    def note_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module not in calls and module is not model:
            calls[module] = Call(tuple(map(_copy, args)), {name: _copy(value) for name, value in kwargs.items()})

    handles = [module.register_forward_pre_hook(note_call, with_kwargs=True) for module in model.modules()]
    try:
        with running_modules(model) as stack, _Products(model, stack) as products:
            forward()
    finally:
        for handle in handles:
            handle.remove()
    for module, call in calls.items():
        if any(True for _ in module.children()) or not _is_of_layer(module, call):
            continue
        if is_norm(module.forward, call):
            roles.norms[module] = call
        elif is_activation(module, call):
            roles.activations[module] = call
        elif module in products.found and not any(True for _ in module.parameters()) and launches(module.forward, call):
            roles.unclear.append(module)
    roles.products = {a: container for a, container in products.found.items() if a in roles.activations}
    roles.container_calls = {c: calls[c] for c in roles.products.values() if c in calls}
    return roles


def is_norm(function: Callable[..., Any], call: Call) -> bool:
    """Whether a function's output has the shape of its first argument and does not change if that is scaled.

    call: arguments to try it with; the first tensor is replaced by random numbers.
    """
    if (given := call.first_tensor) is None:
        return False
    first, second = _random_like(given, 1), _random_like(given, 2)
    outputs = [_output(function, call.with_first(x)) for x in (first, 4 * first, second)]
    if any(out is None or out.shape != given.shape for out in outputs):
        return False
    one, scaled, other = (out.float() for out in outputs if out is not None)
    most = one.abs().max()
    return bool((one - scaled).abs().max() <= TOLERANCE_OF_ROLES * most < (one - other).abs().max())


def is_activation(module: nn.Module, call: Call) -> bool:
    """Whether a module without parameters computes each value of its output from one value of its one argument."""
    given = call.first_tensor
    if given is None or len(call.args) + len(call.kwargs) != 1 or any(True for _ in module.parameters()):
        return False
    values = _random_like(given, 1)
    whole, reversed_ = _output(module.forward, call.with_first(values)), None
    if whole is not None and whole.shape == given.shape and whole.shape[-1] > 1:
        reversed_ = _output(module.forward, call.with_first(values[..., 1:].flip(-1)))
    if whole is None or reversed_ is None or reversed_.shape != whole[..., 1:].shape:
        return False
    off = (reversed_.flip(-1).float() - whole[..., 1:].float()).abs().max()
    return bool(off <= TOLERANCE_OF_ROLES * whole.float().abs().max()) and not torch.equal(whole, values)


def launches(function: Callable[..., Any], call: Call) -> int:
    """Number of operators that compute something in a call of a function; views do not."""
    with _Counting() as counting:
        _output(function, call)
    return counting.operators


def _is_of_layer(module: nn.Module, call: Call) -> bool:
    """Whether a call is of a tensor, and no parameter of the module is larger than it, as weights of products are."""
    given = call.first_tensor
    return given is not None and all(p.numel() <= given.numel() for p in module.parameters())


def _random_like(given: torch.Tensor, seed: int) -> torch.Tensor:
    """Random numbers so large that what norms add to the variance does not count."""
    generator = torch.Generator(given.device).manual_seed(seed)
    values = torch.randn(given.shape, device=given.device, generator=generator)
    return (8 * values).to(given.dtype)


def _output(function: Callable[..., Any], call: Call) -> torch.Tensor | None:
    """What a call returns; None if that is no tensor, or if the function does not take such arguments."""
    try:
        output = function(*call.args, **call.kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None
    return output if isinstance(output, torch.Tensor) else None


def _copy(value: Any) -> Any:
    """A copy of a tensor with its strides, so that what a pass does to it later does not matter."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone()


class _Counting(TorchDispatchMode):
    operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += not func.is_view
        return func(*args, **(kwargs or {}))


class _Products(TorchDispatchMode):
    """Notes each module without children whose output is multiplied by the module around it.

    found: childless module -> the module around it. stack: of `running_modules`.
    """

    def __init__(self, model: nn.Module, stack: list[Any]) -> None:
        super().__init__()
        self.found: dict[nn.Module, nn.Module] = {}
        self._model, self._stack = model, stack
        self._outputs: dict[int, tuple[torch.Tensor, nn.Module]] = {}  # by id; holds the tensor, so ids stay unique
        self._handles: list[Any] = []

    def __enter__(self) -> "_Products":
        childless = [module for module in self._model.modules() if not any(True for _ in module.children())]
        self._handles = [module.register_forward_hook(self._note) for module in childless]
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        for handle in self._handles:
            handle.remove()
        self._outputs.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.mul and self._stack:
            for factor in args:
                if (known := self._outputs.get(id(factor))) is not None and known[1] is not self._stack[-1]:
                    self.found.setdefault(known[1], self._stack[-1])
        return func(*args, **(kwargs or {}))

    def _note(self, module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            self._outputs[id(output)] = (output, module)
