"""The backends of the CPU and of the fake device: rows add up to the pass. And which backend a request opens."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.measurement import MIN_PASSES, PointFailure, PointSample, StoppingRule
from llm_profile.models.hub import ModelSource
from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord
from llm_profile.request import Request
from llm_profile.sweep import Sweep
from llm_profile.timing.backends import BACKENDS, open_backend
from llm_profile.timing.backends.base import Backend
from llm_profile.timing.backends.cpu_wall import WARMUP_PASSES, CpuWallBackend, WallRecorder
from llm_profile.timing.backends.fake import FakeBackend, row_ns, rows_at
from tests import tiny

POINTS = [SweepPoint(1, 0), SweepPoint(7, 0), SweepPoint(1, 1), SweepPoint(1, 20)]
FIVE = StoppingRule(5, 0.0)


def samples_of(backend: Backend, points: list[SweepPoint], rule: StoppingRule = FIVE) -> list[PointSample]:
    found = list(backend.sample(points, rule, 1))
    assert [result.point for result in found] == points
    return [result for result in found if isinstance(result, PointSample)]


def check_sums(sample: PointSample) -> None:
    """In every single pass, the rows add up to the pass exactly."""
    for number, pass_ns in enumerate(sample.pass_ns):
        assert sum(row.pass_ns[number] for row in sample.rows.values()) == pass_ns
    assert {len(row.pass_ns) for row in sample.rows.values()} == {len(sample.pass_ns)}


# ---- the fake device


@given(st.integers(1, 5000), st.integers(0, 5000), st.integers(1, 4), st.integers(1, 30))
def test_fake_rows_add_up_to_every_pass(input_len: int, kv_len: int, profiled: int, passes: int) -> None:
    backend = FakeBackend(8, profiled)
    (sample,) = samples_of(backend, [SweepPoint(input_len, kv_len)], StoppingRule(passes, 0.0))
    check_sums(sample)
    assert list(sample.rows) == rows_at(sample.point) and len(sample.pass_ns) == passes
    record = PointRecord.of(sample, 0)
    for name, row in record.rows.items():
        assert row.blocks == (profiled if name in backend.block_rows else 1)
        assert row.measurement.trimmed_mean_ns == pytest.approx(row_ns(name, sample.point), rel=0.03), "of one block"


def test_the_fake_device_gives_the_same_again() -> None:
    assert samples_of(FakeBackend(), POINTS) == samples_of(FakeBackend(), POINTS[::-1])[::-1]


def test_the_fake_device_stops_when_the_rule_says_so() -> None:
    (sample,) = samples_of(FakeBackend(), POINTS[:1], StoppingRule(100, 0.01))
    assert len(sample.pass_ns) == MIN_PASSES


def test_the_fake_device_runs_out_of_memory() -> None:
    found = list(FakeBackend(out_of_memory_at=8).sample([SweepPoint(7, 0), SweepPoint(1, 7)], FIVE, 0))
    assert isinstance(found[0], PointSample)
    assert found[1] == PointFailure(SweepPoint(1, 7), "out of memory")


# ---- the CPU


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_cpu_rows_add_up_to_every_pass(name: str) -> None:
    """For each family of models, with three of four blocks profiled."""
    backend = CpuWallBackend(tiny.subject(name, num_layers=3))
    try:
        samples = samples_of(backend, POINTS)
        for sample in samples:
            check_sums(sample)
            assert len(sample.pass_ns) == 5 and sample.timed_by == "cpu-wall" and sample.sm_clock_mhz is None
            assert all(time_ns >= 0 for row in sample.rows.values() for time_ns in row.pass_ns)
        assert len({tuple(sample.rows) for sample in samples}) == 1, "the same rows at every point"
        rows = samples[0].rows
        assert {"embedding", "final_layernorm", "lm_head", "model_other"} <= set(rows)
        for row, kind in backend.block_rows.items():
            if row in rows:
                profiled = next(len(k.profiled) for k in backend.kinds if k.name == kind)
                assert rows[row].blocks == profiled and rows[row].launches % profiled == 0
        assert sum(kind.count for kind in backend.kinds) == 4
    finally:
        backend.close()


def test_conditions_say_how_and_on_what() -> None:
    backend = CpuWallBackend(tiny.subject("mixtral"))
    try:
        conditions = backend.conditions()
        assert conditions["dtype"] == "float32" and conditions["num_layers"] == 1 and conditions["weights"] == "dummy"
        assert conditions["routing"] == "balanced" and conditions["experts_implementation"] is not None
        assert all(isinstance(value, str | int | float | None) for value in conditions.values())
        assert not set(conditions) & set(backend.facts()) - {"cpu"}
    finally:
        backend.close()


def test_passes_before_the_first_one_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CpuWallBackend(tiny.subject("llama"))
    ran: list[SweepPoint] = []
    run = backend.subject.runner.run
    monkeypatch.setattr(backend.subject.runner, "run", lambda point: (ran.append(point), run(point)))
    try:
        for warmup, more in ((0, 0), (1, 1), (10, WARMUP_PASSES)):
            ran.clear()
            list(backend.sample(POINTS[:1], FIVE, warmup))
            assert len(ran) == 5 + more
    finally:
        backend.close()


def test_the_host_runs_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CpuWallBackend(tiny.subject("llama"))
    run = backend.subject.runner.run
    troubles = {SweepPoint(7, 0): lambda: torch.empty(10**15), SweepPoint(1, 1): lambda: [0] * 10**15}

    def scarce(point: SweepPoint) -> None:
        troubles.get(point, lambda: None)()
        run(point)

    monkeypatch.setattr(backend.subject.runner, "run", scarce)
    try:
        found = list(backend.sample(POINTS, FIVE, 0))
        assert [type(result) for result in found] == [PointSample, PointFailure, PointFailure, PointSample]
        assert found[1:3] == [PointFailure(point, "out of memory") for point in troubles]
        check_sums(found[3])
        troubles[SweepPoint(7, 0)] = lambda: torch.ones(2) @ torch.ones(3)
        with pytest.raises(RuntimeError, match="size"):
            list(backend.sample(POINTS, FIVE, 0))
    finally:
        backend.close()


def test_a_range_is_charged_its_own_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    squares = (n * n for n in itertools.count())  # so that all differences between readings of the clock differ
    monkeypatch.setattr("llm_profile.timing.backends.cpu_wall.time.perf_counter_ns", lambda: next(squares))
    recorder = WallRecorder()
    recorder.start()
    recorder.enter("model_other")  # reads the clock twice, at its start (0) and its end (1)
    recorder.enter("q_proj")  # 4, 9
    recorder.leave()  # 16, 25
    recorder.enter("q_proj")  # 36, 49
    recorder.enter("attn")  # 64, 81
    recorder.leave()  # 100, 121
    recorder.leave()  # 144, 169
    recorder.leave()  # 196
    assert recorder.rows == {
        "model_other": (4 - 1) + (36 - 25) + (196 - 169),
        "q_proj": (16 - 9) + (64 - 49) + (144 - 121),
        "attn": 100 - 81,
    }
    assert recorder.launches == {"model_other": 1, "q_proj": 2, "attn": 1}


# ---- which backend a request opens


@pytest.mark.parametrize("device", ["cpu", "fake"])
def test_devices_have_backends(device: str) -> None:
    source = ModelSource("tiny", tiny.CONFIGS["llama"], "table")
    backend = open_backend(Request("tiny", Sweep("both", 4, 4), device=device, num_layers=2), source)
    try:
        assert backend.clock == {"cpu": "cpu-wall", "fake": "fake"}[device]
        assert [(kind.count, len(kind.profiled)) for kind in backend.kinds] == [(4, 2)]
        for sample in samples_of(backend, Sweep("both", 4, 4).points(), StoppingRule(2, 0.0)):
            check_sums(sample)
    finally:
        backend.close()


def test_every_device_that_is_accepted_has_a_backend() -> None:
    for device in ("cpu", "fake", "cuda", "cuda:3"):
        assert Request("x", device=device).device.partition(":")[0] in BACKENDS
    for device in ("", "gpu", "cpu:0", "cuda:", "cuda:-1", "CUDA", "cuda:1x", "fake\n"):
        with pytest.raises(UsageError, match="--device"):
            Request("x", device=device)


def test_no_cuda_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = ModelSource("tiny", tiny.CONFIGS["llama"], "table")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda:1: .*use --device cpu"):
        open_backend(Request("tiny", device="cuda:1"), source)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UsageError, match="--device cuda:1: torch sees 1 GPU.s.; the last one is cuda:0"):
        open_backend(Request("tiny", device="cuda:1"), source)


def test_a_model_too_shallow_is_refused_where_no_configuration_told() -> None:
    source = ModelSource("tiny", tiny.CONFIGS["llama"], "table")
    with pytest.raises(UsageError, match="--num-layers 5: the model has 4 blocks"):
        open_backend(Request("tiny", device="cpu", num_layers=5), source)


def test_the_fake_device_needs_no_torch() -> None:
    code = (
        "import sys; from llm_profile.timing.backends import open_backend;"
        "from llm_profile.models.hub import ModelSource;"
        "from llm_profile.request import Request;"
        "open_backend(Request('x', device='fake'), ModelSource('x', {}, 'hub'));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr
