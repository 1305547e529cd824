"""Every nanosecond of GPU time is in the row that it belongs to, and profiling leaves model and torch as they were."""

import gc
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

from llm_profile.layers.ranges import LayerRanges
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.models.blocks import first_blocks
from llm_profile.models.building import dummy_model, make_config, meta_model
from llm_profile.points import SweepPoint
from llm_profile.timing import session
from llm_profile.timing.backends.gpu_kernels import GpuKernelBackend
from llm_profile.timing.replays import MEMORY
from tests.gpu.models import LLAMA_8B, config_of, gpu_subject, options_of
from tests.test_hooks import footprint
from tests.test_layers import EXPECTED

pytestmark = pytest.mark.gpu

POINTS = {LLAMA_8B: [SweepPoint(1, 0), SweepPoint(128, 0), SweepPoint(1, 127)]}
TINY_POINTS = [SweepPoint(5, 0), SweepPoint(16, 0), SweepPoint(1, 7)]

FAMILY = {LLAMA_8B: "llama"}
"""Model -> the tiny model that has the same rows."""

NO_KERNELS = {"phimoe": {"mlp_other"}, "mixtral": {"mlp_other"}}
"""Rows of containers that only reshape: they take wall time on a CPU, and launch nothing on a GPU."""

GEMM = re.compile(r"gemm|gemv|nvjet|wgmma|xmma|splitk", re.IGNORECASE)
"""Matches kernels of matrix products by name: those of cuBLAS, cuBLASLt, CUTLASS and cuDNN."""

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}

THREE = StoppingRule(repeat=3, precision=0)


@dataclass(frozen=True)
class Measured:
    """The results of one model with one timer."""

    model: str
    points: list[SweepPoint]
    samples: list[PointSample]


def sample(backend: GpuKernelBackend, points: Sequence[SweepPoint]) -> dict[SweepPoint, PointSample | PointFailure]:
    return {result.point: result for result in backend.sample(points, THREE, warmup=2)}


def succeeded(results: dict[SweepPoint, PointSample | PointFailure]) -> list[PointSample]:
    assert all(isinstance(result, PointSample) for result in results.values()), results
    return [result for result in results.values() if isinstance(result, PointSample)]


@pytest.fixture(scope="module", params=[*EXPECTED, LLAMA_8B])
def measured(request: pytest.FixtureRequest) -> Measured:
    model: str = request.param
    points = POINTS.get(model, TINY_POINTS)
    backend = GpuKernelBackend(gpu_subject(model, longest=128 if model in POINTS else 32), "cupti")
    try:
        results = sample(backend, points)
        assert backend.facts()["lost_replays"] == 0
    finally:
        backend.close()
    assert {*results} == {*points}
    samples = succeeded(results)
    return Measured(model, points, samples)


def test_rows_add_up_to_each_pass_exactly(measured: Measured) -> None:
    for at in measured.samples:
        assert len(at.pass_ns) == THREE.repeat
        for number, whole in enumerate(at.pass_ns):
            assert sum(row.pass_ns[number] for row in at.rows.values()) == whole


def kernels_of(sample: PointSample, row: str) -> list[str]:
    """Kernels of a row, without copies and memsets, whose names differ between timers."""
    return [kernel for kernel in sample.rows[row].kernels if not kernel.startswith(MEMORY)]


