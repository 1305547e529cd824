"""Attention masks are built once per point and kept, as a serving engine prepares them once per batch.

So timed passes launch none of the kernels that build masks.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
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

    def forget(self, point: SweepPoint | None = None) -> None:
        """Free the masks of a point, or of all points."""
        self._masks = {key: mask for key, mask in self._masks.items() if point is not None and key[0] != point}

    def _kept(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def build(*args: Any, **kwargs: Any) -> Any:
            if self._point is None:
                return function(*args, **kwargs)
            call = self._calls[name] = self._calls.get(name, -1) + 1
            key = (self._point, name, call)
            if key not in self._masks:
                made = function(*args, **kwargs)
                if _has_tensors(made) and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                    raise RuntimeError(f"{name} builds a mask during a capture; run the pass once before")
                self._masks[key] = made
            return self._masks[key]

        return build


def _has_tensors(mask: Any) -> bool:
    """Whether a mask, or one of several by kind of attention, is more than None: then kernels have built it."""
    return any(map(_has_tensors, mask.values())) if isinstance(mask, dict) else mask is not None
