"""Packed passes compute what the model computes for each sequence alone, and refuse what they cannot."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llm_profile.errors import UsageError
from llm_profile.passes import packed_attention
from llm_profile.passes.packed_attention import WAYS
from llm_profile.passes.packed_layout import PackedLayout
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from tests import tiny
from tests.shrunken import tiny_config

COMPOSITIONS = {
    "one": SweepPoint(1, 11),
    "decode": SweepPoint(1, 13, 3),
    "prompts": SweepPoint(6, 0, 2),
    "chunks": SweepPoint(4, 12, 2),
    "ragged decode": SweepPoint.of([(1, 3), (1, 17), (1, 9)]),
    "mixed": SweepPoint.of([(1, 2), (1, 15), (5, 0), (3, 14), (12, 4)]),
}
"""The window of the model with sliding windows is 8 tokens, shorter than most of these."""


@pytest.fixture(scope="module", params=["llama", "opt", "gemma3", "mixtral", "phimoe", "qwen3", "deepseek_v2"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    opened = tiny.subject(request.param, num_layers=2, routing="model", packed=tuple(COMPOSITIONS.values()))
    yield opened
    opened.close()


def ids_of_sequences(subject: Subject, point: SweepPoint) -> list[torch.Tensor]:
    """For each sequence, random tokens of its history, then those that the packed pass feeds: [history + tokens]."""
    packed: Any = subject.runner.packed
    fed = packed._inputs.input_ids[0]
    generator = torch.Generator().manual_seed(1)
    sequences, start = [], 0
    for tokens, history in point.sequences:
        past = torch.randint(200, (history,), generator=generator)
        sequences.append(torch.cat([past, fed[start : start + tokens]]))
        start += tokens
    return sequences


def fill_histories(subject: Subject, point: SweepPoint, sequences: list[torch.Tensor]) -> None:
    """Write into the packed cache what transformers' own cache has of each sequence before the pass."""
    cache: Any = subject.runner.packed._cache  # type: ignore[union-attr]
    start = 0
    for ids, (_tokens, history) in zip(sequences, point.sequences, strict=True):
        if history:
            layers = subject.model(input_ids=ids[None, :history], use_cache=True)[subject.runner.cache_argument].layers
            for own, theirs in zip(cache.layers, layers, strict=True):
                if theirs.keys is None:  # of a block that is not kept
                    continue
                there = theirs.keys.shape[2]  # a sliding layer keeps the latest ones only
                for name in ("keys", "values"):
                    new = getattr(theirs, name)[0].transpose(0, 1)
                    getattr(own, name)[start + history - there : start + history] = new
        start += len(ids)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_logits_of_last_tokens_are_those_of_each_sequence_alone(subject: Subject, name: str) -> None:
    point = COMPOSITIONS[name]
    sequences = ids_of_sequences(subject, point)
    subject.runner.run(point)  # allocates the cache
    fill_histories(subject, point, sequences)
    found = subject.runner.run(point).logits[0]
    wanted = torch.stack([subject.model(input_ids=ids[None], use_cache=False).logits[0, -1] for ids in sequences])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_histories_matter(subject: Subject) -> None:
    """Otherwise the test above could pass with attention that reads nothing."""
    point = COMPOSITIONS["decode"]
    sequences = ids_of_sequences(subject, point)
    fill_histories(subject, point, sequences)
    filled = subject.runner.run(point).logits[0]
    fill_histories(subject, point, [ids.flip(0) for ids in sequences])
    assert not torch.allclose(filled, subject.runner.run(point).logits[0], rtol=1e-4, atol=1e-5)


def test_a_layout_says_where_each_token_lies() -> None:
    layout = PackedLayout(SweepPoint.of([(2, 3), (1, 4)]), torch.device("cpu"))  # sorted: (1, 4), (2, 3)
    assert layout.positions.tolist() == [4, 3, 4] and layout.slots.tolist() == [4, 8, 9]
    assert layout.last.tolist() == [0, 2]
    assert layout.starts_q.tolist() == [0, 1, 3] and layout.starts_kv.tolist() == [0, 5, 10]
    assert (layout.longest_q, layout.longest_kv, layout.total) == (2, 5, 10)