@pytest.mark.parametrize("model", ["llama", "phimoe", "opt", LLAMA_8B])
def test_timers_and_eager_passes_agree_on_rows_and_kernels(model: str) -> None:
    """Eager passes are attributed by ranges of torch's profiler: another way from another tool."""
    points = POINTS.get(model, TINY_POINTS)
    subject = gpu_subject(model, longest=128 if model in POINTS else 32)
    found: dict[str, dict[SweepPoint, PointSample]] = {}
    backends = [GpuKernelBackend(subject, timer) for timer in ("cupti", "torch-profiler")]
    for backend in backends:
        found[backend.conditions()["timer"]] = {at.point: at for at in succeeded(sample(backend, points))}
    eager = backends[0]._eager.sample(points, THREE, lambda _start, _end: None)
    found["eager"] = {at.point: at for at in eager if isinstance(at, PointSample)}
    for backend in backends:
        backend.close()
    for point in points:
        cupti, kineto, ranged = (found[way][point] for way in ("cupti", "torch-profiler", "eager"))
        assert (cupti.timed_by, kineto.timed_by, ranged.timed_by) == ("graph-replay", "graph-replay", "eager")
        for row, of_row in cupti.rows.items():
            assert kernels_of(cupti, row) == kernels_of(kineto, row) == kernels_of(ranged, row), (point, row)
            assert of_row.launches == kineto.rows[row].launches == ranged.rows[row].launches, (point, row)
            times = [statistics.median(at.rows[row].pass_ns) for at in (cupti, kineto, ranged)]
            assert max(times) <= 1.5 * min(times) + 2000, (point, row, times)
        assert cupti.rows.keys() == kineto.rows.keys() == ranged.rows.keys()
        assert sum(cupti.pass_ns) == pytest.approx(sum(kineto.pass_ns), rel=0.1)


def test_expected_rows(measured: Measured) -> None:
    family = FAMILY.get(measured.model, measured.model)
    for at in measured.samples:
        assert set(at.rows) == set(EXPECTED[family]) - NO_KERNELS.get(family, set())
        assert all(min(row.pass_ns) > 0 and row.launches > 0 for row in at.rows.values())


def test_no_matrix_product_hides_in_an_unnamed_row(measured: Measured) -> None:
    """Except the rotary table, which is the product of frequencies and positions and belongs to no layer."""
    for at in measured.samples:
        for name, row in at.rows.items():
            products = [kernel for kernel in row.kernels if GEMM.search(kernel)]
            if name.endswith("_other"):
                allowed = 1 if name == "model_other" and "rope" in at.rows else 0
                assert len(products) <= allowed, (at.point, name, products)


def test_points_are_timed_by_graph_replays(measured: Measured) -> None:
    assert {at.point: at.timed_by for at in measured.samples} == dict.fromkeys(measured.points, "graph-replay")


@pytest.mark.parametrize("measured", [LLAMA_8B], indirect=True)
def test_projections_of_real_size_are_matrix_products(measured: Measured) -> None:
    """For tiny projections, a library may choose kernels of other names."""
    for at in measured.samples:
        for name in PROJECTIONS:
            assert any(GEMM.search(kernel) for kernel in at.rows[name].kernels), (name, at.rows[name].kernels)


@pytest.mark.parametrize("name", ["llama", "opt", "mixtral"])
def test_ranges_change_no_bit_of_the_logits_and_come_off(name: str) -> None:
    subject = gpu_subject(name, num_layers=2)
    points = [SweepPoint(6, 0), SweepPoint(1, 9)]

    def logits() -> list[torch.Tensor]:
        return [subject.runner.run(point).logits.clone() for point in points]

    logits()  # allocates the buffers of the cache
    before = footprint(subject.model)
    plain = logits()
    with session.record() as events, LayerRanges(subject.model, subject.layout, session.RangeRecorder()):
        ranged = logits()
    recorded = events.read()
    again = logits()
    assert {r.name for r in recorded.rows} >= {"embedding", "q_proj", "attn", "lm_head"}
    assert footprint(subject.model) == before
    for one, two, three in zip(plain, ranged, again, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, two) and torch.equal(one, three)
    subject.close()


def outside_state(files: Sequence[str]) -> dict[str, Any]:
    """What profiling could leave behind outside the model: module globals, the attention interface, torch's flags."""
    return {
        "globals": {file: {k: id(v) for k, v in vars(sys.modules[file]).items()} for file in files},
        "interface": dict(vars(AttentionInterface)),
        "sdpa": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.cudnn_sdp_enabled(),
            list(torch._C._get_sdp_priority_order()),
        ),
        "grad": torch.is_grad_enabled(),
        "stream": torch.cuda.current_stream().cuda_stream,
    }


