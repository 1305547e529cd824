"""The cache of a timed pass: written in place, with any number of past tokens at no cost.

transformers' own dynamic cache copies all of itself at each step. This one keeps a buffer a layer, writes new keys and
values into it and returns views, as serving engines do. Its length is a number on the host, so a pass can be run again
from the same state, and captured in a CUDA graph. States of a fixed size (convolutions, recurrences) are read from one
buffer and written to another, so that a pass does not change what the next one starts from.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from llm_profile.errors import check_at_least_one
from llm_profile.models.memory import check_fits


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
        size = like.shape[0] * like.shape[1] * self.capacity * like.shape[3] * like.itemsize
        check_fits(like.device.type, size, "the keys of a block", "use a smaller --decode-max or --prefill-max")
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
        return self.length if self.is_initialized else 0  # a block that no pass ran (it looks at images) has no past

    def rewind(self, kv_len: int) -> None:
        """Make it as if `kv_len` tokens were in the cache. Touches no tensor."""
        self.length = kv_len


class SlidingBufferLayer(BufferLayer, DynamicSlidingWindowLayer):
    """A layer that sees the last `sliding_window` tokens: no more than window - 1 past tokens are kept.

    Past the window the shapes are right and the contents are not the latest tokens: times do not depend on them.
    """

    def __init__(self, capacity: int, sliding_window: int) -> None:
        check_at_least_one("sliding_window", sliding_window)
        DynamicSlidingWindowLayer.__init__(self, sliding_window=sliding_window)
        self.capacity = capacity
        self.length = 0

    def stored(self) -> int:
        return min(self.length, self.sliding_window - 1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a query of this pass can see."""
        return self.stored() + query_length, self.length - self.stored()


