"""Functions of a model's code that are called in passes: looked up in an object, recorded, and replaced for a while."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from llm_profile.layers.roles import Call
from llm_profile.models.patches import overridden
from llm_profile.points import SweepPoint


@dataclass(frozen=True, eq=False)
class CallSite:
    """A function and the object in which the model's code looks it up.

    row: the row that its time goes to. owner: an instance or the namespace of a file. function: computes
    `owner.attribute(*args)` as function(*bound, *args). bound: the module, for functions that a class defines; so
    modules of one class share a function. alike: what else tells apart functions that may not share compiled code; of
    functions without `bound`, those with an equal `alike` compute the same.
    """

    row: str
    owner: Any
    attribute: str
    function: Callable[..., Any]
    bound: tuple[Any, ...] = ()
    alike: Any = None

    @property
    def kind(self) -> Any:
        """Equal for sites that may share compiled code, if they get tensors of the same shapes."""
        return self.alike if self.alike is not None and not self.bound else (self.function, self.alike)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own code computes."""
        return self.function(*self.bound, *args, **kwargs)


def replaced(site: CallSite, value: Any) -> AbstractContextManager[None]:
    """A context in which the model's code finds `value` in place of the function of a site."""
    return overridden(site.owner, site.attribute, value)


def site_of(owner: Any, attribute: str, row: str, alike: Any = None) -> CallSite:
    """The site of a method of a module: of its class, unless the module has a function of its own."""
    if attribute in vars(owner):
        return CallSite(row, owner, attribute, vars(owner)[attribute], alike=alike)
    return CallSite(row, owner, attribute, getattr(type(owner), attribute), (owner,), alike)


Example = tuple[Call, tuple[tuple[int, ...], ...]]
"""A call, and for each of its tensors (`tensors_of`) the dimensions that vary with the number of tokens."""


def examples_of(
    sites: Sequence[CallSite], run: Callable[[SweepPoint], Any], point_pairs: Sequence[tuple[SweepPoint, ...]]
) -> dict[CallSite, list[Example]]:
    """Calls of each site in passes at points, one of each shape. Sites that nothing called are left out.

    run: makes a pass. point_pairs: points, or pairs of points; dimensions that differ within a pair vary with the
    length, and the calls are those at the second point.
    """
    found: dict[CallSite, list[Example]] = {}
    for points in point_pairs:
        passes = [_calls(sites, run, point) for point in points]
        for site, calls in passes[-1].items():
            others = passes[0].get(site, [])
            for number, call in enumerate(calls):
                other = others[number] if number < len(others) else call
                example = (call, tuple(map(_differing, tensors_of(other), tensors_of(call))))
                kept = found.setdefault(site, [])
                if _shapes(example) not in map(_shapes, kept):
                    kept.append(example)
    return found


def tensors_of(call: Call) -> list[torch.Tensor]:
    """The tensors among the arguments of a call, those in tuples and lists included."""
    flat: list[Any] = [*call.args, *call.kwargs.values()]
    flat = [part for value in flat for part in (value if isinstance(value, tuple | list) else (value,))]
    return [value for value in flat if isinstance(value, torch.Tensor)]


def _forms(call: Call) -> list[Any]:
    """Shape and type of each tensor of a call, and its other arguments as text."""
    values = [*call.args, *call.kwargs.values()]
    others = [repr(value) for value in values if not isinstance(value, torch.Tensor | tuple | list)]
    return [*((tensor.shape, tensor.dtype) for tensor in tensors_of(call)), others]


def _differing(one: torch.Tensor, other: torch.Tensor) -> tuple[int, ...]:
    return tuple(dim for dim, (a, b) in enumerate(zip(one.shape, other.shape, strict=False)) if a != b)


def _shapes(example: Example) -> Any:
    """What tells examples apart: sizes, those of dimensions that vary left out unless they are 1."""
    call, varying = example
    return [
        (tensor.dtype, tuple(n if n < 2 or dim not in of else None for dim, n in enumerate(tensor.shape)))
        for tensor, of in zip(tensors_of(call), varying, strict=True)
    ]


def _calls(
    sites: Sequence[CallSite], run: Callable[[SweepPoint], Any], point: SweepPoint
) -> dict[CallSite, list[Call]]:
    """The calls of each site in a pass, the first one of each shape, with copies of their tensors."""
    calls: dict[CallSite, list[Call]] = {}
    copies: dict[Any, Call] = {}  # sites of a kind share them, since a deep model has many

    def recording(site: CallSite) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given, known = Call(args, kwargs), calls.setdefault(site, [])
            if all(_forms(given) != _forms(one) for one in known):
                key = (site.kind, repr(_forms(given)))
                if key not in copies:
                    copies[key] = copied(given)
                known.append(copies[key])
            return site.call(*args, **kwargs)

        return call

    with ExitStack() as undo:
        for site in sites:
            undo.enter_context(replaced(site, recording(site)))
        run(point)
    return calls


def copied(call: Call) -> Call:
    """The call with copies of its tensors, with the strides that they had."""

    def copy(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(copy, value))
        if not isinstance(value, torch.Tensor):
            return value
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        return made.copy_(value) if 0 not in value.stride() else value.detach().clone()

    return Call(tuple(map(copy, call.args)), {name: copy(value) for name, value in call.kwargs.items()})
