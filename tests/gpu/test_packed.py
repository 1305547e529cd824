"""Packed passes on a GPU: captured, with the kernels that they are meant to run, and exact."""

from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from llm_profile.measurement import PointSample, StoppingRule
from llm_profile.passes.packed_attention import WAYS, backends_of, choose_way
from llm_profile.passes.packed_layout import PackedLayout
from llm_profile.points import SweepPoint
from llm_profile.timing.backends.gpu_kernels import GpuKernelBackend
from llm_profile.validation.graph_steps import GraphSteps
from tests.gpu.models import LLAMA_8B, gpu_subject

pytestmark = pytest.mark.gpu

EVEN, CHUNK, SAMPLED = SweepPoint(1, 300, 16), SweepPoint(64, 200, 2), SweepPoint(1, 0, 8)
MIXED = SweepPoint.of([*((1, history) for history in (20, 300, 900)), (50, 100), (128, 0)])
POINTS = (EVEN, CHUNK, SAMPLED, MIXED)


@pytest.fixture(scope="module", params=["model", "fused"])
def results(request: pytest.FixtureRequest) -> Iterator[dict[SweepPoint, PointSample]]:
    subject = gpu_subject(LLAMA_8B, longest=64, kernels=request.param, packed=POINTS)
    with closing(GpuKernelBackend(subject)) as backend:
        found = list(backend.sample(POINTS, StoppingRule(6, 0), 2))
        assert backend.facts()["packed_attention"] == {"even": 2, "varlen": 2}
        assert backend.facts()["not_captured"] is None
        yield {result.point: result for result in found if isinstance(result, PointSample)}


def test_all_points_are_replayed_with_a_row_for_each_layer(results: dict[SweepPoint, PointSample]) -> None:
    assert {*results} == {*POINTS} and {sample.timed_by for sample in results.values()} == {"graph-replay"}
    for sample in results.values():
        assert {"q_proj", "rope", "attn", "attn_other", "lm_head", "embedding"} <= {*sample.rows}
    assert {"sampler_greedy", "sampler_temperature"} <= {*results[SAMPLED].rows}


def test_no_attention_copies_heads(results: dict[SweepPoint, PointSample]) -> None:
    """Grouped heads that are expanded show as elementwise copies of keys and values."""
    assert any("flash" in kernel for kernel in results[MIXED].rows["attn"].kernels)
    assert all(sample.rows["attn"].launches <= 6 for sample in results.values())


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("point", [EVEN, CHUNK, MIXED])
def test_kernels_compute_what_padded_attention_in_float32_does(point: SweepPoint, window: int | None) -> None:
    device = torch.device("cuda")
    layout = PackedLayout(point, device)
    query = torch.randn(layout.tokens, 32, 128, device=device, dtype=torch.bfloat16)
    key, value = (torch.randn(layout.total, 8, 128, device=device, dtype=torch.bfloat16) for _ in range(2))
    way = choose_way(layout, query, key, value)
    assert way == ("even" if point == EVEN else "varlen")
    with backends_of(way, "auto", device):
        found = WAYS[way](layout, query, key, value, None, window)
    wanted = WAYS["padded"](layout, query.float(), key.float(), value.float(), None, window)
    torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.02)


def test_steps_of_the_real_model_are_timed_as_graphs() -> None:
    one = SweepPoint(1, 500)  # one sequence is packed too
    steps = GraphSteps(gpu_subject(LLAMA_8B, longest=64, packed=(EVEN, MIXED, one)))
    with closing(steps):
        timed = dict(steps.packed(repeat=2))
    assert {*timed} == {EVEN, MIXED, one} and all(len(walls) == 2 and min(walls) > 0 for walls in timed.values())
