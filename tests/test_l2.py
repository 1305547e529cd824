"""Which models' weights would stay in the L2 cache."""

import pytest
import torch
from torch import nn

from llm_profile.passes.l2 import flush_bytes, tensor_bytes, weight_bytes, weights
from tests.tiny import CONFIGS, subject

MB = 2**20


@pytest.mark.parametrize(
    ("profiled", "full", "flushes"),
    [
        (15, 200, True),  # a block stays, the model does not
        (90, 200, True),  # the cache may keep part of it
        (101, 200, False),  # pushes itself out
        (15, 49, False),  # the whole model stays, as it does in use
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
