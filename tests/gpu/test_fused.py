"""Fused kernels on a GPU: how many each row launches, and that replays and validation run them."""

import statistics
from contextlib import closing

import pytest
import torch

from llm_profile.measurement import PointSample, StoppingRule
from llm_profile.points import SweepPoint
from llm_profile.timing.backends.gpu_kernels import GpuKernelBackend
from llm_profile.validation.graph_steps import GraphSteps
from tests.gpu.models import LLAMA_8B, gpu_subject

pytestmark = pytest.mark.gpu

ONE_TOKEN, STEP, PROMPT = SweepPoint(1, 0), SweepPoint(1, 100), SweepPoint(100, 0)
NORMS = ("input_layernorm", "post_layernorm", "final_layernorm")


def samples(name: str, kernels: str) -> dict[SweepPoint, PointSample]:
    backend = GpuKernelBackend(gpu_subject(name, longest=128, kernels=kernels))
    with closing(backend):
        results = list(backend.sample([ONE_TOKEN, STEP, PROMPT], StoppingRule(6, 0), 2))
        assert backend.conditions()["kernels"] == kernels
        assert backend.facts().get("not_fused", {}) == {} and backend.facts()["not_captured"] is None
    found = {result.point: result for result in results if isinstance(result, PointSample)}
    assert {*found} == {ONE_TOKEN, STEP, PROMPT}
    assert {result.timed_by for result in found.values()} == {"graph-replay"}
    return found


@pytest.mark.parametrize("point", [ONE_TOKEN, STEP, PROMPT])
def test_norm_and_gate_product_are_one_kernel_and_the_rotary_function_two(
    point: SweepPoint, fused: dict[SweepPoint, PointSample]
) -> None:
    rows = fused[point].rows
    for row in (*NORMS, "act_fn"):
        assert rows[row].launches == 1, (row, rows[row].kernels)
        assert all(kernel.startswith("triton") for kernel in rows[row].kernels), rows[row].kernels
    assert 1 <= rows["rope"].launches <= 2, rows["rope"].kernels
    assert "mlp_other" not in rows


@pytest.fixture(scope="module")
def fused() -> dict[SweepPoint, PointSample]:
    return samples(LLAMA_8B, "fused")


def test_fused_rows_take_less_and_products_the_same(fused: dict[SweepPoint, PointSample]) -> None:
    plain = samples(LLAMA_8B, "model")

    def took(sample: PointSample, *rows: str) -> float:
        return sum(statistics.median(sample.rows[row].pass_ns) for row in rows)

    for point in (ONE_TOKEN, PROMPT):
        for row in (*NORMS, "rope"):
            assert took(fused[point], row) < 0.7 * took(plain[point], row), (point, row)
        assert took(fused[point], "act_fn") < took(plain[point], "act_fn", "mlp_other")
        for row in ("q_proj", "down_proj", "lm_head"):
            assert took(fused[point], row) == pytest.approx(took(plain[point], row), rel=0.1)


@pytest.mark.parametrize("name", ["llama", "phimoe", "opt", "gemma3"])
def test_fused_kernels_compute_the_same(name: str) -> None:
    points = [SweepPoint(1, 0), SweepPoint(13, 0), SweepPoint(1, 19)]
    logits = []
    for kernels in ("model", "fused"):
        with closing(gpu_subject(name, kernels=kernels)) as subject:
            logits.append([subject.runner.run(point).logits.float() for point in points])
    for wanted, found in zip(*logits, strict=True):
        assert (wanted - found).abs().max() <= 0.03 * wanted.abs().max()


def test_steps_of_several_sequences_are_captured_with_fused_kernels() -> None:
    steps = GraphSteps(gpu_subject("llama", kernels="fused"))
    with closing(steps):
        steps.prepare([5, 16], [[7, 8]])
        assert {point for point, _ in steps.round()} == {
            SweepPoint(5, 0),
            SweepPoint(16, 0),
            *[SweepPoint(1, k) for k in (7, 8)],
        }
        points = [SweepPoint(1, 16, batch) for batch in (1, 4, 16)]
        assert [point for point, times in steps.batched(points, 2) if min(times) > 0] == points
    torch.cuda.synchronize()
