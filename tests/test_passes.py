import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from llm_profile.passes.routing import expert_assignment
from llm_profile.points import SweepPoint
from tests.tiny import CONFIGS, subject


@pytest.mark.parametrize("name", CONFIGS)
def test_in_place_cache_decodes_like_the_model_does(name: str) -> None:
    """A prefill and decode steps on the in-place cache give the logits of one long pass on transformers' own cache."""
    tiny = subject(name, 4, routing="model")
    ids, argument = tiny.runner.input_ids, tiny.runner.cache_argument
    # Gemma 3 within its window of 8 tokens: beyond it the in-place cache does not hold the latest tokens.
    prompt, total = (4, 7) if name == "gemma3" else (12, 20)
    with torch.no_grad():
        fresh = {argument: DynamicCache(config=tiny.model.config)}
        whole = tiny.model(input_ids=ids[:, :total], **fresh).logits
        tiny.runner.run(SweepPoint(prompt, 0))
        for position in range(prompt, total):
            step = tiny.model(
                input_ids=ids[:, position : position + 1],
                position_ids=torch.tensor([[position]]),
                **{argument: tiny.runner.cache},
            )
            assert tiny.runner.cache.get_seq_length() == position + 1
            torch.testing.assert_close(step.logits[0, 0], whole[0, position], rtol=1e-3, atol=1e-4)
    tiny.close()


@pytest.mark.parametrize(("kv_len", "seen"), [(3, 4), (7, 8), (11, 8), (20, 8)])
def test_sliding_layers_clip_to_their_window(kv_len: int, seen: int) -> None:
    tiny = subject("gemma3", 4)
    tiny.runner.run(SweepPoint(1, kv_len))
    tiny.runner.cache.rewind(kv_len)
    states = torch.zeros(1, 2, 1, 16)
    assert tiny.runner.cache.layers[0].update(states, states)[0].shape[2] == seen
    assert tiny.runner.cache.layers[2].update(states, states)[0].shape[2] == kv_len + 1
    tiny.close()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_passes_start_from_the_same_state(name: str) -> None:
    tiny = subject(name, 4)
    point = SweepPoint(1, 11)
    first = tiny.runner.run(point).logits.clone()
    tiny.runner.run(SweepPoint(5, 0))
    keys = tiny.runner.cache.layers[-1].keys
    assert tiny.runner.cache.get_seq_length() == 5
    assert keys is not None and keys.abs().min() > 0 or keys.std() > 0.5  # the past is random numbers, not zeros
    again = tiny.runner.run(point).logits
    tiny.runner.run(point)
    assert tiny.runner.cache.get_seq_length() == 12
    assert again.shape == first.shape
    tiny.close()


def test_last_token_only_gives_one_row_of_logits() -> None:
    tiny = subject("llama")
    assert tiny.runner.run(SweepPoint(6, 0)).logits.shape[1] == 6
    assert tiny.runner.run(SweepPoint(6, 0), last_token_only=True).logits.shape[1] == 1
    tiny.close()


@settings(max_examples=60)
@given(st.integers(1, 200), st.integers(1, 8), st.integers(0, 24))
def test_balanced_routing_gives_each_expert_its_share(tokens: int, top_k: int, more: int) -> None:
    experts = top_k + more
    chosen = expert_assignment("balanced", tokens, top_k, experts)
    counts = torch.bincount(chosen.flatten(), minlength=experts)
    assert counts.max() - counts.min() <= 1
    assert all(len(set(row)) == top_k for row in chosen.tolist())


@settings(max_examples=30)
@given(st.integers(1, 100), st.integers(1, 8), st.integers(0, 24))
def test_random_routing_never_takes_an_expert_twice(tokens: int, top_k: int, more: int) -> None:
    chosen = expert_assignment("random", tokens, top_k, top_k + more)
    assert chosen.shape == (tokens, top_k)
    assert all(len(set(row)) == top_k for row in chosen.tolist())


@pytest.mark.parametrize("routing", ["balanced", "random", "model"])
def test_routing_reaches_the_experts(routing: str) -> None:
    tiny = subject("mixtral", routing=routing)
    seen: list[torch.Tensor] = []
    experts = tiny.model.model.layers[0].mlp.experts
    handle = experts.register_forward_pre_hook(lambda _m, args: seen.append(args[1]))
    tiny.runner.run(SweepPoint(8, 0))
    handle.remove()
    counts = torch.bincount(seen[0].flatten(), minlength=4)
    assert counts.sum() == 16
    assert (counts.tolist() == [4, 4, 4, 4]) == (routing == "balanced") or routing == "random"
    tiny.close()
    assert not any("llm_profile" in key for m in tiny.model.modules() for key in vars(m))
