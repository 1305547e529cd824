"""The layers of the in-place cache: keys, values and states of one decoder block in preallocated buffers.

Each class has the interface of a layer of transformers' dynamic cache. `rewind` sets how many past tokens there are
before the next pass. It changes a number on the host, or which buffer is read, and copies nothing on the device.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import (
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
    """Keys and values of one block, each a buffer [batch, heads, capacity, head_dim] of random numbers.

    capacity: most tokens, past and new together, of any pass.
    """

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
        # Random numbers, not zeros: arithmetic on zeros draws less power, so the GPU would run at a higher clock.
        return torch.randn(*like.shape[:2], self.capacity, like.shape[3], dtype=like.dtype, device=like.device)

    def stored(self) -> int:
        """Number of past tokens that a pass reads from the buffer."""
        return self.length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write n new tokens, [batch, heads, n, head_dim], behind the past. Returns views of past and new together."""
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
        # A block that no pass has run (it attends to images only) has no past.
        return self.length if self.is_initialized else 0

    def rewind(self, kv_len: int) -> None:
        """Start the next pass from `kv_len` past tokens. Reads and writes no tensor."""
        self.length = kv_len


class SlidingBufferLayer(BufferLayer, DynamicSlidingWindowLayer):
    """Keys and values of a block with sliding window attention: a pass reads at most `sliding_window` - 1 past tokens.

    Once more tokens than that are in the cache, the views have the right shape but not the latest tokens. Times do not
    depend on which tokens they are.
    """

    def __init__(self, capacity: int, sliding_window: int) -> None:
        check_at_least_one("sliding_window", sliding_window)
        DynamicSlidingWindowLayer.__init__(self, sliding_window=sliding_window)
        self.capacity = capacity
        self.length = 0

    def stored(self) -> int:
        return min(self.length, self.sliding_window - 1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that the queries of a pass can see, and the position of the first of them."""
        return self.stored() + query_length, self.length - self.stored()


class IndexedBufferLayer(BufferLayer, DynamicIndexedLayer):
    """Keys and values, and the keys of an indexer (which chooses the tokens to attend to).

    The keys of the indexer are preallocated as [batch, capacity, index_head_dim].
    """

    def __init__(self, capacity: int) -> None:
        DynamicIndexedLayer.__init__(self)
        self.is_indexer_initialized: bool
        self.capacity = capacity
        self.length = self.indexed = 0

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Write n new keys, [batch, n, index_head_dim], behind the past. Returns a view of past and new together."""
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
    """States of a fixed size: of convolutions, [batch, channels, kernel], and of recurrences, in the model's own shape.

    A pass reads the past state, which is random, and writes the new one to another buffer. A further pass without a
    rewind continues from the new state. Some functions (mostly those of convolutions) update the past state in place;
    `restore` undoes that.
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
        """Append n new columns, [batch, channels, n], to the state of a convolution.

        Returns past and new together. Without a past, zeros in front fill up the length of the state.
        """
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
        """Replace the state of a recurrence. Returns the buffer that holds the new one."""
        if not self.is_recurrent_states_initialized[state_idx]:
            self.lazy_initialization(recurrent_states=recurrent_states, state_idx=state_idx)
        written = self._written["recurrent_states", state_idx]
        self.recurrent_states[state_idx] = written.copy_(recurrent_states)
        return written

    def rewind(self, kv_len: int) -> None:
        """Start the next pass from the past state if `kv_len` > 0, otherwise from none. Reads and writes no tensor."""
        for (name, number), past in self._past.items():
            getattr(self, name)[number] = past
        self.has_previous_state = dict.fromkeys(self.has_previous_state, kv_len > 0)

    def restore(self) -> None:
        """Undo what passes wrote into the past state. Copies tensors, so call it outside timed passes."""
        for key, past in self._past.items():
            past.copy_(self._original[key])


class _StateAndBuffer(StateLayer, BufferLayer):
    """Base of layers with states of a fixed size as well as keys and values.

    transformers calls `lazy_initialization` for both: with states as keyword arguments, with keys and values as two
    positional ones.
    """

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        (BufferLayer if args else StateLayer).lazy_initialization(self, *args, **kwargs)

    def rewind(self, kv_len: int) -> None:
        BufferLayer.rewind(self, kv_len)
        StateLayer.rewind(self, kv_len)


class StateAndBufferLayer(_StateAndBuffer, LinearAttentionAndFullAttentionLayer):
    """States of a fixed size, and the keys and values of full attention."""

    def __init__(self, capacity: int, number_of_states: int) -> None:
        BufferLayer.__init__(self, capacity)
        StateLayer.__init__(self, number_of_states)


class StateAndSlidingBufferLayer(_StateAndBuffer, SlidingBufferLayer, LinearAttentionAndSlidingWindowAttentionLayer):
    """States of a fixed size, and the keys and values of sliding window attention."""

    def __init__(self, capacity: int, sliding_window: int, number_of_states: int) -> None:
        SlidingBufferLayer.__init__(self, capacity, sliding_window)
        StateLayer.__init__(self, number_of_states)


IN_PLACE: dict[type, Callable[[Any, int], Any]] = {
    # class of a layer of transformers' dynamic cache -> makes the in-place layer for such a layer and a capacity
    DynamicLayer: lambda layer, capacity: BufferLayer(capacity),
    DynamicSlidingWindowLayer: lambda layer, capacity: SlidingBufferLayer(capacity, layer.sliding_window),
    DynamicIndexedLayer: lambda layer, capacity: IndexedBufferLayer(capacity),
    LinearAttentionLayer: lambda layer, capacity: StateLayer(layer.number_of_states),
    LinearAttentionAndFullAttentionLayer: lambda layer, capacity: StateAndBufferLayer(capacity, layer.number_of_states),
    LinearAttentionAndSlidingWindowAttentionLayer: lambda layer, capacity: StateAndSlidingBufferLayer(
        capacity, layer.sliding_window, layer.number_of_states
    ),
}
