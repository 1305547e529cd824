"""Finds layers that run slowly because they have no kernel: reference implementations, and Python loops over tokens.

Where the package of a kernel is not installed, transformers runs a reference implementation in PyTorch instead, which
it calls correct but much slower. The code of some models loops over tokens in Python, and not always is there a package
that replaces the loop. The times of such layers say little about a serving engine, which runs kernels.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from inspect import getclosurevars
from itertools import pairwise
from types import FunctionType
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llm_profile.layers.layout import expert_modules
from llm_profile.layers.probe import noting_caller, running_modules
from llm_profile.models.patches import ANY_FUNCTION, modelling_functions, patched
from llm_profile.points import SweepPoint

LOOP_TOKENS = 63
"""Longest prompt that is run to find loops, in tokens: below a chunk of 64, which some loops compute at once."""

FEWEST_TOKENS = 16
"""Shortest prompt that can show a loop over tokens. In shorter ones a loop over experts looks the same: each further
token may reach an expert that had none."""


def slow_layers(
    model: nn.Module, run: Callable[[SweepPoint], Any], max_input: int, max_total: int
) -> dict[nn.Module, set[str]]:
    """The modules that run slowly, each with the packages that are missing; empty for a loop without a known package.

    run: makes a pass of `model`. max_input: longest prompt that it can run. max_total: most tokens with those in the
    cache.
    """
    longest = min(LOOP_TOKENS, max_input)
    loops = (longest - 2, longest - 1, longest) if longest >= FEWEST_TOKENS else (longest,)
    lacking: dict[nn.Module, set[str]] = {}
    with _Watch(model, lacking) as watch:
        seen = [watch.operators(run, SweepPoint(tokens, 0)) for tokens in loops]
        if max_total > 1:
            watch.operators(run, SweepPoint(1, 1))
    experts = {part for module in expert_modules(model) for part in module.modules()}
    for module in _growing(seen):
        if module not in experts:  # a loop over experts is one of the implementations that users may choose
            lacking.setdefault(module, set())
    return lacking


def missing_package(function: Callable[..., Any]) -> str | None:
    """The package whose kernel this function of a modelling file replaces; None if it replaces none.

    Read from the closure that the decorator `use_kernel_func_from_hub_with_fallback` of transformers makes: nothing
    else tells it.
    """
    if isinstance(function, nn.Module):  # with the package `kernels` installed, such functions are modules
        inner = getclosurevars(type(function).forward).nonlocals.get("func")
        return missing_package(inner) if inner is not None else None
    if not isinstance(function, FunctionType) or not function.__closure__:
        return None
    chosen = getclosurevars(function)
    if chosen.nonlocals.get("is_new_implementation", True):
        return None
    package = str(chosen.nonlocals["package"])
    return str(chosen.globals.get("_PACKAGE_TO_DISTRIBUTION", {}).get(package, package))


def why_slow(packages: set[str]) -> str:
    """Why a layer is slow, for users. packages: those that are missing, as `slow_layers` returns them."""
    return f"without {', '.join(sorted(packages))}" if packages else "a Python loop over tokens"


def _growing(counts: list[Counter[nn.Module]]) -> list[nn.Module]:
    """The modules that run more operators the longer the prompt is. counts: of prompts of 1, 2, ... tokens more."""
    steps = list(pairwise(counts))
    return [module for module in counts[0] if steps and all(after[module] > before[module] for before, after in steps)]


class _Watch(TorchDispatchMode):
    """Counts the operators that each module runs, and notes the modules that call reference implementations.

    lacking: is filled with these modules, each with the missing packages.
    """

    def __init__(self, model: nn.Module, lacking: dict[nn.Module, set[str]]) -> None:
        super().__init__()
        self._model, self._lacking = model, lacking
        self._open: list[nn.Module] = []
        self._counts: Counter[nn.Module] = Counter()
        self._undo = ExitStack()

    def __enter__(self) -> "_Watch":
        with ExitStack() as undo:
            self._open = undo.enter_context(running_modules(self._model))
            for namespace, name, function in modelling_functions(self._model, ANY_FUNCTION):
                if package := missing_package(function):
                    noting = noting_caller(function, self._open, partial(self._note, package))
                    undo.enter_context(patched(namespace, name, noting))
            super().__enter__()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._undo.close()

    def operators(self, run: Callable[[SweepPoint], Any], point: SweepPoint) -> Counter[nn.Module]:
        """Number of operators that each module runs in one pass, without those of its children."""
        run(point)  # the first pass at a length also makes the buffers of the cache
        self._counts = Counter()
        run(point)
        counted, self._counts = self._counts, Counter()
        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._open:
            self._counts[self._open[-1]] += 1
        return func(*args, **(kwargs or {}))

    def _note(self, package: str, module: nn.Module) -> None:
        self._lacking.setdefault(module, set()).add(package)