def test_models_without_the_attention_interface_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="--axes: passes of a bloom cannot be packed: .*; leave out --axes") as error:
        tiny.Subject(
            tiny.SubjectOptions(
                {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128},
                tiny.ModelOptions(1, "cpu", "float32"),
                8,
                8,
                packed=(SweepPoint(1, 4, 2),),
            )
        )
    assert "\n" not in str(error.value)


REFUSED = {
    "bamba": "its cache has layers of LinearAttention",
    "bart": "it takes no position of each token",
    "gemma2": "its softcap",
    "gpt_oss": "its s_aux",
    "llama4_text": "create_chunked_causal_mask",
    "rembert": "not all of its attention goes through",
}
"""What a model has that no packed pass computes: the pass would be another one than the model means."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_packed_is_refused_with_the_reason(name: str) -> None:
    config = {**tiny_config(name).to_dict(), "model_type": name}
    model = tiny.ModelOptions(1, "cpu", "float32")
    options = tiny.SubjectOptions(config, model, 8, 8, allow_slow_path=True, packed=(SweepPoint(1, 4, 2),))
    with pytest.raises(UsageError, match=REFUSED[name]):
        tiny.Subject(options)


def test_a_cpu_is_said_to_pad() -> None:
    opened = tiny.subject("llama", packed=(SweepPoint(1, 4, 2),))
    assert any("fills them up to the longest" in text for text in opened.notices)
    opened.close()


def test_a_cache_beyond_the_memory_is_known_before_any_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    per_token = 2 * 2 * 16 * 4  # keys and values of 2 heads of 16 float32 numbers, one block
    monkeypatch.setattr("llm_profile.passes.packed.available_bytes", lambda: 100 * per_token)
    opened = tiny.subject("llama", packed=(SweepPoint(1, 19, 2), SweepPoint(1, 19, 200)))
    assert opened.most_cached == 70
    opened.close()


def test_samplers_end_the_passes_of_new_sequences() -> None:
    point = SweepPoint(1, 0, 8)
    opened = tiny.subject("llama", packed=(point,))
    drawn: dict[str, torch.Tensor] = {}
    for site in opened.layout.sites[-2:]:
        site.module.register_forward_hook(lambda _m, _a, out, row=site.row: drawn.__setitem__(row, out))
    logits = opened.runner.run(point).logits[0]
    assert drawn["sampler_greedy"].tolist() == logits.argmax(-1).tolist()
    assert drawn["sampler_temperature"].shape == (8,)
    opened.close()


def flash_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts_q: torch.Tensor,
    starts_kv: torch.Tensor,
    _longest_q: int,
    _longest_kv: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """FlashAttention's rule: query i of q, key j of kv: i + kv - q - left <= j <= i + kv - q + right; -1 for no end."""
    left, right = window_size
    found = []
    for (q0, q1), (k0, k1) in zip(
        zip(starts_q, starts_q[1:], strict=False), zip(starts_kv, starts_kv[1:], strict=False), strict=True
    ):
        place = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
        keys = torch.arange(k1 - k0)
        seen = torch.ones(len(place), len(keys), dtype=torch.bool)
        if left >= 0:
            seen &= keys >= place - left
        if right >= 0:
            seen &= keys <= place + right
        q, k, v = (each.transpose(0, 1)[None] for each in (query[q0:q1], key[k0:k1], value[k0:k1]))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
        found.append(out[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("window", [None, 1, 4, 8, 40])
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_all_ways_compute_the_same(name: str, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "VARLEN", flash_varlen)
    monkeypatch.setattr(packed_attention, "GROUPED", {})
    layout = PackedLayout(COMPOSITIONS[name], torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(layout.tokens, 4, 16, generator=generator)
    key, value = (torch.randn(layout.total, 2, 16, generator=generator) for _ in range(2))
    wanted = WAYS["padded"](layout, query, key, value, None, window)
    torch.testing.assert_close(WAYS["varlen"](layout, query, key, value, None, window), wanted)
    if layout.is_even_decode:
        torch.testing.assert_close(WAYS["even"](layout, query, key, value, None, window), wanted)
