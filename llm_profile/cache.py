"""The KV cache of a timed pass: written in place, with any number of past tokens at no cost.

transformers' own dynamic cache copies all of itself at each step. This one keeps a buffer a layer, writes new keys and
values into it and returns views, as serving engines do. Its length is a number on the host, so a pass can be run again
from the same state, and captured in a CUDA graph.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class BufferLayer(DynamicLayer):
    """Keys and values of one layer: preallocated, [batch, heads, capacity, head_dim], of random past tokens."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = self._random(key_states)
        self.values = self._random(value_states)
        self.is_initialized = True

    def _random(self, like: torch.Tensor) -> torch.Tensor:
        # random, never zeros: arithmetic on zeros draws less power and runs at a higher clock
        return torch.randn(*like.shape[:2], self.capacity, like.shape[3], dtype=like.dtype, device=like.device)

    def stored(self) -> int:
        """How many past tokens the buffer holds before the pass."""
        return self.length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [batch, heads, n, head_dim] behind the past and return views of past and new together."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        start = self.stored()
        end = start + key_states.shape[-2]
        self.keys[:, :, start:end].copy_(key_states)
        self.values[:, :, start:end].copy_(value_states)
        self.length += key_states.shape[-2]
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def rewind(self, kv_len: int) -> None:
        """Make it as if `kv_len` tokens were in the cache. Touches no tensor."""
        self.length = kv_len


class SlidingBufferLayer(BufferLayer, DynamicSlidingWindowLayer):
    """A layer that sees the last `sliding_window` tokens: no more than window - 1 past tokens are kept.

    Past the window the shapes are right and the contents are not the latest tokens: times do not depend on them.
    """

    def __init__(self, capacity: int, sliding_window: int) -> None:
        DynamicSlidingWindowLayer.__init__(self, sliding_window=sliding_window)
        self.capacity = capacity
        self.length = 0

    def stored(self) -> int:
        return min(self.length, self.sliding_window - 1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a query of this pass can see."""
        return self.stored() + query_length, self.length - self.stored()


class InPlaceCache(Cache):
    """A cache of the model's own kinds of layers, in place. capacity: most tokens, past and new, of any pass."""

    def __init__(self, config: Any, capacity: int) -> None:
        layers: list[Any] = []
        for layer in DynamicCache(config=config).layers:
            if type(layer) is DynamicLayer:
                layers.append(BufferLayer(capacity))
            elif type(layer) is DynamicSlidingWindowLayer:
                layers.append(SlidingBufferLayer(capacity, layer.sliding_window))
            else:
                raise NotImplementedError(type(layer).__name__)
        super().__init__(layers=layers)
        self.kind = "in-place"

    def rewind(self, kv_len: int) -> None:
        """Make it as if `kv_len` tokens were in the cache, without touching the device."""
        for layer in self.layers:
            layer.rewind(kv_len)