def inside_state(model: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Path of each module of a model -> its attributes; for those of hooks, the number of hooks."""
    return {
        path: {key: len(value) if "hooks" in key else None for key, value in vars(module).items()}
        for path, module in model.named_modules()
    }


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_closing_leaves_model_transformers_and_torch_as_they_were(name: str) -> None:
    config = make_config(config_of(name))
    untouched = dummy_model(config, options_of(name), first_blocks(meta_model(config), 1))
    untouched(torch.ones(1, 4, dtype=torch.long, device="cuda"))
    files = sorted({type(m).__module__ for m in untouched.modules()} | {"transformers.masking_utils"})
    before = outside_state(files)
    backend = GpuKernelBackend(gpu_subject(name, sdpa_backend="flash"))
    while_open = outside_state(files)
    succeeded(sample(backend, TINY_POINTS))
    model = backend.subject.model
    backend.close()
    assert while_open["sdpa"] != before["sdpa"] and while_open["globals"] != before["globals"]
    assert outside_state(files) == before
    assert inside_state(model) == inside_state(untouched)


def test_a_model_that_cannot_be_captured_is_timed_eagerly() -> None:
    """Experts in a Python loop wait for the device, which a capture does not allow. Later captures still work."""
    backend = GpuKernelBackend(gpu_subject("phimoe", experts="eager"))
    try:
        samples = succeeded(sample(backend, TINY_POINTS))
    finally:
        backend.close()
    assert {at.timed_by for at in samples} == {"eager"}
    for at in samples:
        assert len(at.pass_ns) == THREE.repeat
        for number, whole in enumerate(at.pass_ns):
            assert sum(row.pass_ns[number] for row in at.rows.values()) == whole
    assert sum("cannot be captured" in notice for notice in backend.notices) == 1
    assert backend.facts()["not_captured"]

    assert torch.isfinite(torch.randn(1000, device="cuda")).all()
    captures_again()


def captures_again() -> None:
    backend = GpuKernelBackend(gpu_subject("llama"))
    try:
        assert {at.timed_by for at in succeeded(sample(backend, TINY_POINTS))} == {"graph-replay"}
    finally:
        backend.close()


LOGITS_BYTES = 1 << 30
"""Bytes of the logits of the pass at BIG: 16,384 tokens x 32,768 words x 2 bytes."""

BIG = SweepPoint(1 << 14, 0)


@contextmanager
def memory_limited_to(spare_bytes: int) -> Iterator[None]:
    """Context in which torch can allocate only `spare_bytes` more than it holds now."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + spare_bytes
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def wide_backend() -> GpuKernelBackend:
    """A tiny model with a large vocabulary, so that its logits are most of the memory of a pass."""
    wide = config_of("llama") | {"vocab_size": 1 << 15}
    backend = GpuKernelBackend(gpu_subject("llama", longest=BIG.input_len, config=wide))
    succeeded(sample(backend, [SweepPoint(2, 0)]))  # libraries, workspaces and the cache allocate their memory
    return backend


def test_a_point_that_does_not_fit_is_a_failure_and_the_sweep_goes_on() -> None:
    backend = wide_backend()
    small = [SweepPoint(4, 0), SweepPoint(8, 0), SweepPoint(1, 8)]
    try:
        with memory_limited_to(LOGITS_BYTES // 2):
            results = sample(backend, [small[0], BIG, *small[1:]])
        assert results.pop(BIG) == PointFailure(BIG, "out of memory")
        assert {at.point: at.timed_by for at in succeeded(results)} == dict.fromkeys(small, "graph-replay")
        (fits_now,) = succeeded(sample(backend, [BIG]))
        assert fits_now.timed_by == "graph-replay"
    finally:
        backend.close()


def test_running_out_of_memory_while_a_pass_is_captured_spoils_nothing() -> None:
    """The eager pass fits in memory. Its graph, which needs memory of its own, does not."""
    backend = wide_backend()
    small = [SweepPoint(4, 0), SweepPoint(1, 8)]
    try:
        with memory_limited_to(LOGITS_BYTES + LOGITS_BYTES // 2):
            results = sample(backend, [small[0], BIG, small[1]])
        big = results.pop(BIG)
        assert isinstance(big, PointSample) or big.reason == "out of memory"
        assert {at.point: at.timed_by for at in succeeded(results)} == dict.fromkeys(small, "graph-replay")
    finally:
        backend.close()
    captures_again()
