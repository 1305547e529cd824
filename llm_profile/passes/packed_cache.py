"""The KV cache of packed passes: a buffer per layer that holds all sequences, written in place."""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from llm_profile.models.memory import check_fits
from llm_profile.passes.packed_layout import PackedLayout

PACKED_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Classes of layers of transformers' dynamic cache whose tokens can be packed: keys and values, nothing else. Layers of
sliding windows keep all tokens, and attention reads those in the window."""


class PackedLayer(DynamicLayer):
    """Keys and values of one block, each a buffer [capacity, heads, head_dim] of random numbers."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.layout: PackedLayout | None = None
        self.updates = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = self._random(key_states), self._random(value_states)
        self.is_initialized = True

    def _random(self, like: torch.Tensor) -> torch.Tensor:
        _, heads, _, dim = like.shape
        size = self.capacity * heads * dim * like.itemsize
        check_fits(like.device.type, size, "the keys of a block", "leave out --axes, or use fewer of them")
        return torch.randn(self.capacity, heads, dim, dtype=like.dtype, device=like.device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens of all sequences, [1, heads, tokens, dim], into their slots.

        Returns views of all sequences, [1, heads, total, dim].
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.layout is not None and self.keys is not None and self.values is not None
        self.updates += 1
        self.keys.index_copy_(0, self.layout.slots, key_states[0].transpose(0, 1))
        self.values.index_copy_(0, self.layout.slots, value_states[0].transpose(0, 1))
        total = self.layout.total
        return self.keys[:total].transpose(0, 1)[None], self.values[:total].transpose(0, 1)[None]

    def get_seq_length(self) -> int:
        return 0  # positions are given, and no mask is made

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values, once a pass has run."""
        kept = (self.keys, self.values) if self.is_initialized else ()
        return sum(each[0].numel() * each.itemsize for each in kept if each is not None)


class PackedCache(Cache):
    """The layers of a model's blocks. capacity: tokens that each holds, of all sequences together.

    Raises NotImplementedError for a configuration whose dynamic cache has a layer that is none of PACKED_LAYERS.
    """

    def __init__(self, config: Any, capacity: int) -> None:
        dynamic = DynamicCache(config=config).layers or [DynamicLayer()] * config.num_hidden_layers
        if strange := [layer for layer in dynamic if type(layer) not in PACKED_LAYERS]:
            raise NotImplementedError(type(strange[0]).__name__)
        self.capacity = capacity
        super().__init__(layers=[PackedLayer(capacity) for _ in dynamic])

    def lay_out(self, layout: PackedLayout) -> None:
        """Set where the tokens of the next pass lie. Raises MemoryError if there are more than the cache holds."""
        if layout.total > self.capacity:
            raise MemoryError(f"{layout.point}: {layout.total} tokens, where the cache holds {self.capacity}")
        for layer in self.layers:
            layer.layout, layer.updates = layout, 0

    @property
    def updates(self) -> int:
        """How often the latest pass wrote keys and values."""
        return sum(layer.updates for layer in self.layers)

    @property
    def bytes_per_token(self) -> int:
        """Of all layers, once a pass has run."""
        return sum(layer.bytes_per_token for layer in self.layers)
