"""Ranges around layers: while a `LayerRanges` is open, a recorder is told when each layer of a model starts and ends.

After closing, the model, transformers and torch are as before.
"""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from torch import nn
from transformers.modeling_utils import AttentionInterface

from llm_profile.layers.layout import MODEL_OTHER, Layout
from llm_profile.models.patches import ROPE_FUNCTION, modelling_functions, patched


class Recorder(Protocol):
    """Is told about each range as it opens (`enter`) and closes (`leave`). Ranges are strictly nested."""

    def enter(self, row: str) -> None: ...

    def leave(self) -> None: ...


class LayerRanges:
    """Context manager: while open, each layer of `model` opens and closes a range named after its row.

    Ranges nest, and what is launched belongs to the innermost open one. A call of the attention interface is a range
    `attn`, a call of the rotary function a range `rope`, both of the block that is running. Around all others is the
    range `model_other`, the whole pass.
    """

    def __init__(self, model: nn.Module, layout: Layout, recorder: Recorder) -> None:
        self.model = model
        self.layout = layout
        self.recorder = recorder
        self._undo = ExitStack()
        self._kind: str | None = None

    def __enter__(self) -> "LayerRanges":
        with ExitStack() as undo:
            self._add_range(undo, self.model, MODEL_OTHER)
            for block, kind in self.layout.block_kind.items():
                undo.callback(block.register_forward_pre_hook(self._remember_kind(kind), prepend=True).remove)
            for site in self.layout.sites:
                self._add_range(undo, site.module, site.row)
            for namespace, name, function in modelling_functions(self.model, ROPE_FUNCTION):
                undo.enter_context(patched(namespace, name, self._ranged("rope", function)))
            undo.enter_context(patched(AttentionInterface, "get_interface", self._ranged_interface()))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._undo.close()

    def _remember_kind(self, kind: str) -> Callable[..., None]:
        def remember(_module: nn.Module, _args: Any) -> None:
            self._kind = kind

        return remember

    def _add_range(self, undo: ExitStack, module: nn.Module, row: str) -> None:
        enter, leave = self.recorder.enter, self.recorder.leave
        # before all other hooks: if one of those fails, `leave` is called all the same, and needs a range to close
        undo.callback(module.register_forward_pre_hook(lambda _m, _a: enter(row), prepend=True).remove)
        undo.callback(module.register_forward_hook(lambda _m, _a, _o: leave(), always_call=True).remove)

    def _ranged(self, row: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.recorder.enter(self.layout.qualify(self._kind, row))
            try:
                return function(*args, **kwargs)
            finally:
                self.recorder.leave()

        return run

    def _ranged_interface(self) -> Callable[..., Any]:
        original = AttentionInterface.get_interface

        def get_interface(interface: AttentionInterface, *args: Any, **kwargs: Any) -> Callable[..., Any]:
            return self._ranged("attn", original(interface, *args, **kwargs))

        return get_interface
