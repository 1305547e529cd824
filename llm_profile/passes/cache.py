"""The KV cache of a timed pass.

transformers' own dynamic cache copies all of its keys and values in each decode step. `InPlaceCache` has a buffer per
layer, writes new keys and values into it and returns views, as serving engines do. How many past tokens there are is a
number on the host. So a pass can start from any number of past tokens without a prefill, be repeated from the same
state, and be captured in a CUDA graph. States of a fixed size (of convolutions and recurrences) are read from one
buffer and written to another, so that a pass does not change the state that the next pass starts from.

`CopiedCache` is for models whose code makes a cache of its own class: each pass gets a copy of what a prompt left.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from llm_profile.passes.cache_layers import IN_PLACE, BufferLayer, StateLayer

BOUND_POSITIONS = ("position_ids", "indexer_position_ids")
"""Attributes under which some models keep the positions of all tokens so far, on their cache or on its layers.

In each pass such a model appends the positions of the pass, so a rewind has to shorten them.
"""


class InPlaceCache(Cache):
    """A cache that is written in place, with a layer of the right kind for each block of the model.

    capacity: most tokens, past and new together, of any pass. Raises NotImplementedError for a configuration whose
    dynamic cache has a layer that IN_PLACE lacks.
    """

    kind = "in-place"

    def __init__(self, config: Any, capacity: int) -> None:
        layers: list[Any] = []
        for layer in DynamicCache(config=config).layers or [DynamicLayer()] * config.num_hidden_layers:
            if type(layer) not in IN_PLACE:
                raise NotImplementedError(type(layer).__name__)
            layers.append(IN_PLACE[type(layer)](layer, capacity))
        super().__init__(layers=layers)
        self._counts_tokens = any(isinstance(layer, BufferLayer) for layer in layers)
        self._kv_len = 0
        self._capacity = capacity
        self._positions: torch.Tensor | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens in the cache.

        States of a fixed size do not count tokens. A cache of nothing else has as many as it was last rewound to.
        """
        return int(super().get_seq_length(layer_idx)) if self._counts_tokens else self._kv_len

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Number of keys that the queries of a pass can see, and the position of the first of them.

        A model with states only builds a mask of this size as well, and does not use it.
        """
        if self._counts_tokens:
            length, offset = super().get_mask_sizes(query_length, layer_idx)
            return int(length), int(offset)
        return self._kv_len + query_length, 0

    def rewind(self, kv_len: int) -> None:
        """Start the next pass from `kv_len` past tokens. Copies nothing on the device."""
        self._kv_len = kv_len
        for layer in self.layers:
            layer.rewind(kv_len)
        self._rewind_positions(kv_len)

    def _rewind_positions(self, kv_len: int) -> None:
        for holder in (self, *self.layers):
            for name in BOUND_POSITIONS:
                bound = vars(holder).get(name)  # [..., tokens]
                if isinstance(bound, torch.Tensor):
                    if self._positions is None:
                        self._positions = torch.arange(self._capacity, device=bound.device).expand(
                            *bound.shape[:-1], -1
                        )
                    setattr(holder, name, self._positions[..., :kv_len])

    def restore(self) -> None:
        """Undo what passes wrote into past states. Copies tensors, so call it outside timed passes."""
        for layer in self.layers:
            if isinstance(layer, StateLayer):
                layer.restore()


class CopiedCache:
    """Copies of the cache that a prompt leaves, for models whose code makes a cache of its own class.

    Such a cache has no in-place form, and a pass changes it. So each pass gets a copy, made before the pass starts and
    not timed with it. prefill: runs the model on a prompt of so many tokens and returns the cache that it leaves.
    """

    kind = "own"

    def __init__(self, prefill: Callable[[int], Any]) -> None:
        self._prefill = prefill
        self._kv_len = 0
        self._past: Any = None

    def copy_at(self, kv_len: int) -> Any:
        """A copy of the cache after a prompt of `kv_len` tokens, for one pass; None for 0."""
        if kv_len == 0:
            return None
        if kv_len != self._kv_len:
            self._past, self._kv_len = self._prefill(kv_len), kv_len
        return copy.deepcopy(self._past)

    def restore(self) -> None:
        """Do nothing: every pass gets a copy of its own."""
