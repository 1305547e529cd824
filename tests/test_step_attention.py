"""Attention of steps that a table lacks: composed of steps of one sequence, as the module says."""

import json
from pathlib import Path

import pytest

from llm_profile.errors import UsageError
from llm_profile.exporters.step_attention import COMPOSED, EXTRAPOLATED, StepAttention
from llm_profile.measurement import PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.records import MEASURED, PointRecord
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable

ROOT = Path(__file__).parent.parent
TOKEN_NS, PAIR_NS = 2, 4


def record(attention_ns: int, other_ns: int) -> PointRecord:
    rows = {"attn": RowSample((attention_ns,)), "attn_other": RowSample((other_ns,))}
    return PointRecord.of(PointSample(SweepPoint(1, 0), rows, (attention_ns + other_ns,), "fake"), 0)


def table(longest: int = 64) -> LatencyTable:
    """Prompts of n tokens take PAIR_NS a pair, caches TOKEN_NS a token beside 1,000; other rows 10 and 1 a token."""
    made = LatencyTable("H200", "org/model", {"kinds": [], "conditions": {}, "runs": []})
    for n in range(1, longest + 1):
        made.records[SweepPoint(n, 0)] = record(PAIR_NS * n * (n + 1) // 2, 10 + n)
        made.records[SweepPoint(1, n)] = record(1000 + TOKEN_NS * n, 7)
    return made


def test_steps_of_one_sequence_are_as_measured() -> None:
    attention = StepAttention(table())
    prompt, decode = attention.at(chunk=8), attention.at(decodes=1, cache=8)
    assert (prompt.attention_ns, prompt.other_ns, prompt.source) == (144, 18, MEASURED)
    assert (decode.attention_ns, decode.other_ns, decode.source) == (1016, 7, MEASURED)


def test_decodes_are_one_and_the_cached_tokens_of_the_others() -> None:
    found = StepAttention(table()).at(decodes=3, cache=50)
    assert found.attention_ns == pytest.approx(1100 + 2 * 50 * TOKEN_NS)
    assert (found.other_ns, found.source) == (13, COMPOSED)


@pytest.mark.parametrize(("chunk", "of_a_token"), [(8, 8 * PAIR_NS), (1, PAIR_NS)])
def test_a_chunk_is_its_prompt_and_its_history(chunk: int, of_a_token: int) -> None:
    """A history of 0 is the prompt itself; a chunk of one token is a decode, so it is taken with decodes beside."""
    found = StepAttention(table()).at(chunk=chunk, history=50, decodes=chunk == 1, cache=9)
    alone = 1018 + 1100 if chunk == 1 else PAIR_NS * chunk * (chunk + 1) / 2 + 50 * of_a_token
    assert found.attention_ns == pytest.approx(alone)


def test_a_history_is_at_least_read() -> None:
    """Where computing with a cached token takes less than a decode needs to read it."""
    made = table()
    for n in range(1, 65):
        made.records[SweepPoint(n, 0)] = record(n, 0)
    assert StepAttention(made).at(chunk=2, history=50).attention_ns == pytest.approx(2 + 50 * TOKEN_NS)


def test_a_chunk_and_decodes_are_the_sum() -> None:
    attention = StepAttention(table())
    both = attention.at(8, 50, 3, 40)
    parts = attention.at(8, 50).attention_ns + attention.at(decodes=3, cache=40).attention_ns
    assert both.attention_ns == pytest.approx(parts)
    assert both.other_ns == 10 + 11


def test_what_was_measured_is_not_composed() -> None:
    made = table()
    measured = {SweepPoint(1, 50, 3): 5000, SweepPoint(8, 50): 900, SweepPoint.of([(8, 50), (1, 9), (1, 9)]): 77}
    made.records |= {point: record(attention_ns, 1) for point, attention_ns in measured.items()}
    attention = StepAttention(made)
    assert attention.at(decodes=3, cache=50).attention_ns == 5000
    assert attention.at(8, 50).attention_ns == 900
    assert attention.at(8, 50, 2, 9).attention_ns == 77
    assert attention.at(8, 50, 3, 50).attention_ns == 900 + 5000


@pytest.mark.parametrize(
    ("step", "attention_ns"), [((0, 0, 1, 100), 1200), ((8, 100, 0, 0), 3344), ((0, 0, 2, 65), 1260)]
)
def test_lengths_beyond_the_table_follow_its_slopes(step: tuple[int, int, int, int], attention_ns: float) -> None:
    found = StepAttention(table()).at(*step)
    assert found.source == EXTRAPOLATED
    assert found.attention_ns == pytest.approx(attention_ns)


def test_one_slow_length_does_not_move_the_slopes() -> None:
    """At the sliding window of Phi-mini-MoE the longest steps run another kernel, ten times as long."""
    made = table()
    made.records[SweepPoint(1, 64)] = record(100_000, 7)
    made.records[SweepPoint(64, 0)] = record(10**7, 7)
    attention = StepAttention(made)
    assert attention.token_ns == pytest.approx(TOKEN_NS)
    assert attention.pair_ns == pytest.approx(PAIR_NS)


def test_a_table_of_one_phase_is_refused() -> None:
    made = table()
    made.records = {point: kept for point, kept in made.records.items() if not point.kv_len}
    with pytest.raises(UsageError, match="two decode steps .* has 0"):
        StepAttention(made)


@pytest.mark.parametrize(
    "model", ["meta-llama/Llama-3.1-8B", "microsoft/Phi-mini-MoE-instruct", "Qwen/Qwen3-8B", "Qwen/Qwen3-32B"]
)
def test_several_decodes_are_near_real_ones(model: str) -> None:
    """Steps of the whole model as CUDA graphs, which also have gaps between kernels."""
    made = read_table(ROOT / f"H200/{model}.csv")
    validation = json.loads((ROOT / f"H200/{model}-cuda-graph.validation.json").read_text())
    depth, attention = made.meta["kinds"][0]["count"], StepAttention(made)
    dense = [row for row in made.row_names() if row not in ("attn", "attn_other")]
    times = {row: depth if row in made.meta["block_rows"] else 1 for row in dense}
    real = [step for step in validation["batched"] if step["sequences"] > 1]
    assert {(step["sequences"], step["kv_len"]) for step in real} == {(n, k) for n in (4, 16, 64) for k in (128, 1024)}
    for step in real:
        found = attention.at(decodes=step["sequences"], cache=step["kv_len"])
        tokens = SweepPoint(step["sequences"], 0)
        if tokens not in made.records:  # of every 8th length
            tokens = SweepPoint(8, 0)
        of_rows = sum(times[row] * made.latency_ns(row, tokens) for row in dense)
        total = of_rows + depth * (found.attention_ns + found.other_ns)
        assert total == pytest.approx(step["measured_ns"], rel=0.11), step
