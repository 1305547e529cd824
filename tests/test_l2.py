"""For which models the L2 cache is emptied before each pass."""

import pytest
import torch
from torch import nn

from llm_profile.passes.l2 import flush_bytes, tensor_bytes, weight_bytes, weights
from tests.tiny import CONFIGS, subject

MB = 2**20


@pytest.mark.parametrize(
    ("profiled", "full", "flushes"),
    [
        # MB of the profiled and of the full model; the cache has 50
        (15, 200, True),  # the profiled weights stay in the cache, those of the full model do not
        (90, 200, True),  # part of the profiled weights may stay
        (101, 200, False),  # the profiled weights evict themselves
        (15, 49, False),  # the full model stays in the cache too
    ],
)
def test_the_cache_is_emptied_where_the_full_model_would_do_it(profiled: int, full: int, flushes: bool) -> None:
    assert flush_bytes(profiled * MB, full * MB, 50 * MB) == (100 * MB if flushes else 0)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_weights_of_blocks_count_as_often_as_the_full_model_has_them(num_layers: int) -> None:
    one, whole = subject("llama", num_layers), subject("llama", CONFIGS["llama"]["num_hidden_layers"])
    profiled, full = weight_bytes(one.model, one.layout)
    table = one.model.get_input_embeddings().weight  # type: ignore[operator]
    everything = sum(map(tensor_bytes, weights(one.model)))
    assert profiled == everything - table.numel() * table.element_size()
    assert full == weight_bytes(whole.model, whole.layout)[0]
    one.close()
    whole.close()


def test_weights_held_in_buffers_count() -> None:
    plain = subject("llama", num_layers=1)
    before = weight_bytes(plain.model, plain.layout)
    (block,) = plain.layout.block_kind
    block.register_buffer("qweight", torch.zeros(3, MB, dtype=torch.int8))
    copies = CONFIGS["llama"]["num_hidden_layers"]
    assert weight_bytes(plain.model, plain.layout) == (before[0] + 3 * MB, before[1] + copies * 3 * MB)
    plain.close()


def test_an_embedding_that_is_the_head_counts() -> None:
    tied = subject("llama", num_layers=1)
    before, _ = weight_bytes(tied.model, tied.layout)
    head = tied.model.get_output_embeddings()  # type: ignore[operator]
    assert isinstance(head, nn.Linear)
    head.weight = tied.model.get_input_embeddings().weight  # type: ignore[operator]
    assert weight_bytes(tied.model, tied.layout)[0] == before, "one matrix takes the place of the other"
    tied.close()
