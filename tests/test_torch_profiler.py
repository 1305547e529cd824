"""The sessions of the GPU backend without a GPU: a fake device writes the events that torch's profiler would record."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from llm_profile.timing.backends.torch_profiler import TorchProfilerBackend
from llm_profile.timing.session_size import FIRST_POINTS, SESSION_POINTS, SESSION_S

from llm_profile.errors import UsageError
from llm_profile.measurement import MIN_PASSES, PointFailure, PointSample, StoppingRule
from llm_profile.passes.graphs import CaptureError
from llm_profile.points import SweepPoint
from llm_profile.timing import pacing, session, trace
from llm_profile.timing.backends import torch_profiler
from llm_profile.timing.backends.base import GRAPHS
from llm_profile.timing.launching import split_evenly
from llm_profile.timing.pacing import REST

ROWS = ("embedding", "q_proj", "attn", "lm_head")


class Device:
    """Writes launches and kernels into the open session. A pass has one kernel per row, of 100 ns times `total_len`.

    captures, eager_passes: points, in the order of these calls. kernels, graph_kernels: point -> names of the kernels
    of an eager pass and of a replay. too_long: total length from which on memory does not suffice. noise: nanoseconds
    to add to each kernel.
    """

    def __init__(self) -> None:
        self.clock = count(step=1000)
        self.correlations = count()
        self.session = trace.Trace()
        self.recording = False
        self.captures: list[SweepPoint] = []
        self.eager_passes: list[SweepPoint] = []
        self.kernels: Callable[[SweepPoint], tuple[str, ...]] = lambda _point: ROWS
        self.graph_kernels: Callable[[SweepPoint], tuple[str, ...]] = lambda point: self.kernels(point)
        self.refuses_capture = False
        self.too_long: int | None = None
        self.noise: Iterator[int] = iter(lambda: 0, 1)
        self.memory_for_copies = True

    def weight_copies(self, wanted: int) -> list[int]:
        return list(range(wanted)) if self.memory_for_copies else []

    def kernel(self, correlation: int, name: str, point: SweepPoint) -> None:
        if self.recording:
            duration = 100 * point.total_len + next(self.noise)
            self.session.kernels.append(trace.Kernel(correlation, next(self.clock), duration, name))

    def launch(self, name: str) -> int:
        correlation = next(self.correlations)
        if self.recording:
            self.session.launches.append(trace.Launch(correlation, next(self.clock), name))
        return correlation

    def eager(self, point: SweepPoint, last_token_only: bool = False) -> None:
        self.eager_passes.append(point)
        if self.too_long is not None and point.total_len >= self.too_long:
            raise torch.OutOfMemoryError("made up")
        for row, name in zip(ROWS, self.kernels(point), strict=True):
            start = next(self.clock)
            self.kernel(self.launch("cudaLaunchKernel"), name, point)
            if self.recording:
                self.session.rows.append(trace.Range(row, start, next(self.clock)))

    def capture(self, point: SweepPoint, last_token_only: bool = False, pool: int = 0) -> Any:
        if self.refuses_capture:
            raise CaptureError("a host sync")
        self.captures.append(point)

        def replay() -> None:
            correlation = self.launch("cudaGraphLaunch")
            for name in self.graph_kernels(point):
                self.kernel(correlation, name, point)

        return SimpleNamespace(replay=replay, reset=lambda: None)

    @contextmanager
    def record(self) -> Iterator[Any]:
        session = self.session = trace.Trace()
        self.recording = True
        yield SimpleNamespace(read=lambda: session)
        self.recording = False

    @contextmanager
    def pass_range(self, index: int) -> Iterator[None]:
        start = next(self.clock)
        yield
        self.session.passes.append(trace.Range(str(index), start, next(self.clock)))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made_up = Device()
    monkeypatch.setattr(session, "record", made_up.record)
    monkeypatch.setattr(session, "pass_range", made_up.pass_range)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch_profiler, "LayerRanges", lambda *_args: nullcontext())
    monkeypatch.setattr(torch_profiler, "pci_bus_id", lambda _device: None)
    monkeypatch.setattr(torch_profiler, "l2_flush", lambda _subject: None)
    monkeypatch.setattr(
        torch_profiler,
        "GraphPasses",
        lambda _subject, pools: SimpleNamespace(
            eager=made_up.eager,
            capture=made_up.capture,
            stream=None,
            weights=made_up.weight_copies(pools - 1),
        ),
    )
    return made_up


@pytest.fixture
def backend(device: Device) -> TorchProfilerBackend:
    layout = SimpleNamespace(
        kinds=(), learned_positions=None, block_rows=lambda: {}, blocks=lambda row: 2 if row == "q_proj" else 1
    )
    runner = SimpleNamespace(forget_masks=lambda: None, cache=SimpleNamespace(restore=lambda: None))
    subject: Any = SimpleNamespace(
        device=torch.device("cpu"), layout=layout, runner=runner, model=None, notices=[], facts=lambda: {}
    )
    return TorchProfilerBackend(subject)


POINTS = [SweepPoint(n, 0) for n in range(1, 71)] + [SweepPoint(1, k) for k in range(1, 6)]


def samples(backend: TorchProfilerBackend, rule: StoppingRule) -> dict[SweepPoint, PointSample]:
    results = list(backend.sample(POINTS, rule, warmup=10))
    assert sorted(r.point for r in results) == sorted(POINTS), "each point exactly once"
    return {r.point: r for r in results if isinstance(r, PointSample)}


def test_points_of_many_sessions_get_their_own_replays(device: Device, backend: TorchProfilerBackend) -> None:
    found = samples(backend, StoppingRule())
    assert len(found) == len(POINTS)
    for point, sample in found.items():
        assert sample.timed_by == "graph-replay"
        assert sample.pass_ns == (4 * 100 * point.total_len,) * MIN_PASSES
        assert {name: row.pass_ns for name, row in sample.rows.items()} == dict.fromkeys(
            ROWS, (100 * point.total_len,) * MIN_PASSES
        )
        assert sample.rows["q_proj"].blocks == 2
        assert sample.rows["attn"].kernels == ("attn",)
    assert len(device.captures) == GRAPHS * len(POINTS)


@pytest.mark.parametrize(
    ("rule", "passes"),
    [(StoppingRule(), MIN_PASSES), (StoppingRule(repeat=3), 3), (StoppingRule(repeat=12, precision=0), 12)],
)
def test_as_many_first_passes_as_the_rule_says(
    rule: StoppingRule, passes: int, device: Device, backend: TorchProfilerBackend
) -> None:
    assert {len(sample.pass_ns) for sample in samples(backend, rule).values()} == {passes}
    assert len(device.captures) == min(GRAPHS, passes) * len(POINTS)


def test_labels_of_the_same_kernels_are_shared(device: Device, backend: TorchProfilerBackend) -> None:
    """Each point of the sessions before the first one is read has a labelled pass; later only new kernels have one."""
    found = samples(backend, StoppingRule())
    labelled = len(device.eager_passes) - len(POINTS)
    assert FIRST_POINTS <= labelled <= FIRST_POINTS + SESSION_POINTS
    assert {sample.timed_by for sample in found.values()} == {"graph-replay"}
    assert list(backend.sample([SweepPoint(90, 0)], StoppingRule(), warmup=10))
    assert len(device.eager_passes) == len(POINTS) + labelled + 1, "for the first use of the shape"


def test_kernels_not_seen_before_are_labelled_and_their_replays_kept(
    device: Device, backend: TorchProfilerBackend
) -> None:
    samples(backend, StoppingRule())
    device.captures.clear()
    device.eager_passes.clear()
    device.kernels = lambda _point: ("split", *ROWS[1:])
    (found,) = backend.sample([SweepPoint(90, 0)], StoppingRule(), warmup=10)
    assert isinstance(found, PointSample)
    assert found.timed_by == "graph-replay" and len(found.pass_ns) == MIN_PASSES
    assert found.rows["embedding"].kernels == ("split",)
    assert len(device.captures) == GRAPHS, "captured once"
    assert len(device.eager_passes) == 3, "one before each of two sessions, and a labelled one"


@pytest.mark.parametrize(("fits", "copies"), [(True, GRAPHS - 1), (False, 0)])
def test_copies_of_weights_that_do_not_fit_are_told(
    fits: bool, copies: int, device: Device, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.memory_for_copies = fits
    opened: TorchProfilerBackend = request.getfixturevalue("backend")
    monkeypatch.setattr(torch_profiler, "device_facts", lambda _device: {})
    assert opened.facts()["weight_copies"] == copies
    assert any("copies of weights" in notice for notice in opened.notices) != fits


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(8, [MIN_PASSES]), (100, [1] * MIN_PASSES)],
)
def test_the_device_rests_after_each_pass_of_many_tokens(
    tokens: int,
    expected: list[int],
    device: Device,
    backend: TorchProfilerBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    bursts: list[tuple[int, float, float]] = []
    burst_range = device.pass_range

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    @contextmanager
    def busy_range(index: int) -> Iterator[None]:
        """The device is busy for one second per pass."""
        start, before = now, len(device.session.kernels)
        with burst_range(index):
            yield
        passes = (len(device.session.kernels) - before) // len(ROWS)
        sleep(passes)
        bursts.append((passes, start, now))

    monkeypatch.setattr(session, "pass_range", busy_range)
    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    list(backend.sample([SweepPoint(tokens, 0)], StoppingRule(), warmup=1))
    labelled, *replays = bursts
    assert labelled[0] == 1 and [passes for passes, _, _ in replays] == expected
    for (_, start, end), (_, next_start, _) in pairwise(replays):
        assert next_start - end == pytest.approx(REST * (end - start))


def test_events_are_read_while_the_next_session_runs(
    device: Device, backend: TorchProfilerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the events of a session, except the last one, waits until the next session has begun."""
    begun = [threading.Event() for _ in range(1 - (FIRST_POINTS - len(POINTS)) // SESSION_POINTS)]
    number = count()

    @contextmanager
    def record() -> Iterator[Any]:
        at = next(number)
        begun[at].set()

        def read() -> trace.Trace:
            assert at + 1 == len(begun) or begun[at + 1].wait(timeout=30)
            return events.read()  # type: ignore[no-any-return]

        with device.record() as events:
            yield SimpleNamespace(read=read)

    monkeypatch.setattr(session, "record", record)
    assert len(samples(backend, StoppingRule())) == len(POINTS)
    assert next(number) == len(begun) > 1


@pytest.mark.parametrize("seconds", [0.001, 0.25, 3.0])
def test_a_session_of_slow_points_has_few_of_them(
    seconds: float, device: Device, backend: TorchProfilerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each point takes so many seconds, which is known after the first session."""
    now = 0.0
    sessions: list[list[int]] = []
    run = backend._launcher.run

    def slow(index: int, *rest: Any) -> None:
        nonlocal now
        now += seconds
        sessions[-1].append(index)
        run(index, *rest)

    @contextmanager
    def record() -> Iterator[Any]:
        sessions.append([])
        with device.record() as events:
            yield events

    monkeypatch.setattr(backend._launcher, "run", slow)
    monkeypatch.setattr(session, "record", record)
    monkeypatch.setattr(torch_profiler, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: now, sleep=lambda _s: None))
    assert len(samples(backend, StoppingRule())) == len(POINTS)
    first, *others = map(len, sessions)
    assert first == FIRST_POINTS
    assert max(others) == {0.001: SESSION_POINTS, 0.25: SESSION_S / 0.25, 3.0: 1}[seconds]


def test_a_noisy_point_comes_again_and_keeps_its_passes(device: Device, backend: TorchProfilerBackend) -> None:
    device.noise = (number % 50 for number in count())
    found = samples(backend, StoppingRule(repeat=40, precision=0.01))
    counts = {point: len(sample.pass_ns) for point, sample in found.items()}
    assert counts[SweepPoint(1, 0)] > MIN_PASSES, "the shortest pass is the noisiest"
    assert min(counts.values()) == MIN_PASSES and max(counts.values()) <= 40
    assert all(len(row.pass_ns) == counts[p] for p, sample in found.items() for row in sample.rows.values())


def test_a_point_whose_graph_runs_other_kernels_is_timed_eagerly(device: Device, backend: TorchProfilerBackend) -> None:
    odd = SweepPoint(7, 0)
    device.graph_kernels = lambda point: (*ROWS, "a copy") if point == odd else ROWS
    found = samples(backend, StoppingRule())
    assert {point for point, sample in found.items() if sample.timed_by == "eager"} == {odd}
    assert found[odd].pass_ns == (4 * 100 * 7,) * MIN_PASSES
    assert "a copy" not in found[odd].rows


@pytest.mark.parametrize("share", [0.2, 0.1])
def test_single_replays_that_do_not_match_are_run_again(
    share: float, device: Device, backend: TorchProfilerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_profiler, "device_facts", lambda _device: {})
    draw = random.Random(1)
    device.graph_kernels = lambda _point: ROWS[1:] if draw.random() < share else ROWS
    found = samples(backend, StoppingRule())
    assert {(sample.timed_by, len(sample.pass_ns)) for sample in found.values()} == {("graph-replay", MIN_PASSES)}
    assert {len(row.pass_ns) for sample in found.values() for row in sample.rows.values()} == {MIN_PASSES}
    assert all(sample.pass_ns == (400 * point.total_len,) * MIN_PASSES for point, sample in found.items())
    expected = MIN_PASSES * len(POINTS) * share / (1 - share)
    assert expected * 0.8 < backend.facts()["unmatched_replays"] < expected * 1.25


def test_a_point_whose_replays_rarely_match_is_timed_eagerly(device: Device, backend: TorchProfilerBackend) -> None:
    number = count()
    device.graph_kernels = lambda _point: ROWS if next(number) % 6 == 0 else ROWS[1:]
    found = samples(backend, StoppingRule())
    assert {sample.timed_by for sample in found.values()} == {"eager"}
    assert all(sample.pass_ns == (400 * point.total_len,) * MIN_PASSES for point, sample in found.items())


def test_a_point_whose_replays_have_no_events_is_timed_eagerly(device: Device, backend: TorchProfilerBackend) -> None:
    lost = SweepPoint(7, 0)
    device.graph_kernels = lambda point: () if point == lost else ROWS
    found = samples(backend, StoppingRule())
    assert {point for point, sample in found.items() if sample.timed_by == "eager"} == {lost}
    assert found[lost].pass_ns == (2800,) * MIN_PASSES


def test_a_model_that_cannot_be_captured_is_timed_eagerly_and_says_so(
    device: Device, backend: TorchProfilerBackend
) -> None:
    device.refuses_capture = True
    found = samples(backend, StoppingRule())
    assert {sample.timed_by for sample in found.values()} == {"eager"}
    assert {len(sample.pass_ns) for sample in found.values()} == {MIN_PASSES}
    (notice,) = [text for text in backend.notices if "captured" in text]
    assert "a host sync" in notice
    assert backend.facts()["not_captured"] == "a host sync"


def test_a_point_that_does_not_fit_is_a_failure_and_the_others_go_on(
    device: Device, backend: TorchProfilerBackend
) -> None:
    device.too_long = 60
    results = list(backend.sample(POINTS, StoppingRule(), warmup=10))
    failed = {r.point for r in results if isinstance(r, PointFailure)}
    assert failed == {p for p in POINTS if p.total_len >= 60}
    assert {r.reason for r in results if isinstance(r, PointFailure)} == {"out of memory"}
    assert len(results) == len(POINTS)


def test_memory_for_fewer_graphs_is_asked_for_once(
    device: Device, backend: TorchProfilerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    capture = device.capture

    def two_fit(point: SweepPoint, pool: int = 0) -> Any:
        asked.append(pool)
        if pool == 2:
            raise torch.OutOfMemoryError("made up")
        return capture(point, pool=pool)

    backend._passes.capture = two_fit  # type: ignore[method-assign,assignment]
    found = samples(backend, StoppingRule())
    assert {sample.timed_by for sample in found.values()} == {"graph-replay"}
    assert {len(sample.pass_ns) for sample in found.values()} == {MIN_PASSES}
    assert asked.count(2) == 1 and len(device.captures) == 2 * len(POINTS)
    assert [text for text in backend.notices if "memory" in text] == [
        f"memory suffices for 2 of {GRAPHS} captures of a pass: rows vary a little more from run to run"
    ]


@pytest.mark.parametrize("refuses_capture", [False, True])
def test_the_cache_is_emptied_before_each_pass_and_counts_to_none(
    refuses_capture: bool, device: Device, backend: TorchProfilerBackend
) -> None:
    device.refuses_capture = refuses_capture
    flushed: list[int] = []

    def flush() -> None:
        flushed.append(len(device.session.passes))
        device.kernel(device.launch("cudaMemsetAsync"), "Memset (Device)", SweepPoint(1, 0))

    backend._launcher.flush = flush
    (found,) = backend.sample([SweepPoint(8, 0)], StoppingRule(), warmup=1)
    assert isinstance(found, PointSample)
    assert found.pass_ns == (4 * 100 * 8,) * MIN_PASSES and set(found.rows) == set(ROWS)
    assert len(flushed) == (MIN_PASSES if refuses_capture else MIN_PASSES + 1), (
        "the labelled pass, and each that counts"
    )
    assert backend.facts()["l2_flushed"]


def test_kernels_that_run_side_by_side_are_marked(device: Device, backend: TorchProfilerBackend) -> None:
    device.clock = count(step=50)  # each kernel starts before the one before it has ended
    found = samples(backend, StoppingRule())
    assert found[SweepPoint(70, 0)].overlap > 0.5
    assert found[SweepPoint(70, 0)].notes == ("kernels overlap",)


def test_no_kernels_at_all_is_an_error_not_a_zero(device: Device, backend: TorchProfilerBackend) -> None:
    device.kernel = lambda *_args: None  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="no kernels"):
        list(backend.sample([SweepPoint(1, 0)], StoppingRule(), warmup=1))


@pytest.mark.parametrize(("total", "parts", "split"), [(10, 4, [3, 3, 2, 2]), (3, 3, [1, 1, 1]), (100, 1, [100])])
def test_replays_are_split_evenly_among_graphs(total: int, parts: int, split: list[int]) -> None:
    assert split_evenly(total, parts) == split
