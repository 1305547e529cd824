"""Functions compiled by Inductor, each by itself, and compared with the ones that they replace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from llm_profile.errors import is_out_of_memory, one_line
from llm_profile.passes.call_sites import Example, copied, tensors_of

STEPS_APART = 16
"""Largest difference between compiled and eager code, in steps of the dtype at the largest value of the output.

Inductor computes in float32 where eager code rounds to the dtype after each operator; a sum of a few products then
differs by some steps.
"""


IN_THIS_PROCESS: dict[str, Any] = {"compile_threads": 1}
"""Inductor compiles without processes of its own, which would stay and take time from what is measured."""


class CannotFuseError(Exception):
    """A part of a model that keeps its own kernels. The message says why, in a few words."""


class Compiled:
    """A function that Inductor compiles by itself, for any number of tokens and for one token.

    It may be called while a TorchDispatchMode is active, which then does not see its operators.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        # Another batch size compiles once more, when it first runs, and then for any size.
        self._compiled = torch.compile(_of_own_code(function), fullgraph=True, options=IN_THIS_PROCESS)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch._C._len_torch_dispatch_stack():  # dynamo refuses to compile under such a mode
            with _disable_current_modes():
                return self._compiled(*args, **kwargs)
        return self._compiled(*args, **kwargs)

    def check(self, function: Callable[..., Any], bound: tuple[Any, ...], examples: Sequence[Example]) -> None:
        """Compile for each example, and compare with the function itself.

        bound: arguments in front of those of the examples. Raises CannotFuseError where that fails or differs.
        """
        for call, varying in examples:
            given = copied(call)  # some functions write into what they get
            wanted = function(*bound, *given.args, **given.kwargs)
            for tensor, dims in zip(tensors_of(call), varying, strict=True):
                for dim in dims:
                    if tensor.shape[dim] > 1:  # 1 is compiled for itself
                        torch._dynamo.mark_dynamic(tensor, dim)
            try:
                with _in_this_process():
                    found = self(*bound, *call.args, **call.kwargs)
            except Exception as error:  # dynamo, Inductor and compilers raise errors of many types
                if is_out_of_memory(error):
                    raise
                raise CannotFuseError(f"not compiled: {type(error).__name__}: {one_line(error, 100)}") from error
            if not agree(wanted, found):
                raise CannotFuseError("compiled code computes something else")


def _of_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind a code object of its own: dynamo keeps what it compiled, and counts it, per code object."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)


@contextmanager
def _in_this_process() -> Iterator[None]:
    """While open, Inductor starts no processes, not even when it is imported."""
    import torch._inductor.config as inductor

    with inductor.patch(IN_THIS_PROCESS):
        yield


def agree(wanted: Any, found: Any) -> bool:
    """Whether outputs are the same, to STEPS_APART: tensors, or tuples and lists of them."""
    if isinstance(wanted, tuple | list):
        return len(wanted) == len(found) and all(map(agree, wanted, found))
    if not isinstance(wanted, torch.Tensor):
        return bool(wanted == found)
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return False
    if not (wanted.is_floating_point() or wanted.is_complex()) or not wanted.numel():
        return torch.equal(wanted, found)
    precise = torch.complex128 if wanted.is_complex() else torch.float64
    one, other = wanted.to(precise), found.to(precise)
    most = one.nan_to_num(0, 0, 0).abs().max()
    allowed = float(STEPS_APART * torch.finfo(wanted.dtype).eps * most)
    return bool(torch.isclose(one, other, rtol=0, atol=allowed, equal_nan=True).all())