class IndexedBufferLayer(BufferLayer, DynamicIndexedLayer):
    """A full layer with the keys of an indexer beside it: [batch, capacity, index_head_dim]."""

    def __init__(self, capacity: int) -> None:
        DynamicIndexedLayer.__init__(self)
        self.is_indexer_initialized: bool
        self.capacity = capacity
        self.length = self.indexed = 0

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Write [batch, n, index_head_dim] behind the past and return a view of past and new together."""
        new = indexer_key_states
        if not self.is_indexer_initialized:
            self.indexer_keys = torch.randn(
                new.shape[0], self.capacity, new.shape[2], dtype=new.dtype, device=new.device
            )
            self.is_indexer_initialized = True
        start, self.indexed = self.indexed, self.indexed + new.shape[1]
        self.indexer_keys[:, start : self.indexed].copy_(new)
        return self.indexer_keys[:, : self.indexed]

    def rewind(self, kv_len: int) -> None:
        super().rewind(kv_len)
        self.indexed = kv_len


class StateLayer(LinearAttentionLayer):
    """States of a fixed size: of convolutions [batch, channels, kernel], of recurrences in the model's own shape.

    A pass reads a random past and writes beside it; a further pass without a rewind goes on from what was written.
    Functions that update a state where it stands (of a convolution, mostly) change the past, which `restore` undoes.
    """

    def __init__(self, number_of_states: int = 1) -> None:
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)
        self.has_previous_state: dict[int, bool] = dict.fromkeys(range(number_of_states), False)
        self._past: dict[tuple[str, int], torch.Tensor] = {}
        self._written: dict[tuple[str, int], torch.Tensor] = {}
        self._original: dict[tuple[str, int], torch.Tensor] = {}

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        LinearAttentionLayer.lazy_initialization(self, *args, **kwargs)
        number = kwargs.get("state_idx", 0)
        for name in ("conv_states", "recurrent_states"):
            state = getattr(self, name)[number]
            if state is not None and (name, number) not in self._past:
                self._past[name, number] = state.normal_()
                self._written[name, number] = torch.empty_like(state)
                self._original[name, number] = state.clone()

    def update_conv_state(self, conv_states: torch.Tensor, state_idx: int = 0, **kwargs: Any) -> torch.Tensor:
        """Append [batch, channels, n]. Returns past and new together, padded in front where there is no past."""
        if not self.is_conv_states_initialized[state_idx]:
            self.lazy_initialization(conv_states=conv_states, state_idx=state_idx, **kwargs)
        written = self._written["conv_states", state_idx]
        if self.has_previous_state[state_idx]:
            whole = torch.cat([self.conv_states[state_idx], conv_states], dim=-1)
        else:
            missing = max(0, written.shape[-1] - conv_states.shape[-1])
            whole = torch.nn.functional.pad(conv_states, (missing, 0))
        self.has_previous_state[state_idx] = True
        self.conv_states[state_idx] = written.copy_(whole[..., -written.shape[-1] :])
        return whole

    def update_recurrent_state(self, recurrent_states: torch.Tensor, state_idx: int = 0, **kwargs: Any) -> torch.Tensor:
        """Replace the state. Returns the buffer that holds it."""
        if not self.is_recurrent_states_initialized[state_idx]:
            self.lazy_initialization(recurrent_states=recurrent_states, state_idx=state_idx)
        written = self._written["recurrent_states", state_idx]
        self.recurrent_states[state_idx] = written.copy_(recurrent_states)
        return written

    def rewind(self, kv_len: int) -> None:
        """Make it as if there was a past, or none. Touches no tensor."""
        for (name, number), past in self._past.items():
            getattr(self, name)[number] = past
        self.has_previous_state = dict.fromkeys(self.has_previous_state, kv_len > 0)

    def restore(self) -> None:
        """Undo what passes wrote into the past. Touches tensors, so it belongs outside timed passes."""
        for key, past in self._past.items():
            past.copy_(self._original[key])


class _StateAndBuffer(StateLayer, BufferLayer):
    """What both kinds of blocks with both share: states come by name, keys and values as two positional arguments."""

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        (BufferLayer if args else StateLayer).lazy_initialization(self, *args, **kwargs)

    def rewind(self, kv_len: int) -> None:
        BufferLayer.rewind(self, kv_len)
        StateLayer.rewind(self, kv_len)


class StateAndBufferLayer(_StateAndBuffer, LinearAttentionAndFullAttentionLayer):
    """A block with both: states of a fixed size, and keys and values."""

    def __init__(self, capacity: int, number_of_states: int) -> None:
        BufferLayer.__init__(self, capacity)
        StateLayer.__init__(self, number_of_states)


class StateAndSlidingBufferLayer(_StateAndBuffer, SlidingBufferLayer, LinearAttentionAndSlidingWindowAttentionLayer):
    """A block with both: states of a fixed size, and the keys and values of a window."""

    def __init__(self, capacity: int, sliding_window: int, number_of_states: int) -> None:
        SlidingBufferLayer.__init__(self, capacity, sliding_window)
        StateLayer.__init__(self, number_of_states)


IN_PLACE: dict[type, Callable[[Any, int], Any]] = {
    # layer of transformers' dynamic cache -> the same in place, for this many tokens at most
    DynamicLayer: lambda layer, capacity: BufferLayer(capacity),
    DynamicSlidingWindowLayer: lambda layer, capacity: SlidingBufferLayer(capacity, layer.sliding_window),
    DynamicIndexedLayer: lambda layer, capacity: IndexedBufferLayer(capacity),
    LinearAttentionLayer: lambda layer, capacity: StateLayer(layer.number_of_states),
    LinearAttentionAndFullAttentionLayer: lambda layer, capacity: StateAndBufferLayer(capacity, layer.number_of_states),
    LinearAttentionAndSlidingWindowAttentionLayer: lambda layer, capacity: StateAndSlidingBufferLayer(
        capacity, layer.sliding_window, layer.number_of_states
    ),
}


BOUND_POSITIONS = ("position_ids", "indexer_position_ids")
"""Where models bind the positions of all tokens so far to their cache, or to its layers, and add those of each pass."""


class InPlaceCache(Cache):
    """A cache of the model's own kinds of layers, in place. capacity: most tokens, past and new, of any pass.

    Raises NotImplementedError for a configuration with layers that it has nothing for.
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
        """Tokens in the cache. States alone do not count them: then those that it was rewound to."""
        return int(super().get_seq_length(layer_idx)) if self._counts_tokens else self._kv_len

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys that a query can see. Behind states alone a mask is made and not used."""
        if self._counts_tokens:
            length, offset = super().get_mask_sizes(query_length, layer_idx)
            return int(length), int(offset)
        return self._kv_len + query_length, 0

    def rewind(self, kv_len: int) -> None:
        """Make it as if `kv_len` tokens were in the cache, without touching the device."""
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
        """Undo what passes wrote into past states. Touches the device, so it belongs outside timed passes."""
        for layer in self.layers:
            if isinstance(layer, StateLayer):
                layer.restore()


class PastOfAPrompt:
    """The cache of a model whose code makes one of a class of its own: what a prompt of so many tokens leaves in it.

    Each pass gets a copy, made before it starts. prefill: runs the model on so many tokens without a past and returns
    the cache that it leaves.
    """

    kind = "own"
    # There is no in-place form of these caches. A copy is made before the pass and not timed with it.

    def __init__(self, prefill: Callable[[int], Any]) -> None:
        self._prefill = prefill
        self._kv_len = 0
        self._past: Any = None

    def at(self, kv_len: int) -> Any:
        """A cache of `kv_len` tokens to be used once; None where there are none."""
        if kv_len == 0:
            return None
        if kv_len != self._kv_len:
            self._past, self._kv_len = self._prefill(kv_len), kv_len
        return copy.deepcopy(self._past)

    def restore(self) -> None:
        """Nothing to do: every pass gets a copy of its own."""
