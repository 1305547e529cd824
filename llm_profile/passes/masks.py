"""Attention masks are built once per point and kept, as a serving engine prepares them once per batch.

So timed passes launch none of the kernels that build masks.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from llm_profile.models.patches import MASK_FUNCTION, modelling_functions, patched
from llm_profile.points import SweepPoint


class KeptMasks:
    """Replaces the functions that build a model's masks, while `installed`, by ones that reuse the masks of a point."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._masks: dict[tuple[SweepPoint, str, int], Any] = {}  # by point, function, and number of its call in a pass
        self._calls: dict[str, int] = {}  # function -> number of its latest call in this pass
        self._point: SweepPoint | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Patch the functions of the model's code, until the context ends."""
        with ExitStack() as undo:
            for namespace, name, function in modelling_functions(self._model, MASK_FUNCTION):
                undo.enter_context(patched(namespace, name, self._kept(name, function)))
            yield

    @contextmanager
    def of_pass(self, point: SweepPoint) -> Iterator[None]:
        """Context of one pass at this point. In passes outside such a context, the model builds its masks itself."""
        self._point = point
        self._calls.clear()
        try:
            yield
        finally:
            self._point = None

    def forget(self) -> None:
        """Free the masks of all points."""
        self._masks.clear()

    def _kept(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def build(*args: Any, **kwargs: Any) -> Any:
            if self._point is None:
                return function(*args, **kwargs)
            call = self._calls[name] = self._calls.get(name, -1) + 1
            key = (self._point, name, call)
            if key not in self._masks:
                self._masks[key] = function(*args, **kwargs)
            return self._masks[key]

        return build
