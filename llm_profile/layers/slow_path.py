"""Layers that are slow because a kernel is missing: reference implementations, and Python loops over tokens.

Where the package of a kernel is not installed, transformers runs a reference implementation in PyTorch instead, which
it calls correct but much slower. Some models loop over tokens on their own, with or without a package to mend it. Their
times say little about a serving engine, which runs kernels.
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
from llm_profile.layers.probe import noted, running_modules
from llm_profile.models.patches import ANY_FUNCTION, modelling_functions, patched
from llm_profile.points import SweepPoint

LOOP_TOKENS = 63
"""The longest prompt that shows loops over tokens: just short of a chunk, since chunks may be computed at once."""

FEWEST_TOKENS = 16
"""Prompts shorter than this show no loops: that of experts, over those that got tokens, looks the same."""


def slow_layers(
    model: nn.Module, run: Callable[[SweepPoint], Any], max_input: int, max_total: int
) -> dict[nn.Module, set[str]]:
    """The modules that run slowly, each with the packages that it lacks; none where it loops and no package is known.

    run: makes a pass of `model`; max_input, max_total: the largest that it can make, in tokens.
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
        if module not in experts:  # they loop over experts, which the user may choose
            lacking.setdefault(module, set())
    return lacking


def missing_package(function: Callable[..., Any]) -> str | None:
    """The package whose kernel a function of a modelling file stands in for; None where it is no such function.

    Read from the closure that `use_kernel_func_from_hub_with_fallback` of transformers leaves, which is all there is.
    """
    if isinstance(function, nn.Module):  # what the package `kernels` makes of functions
        inner = getclosurevars(type(function).forward).nonlocals.get("func")
        return missing_package(inner) if inner is not None else None
    if not isinstance(function, FunctionType) or not function.__closure__:
        return None
    chosen = getclosurevars(function)
    if chosen.nonlocals.get("is_new_implementation", True):
        return None
    package = str(chosen.nonlocals["package"])
    return str(chosen.globals.get("_PACKAGE_TO_DISTRIBUTION", {}).get(package, package))


def reason(packages: set[str]) -> str:
    """Why a layer is slow."""
    return f"without {', '.join(sorted(packages))}" if packages else "a Python loop over tokens"


def _growing(counts: list[Counter[nn.Module]]) -> list[nn.Module]:
    """Modules that run more operators with each further token. counts: of prompts of neighbouring lengths."""
    steps = list(pairwise(counts))
    return [module for module in counts[0] if steps and all(after[module] > before[module] for before, after in steps)]


class _Watch(TorchDispatchMode):
    """Counts the operators of each module by itself, and notes which runs reference implementations.

    lacking: filled with the modules that do, and the packages that they lack.
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
                    noting = noted(function, self._open, partial(self._note, package))
                    undo.enter_context(patched(namespace, name, noting))
            super().__enter__()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._undo.close()

    def operators(self, run: Callable[[SweepPoint], Any], point: SweepPoint) -> Counter[nn.Module]:
        """Operators of one pass, per module."""
        run(point)  # caches get their buffers
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
