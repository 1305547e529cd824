"""The GPU backend without a GPU: a fake device runs graphs by a made-up clock, and a fake recorder tells what ran."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count, pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llm_profile.measurement import LONG_PASS_NS, MIN_LONG_PASSES, MIN_PASSES, PointFailure, PointSample, StoppingRule
from llm_profile.passes.graphs import CaptureError
from llm_profile.points import SweepPoint
from llm_profile.timing import launching
from llm_profile.timing.backends import gpu_kernels
from llm_profile.timing.backends.base import GRAPHS
from llm_profile.timing.backends.gpu_kernels import GpuKernelBackend
from llm_profile.timing.launching import split_evenly
from llm_profile.timing.pacing import REST
from llm_profile.timing.replays import NodeNames, NodeRows, Replay

ROWS = ("embedding", "q_proj", "attn", "lm_head")


class Device:
    """Runs graphs: a pass has one kernel per row, of 100 ns times `total_len`, unless `duration_ns` says otherwise.

    captures, eager_passes: points, in the order of these calls. graph_kernels: point -> rows of the kernels that a
    replay has records of. rows: point, whether it ran eagerly before -> rows of the nodes of its graph. too_long: total
    length from which on memory does not suffice. noise: nanoseconds to add to each kernel. replays: what ran, by the
    made-up clock `now_s`: point, start, end.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.busy_until_s = 0.0
        self.captures: list[SweepPoint] = []
        self.eager_passes: list[SweepPoint] = []
        self.graph_kernels: Callable[[SweepPoint], tuple[str, ...]] = lambda _point: ROWS
        self.rows: Callable[[SweepPoint, bool], tuple[str | None, ...]] = lambda _point, _ran: ROWS
        self.duration_ns: Callable[[SweepPoint], int] = lambda point: 100 * point.total_len
        self.refuses_capture: Callable[[SweepPoint, bool], bool] = lambda _point, _ran: False
        self.too_long: int | None = None
        self.noise: Iterator[int] = iter(lambda: 0, 1)
        self.memory_for_copies = True
        self.cache_kind = "in-place"
        self.records: dict[int, list[Replay]] = {}
        self.replays: list[tuple[SweepPoint, float, float]] = []
        self.alive: set[int] = set()
        self.ids = count(1)

    def eager(self, point: SweepPoint) -> None:
        self.eager_passes.append(point)
        if self.too_long is not None and point.total_len >= self.too_long:
            raise torch.OutOfMemoryError("made up")

    def capture(self, point: SweepPoint, pool: int = 0, around: Any = None) -> Any:
        ran = point in self.eager_passes
        if self.refuses_capture(point, ran):
            raise CaptureError("a host sync")
        if self.too_long is not None and point.total_len >= self.too_long:
            raise torch.OutOfMemoryError("made up")
        with around as found:
            found.append(NodeRows(self.rows(point, ran), (False,) * len(self.rows(point, ran))))
        self.captures.append(point)
        number = next(self.ids)
        self.alive.add(number)
        return SimpleNamespace(
            number=number, replay=lambda: self.replay(number, point), reset=lambda: self.alive.discard(number)
        )

    def replay(self, number: int, point: SweepPoint) -> None:
        assert number in self.alive, "a freed graph is replayed"
        begin_s = max(self.now_s, self.busy_until_s)
        kernels = self.graph_kernels(point)
        durations = [self.duration_ns(point) + next(self.noise) for _ in kernels]
        starts = 1e9 * begin_s + np.cumsum([0, *durations[:-1]])
        self.busy_until_s = begin_s + sum(durations) / 1e9
        self.replays.append((point, begin_s, self.busy_until_s))
        if kernels:
            replay = Replay(starts.astype(np.int64), np.asarray(durations, dtype=np.int64), NodeNames(kernels))
            self.records.setdefault(number, []).append(replay)

    def wait(self) -> None:
        self.now_s = max(self.now_s, self.busy_until_s)


class Nodes:
    """Stands for GraphNodes."""

    def watching(self, found: list[NodeRows]) -> Any:
        return nullcontext(found)


class Recorder:
    """A recorder of what the fake device ran. log: names of the calls, with the graphs that were captured by then."""

    def __init__(self, device: Device, concurrent: bool) -> None:
        self.concurrent = concurrent
        self.device = device
        self.recording_now = concurrent
        self.captured_inside = 0
        self.reads = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        before = len(self.device.captures)
        yield
        self.captured_inside += len(self.device.captures) - before

    def graph_id(self, graph: Any) -> int:
        return int(graph.number)

    def read(self, launched: Sequence[int]) -> list[Replay | None]:
        assert self.device.busy_until_s <= self.device.now_s, "records are read while the device is busy"
        self.reads += 1
        records, self.device.records = self.device.records, {}
        return [records[graph].pop(0) if records.get(graph) else None for graph in launched]

    def close(self) -> None: ...


class Event:
    """A torch.cuda.Event on the fake device."""

    device: Device

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at_s = max(self.device.busy_until_s, self.device.now_s)

    def query(self) -> bool:
        return self.at_s <= self.device.now_s

    def synchronize(self) -> None:
        self.device.now_s = max(self.device.now_s, self.at_s)

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.at_s - self.at_s)


@pytest.fixture(params=[True, False], ids=["concurrent", "in turns"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    made_up = Device()

    def sleep(seconds: float) -> None:
        made_up.now_s += seconds

    monkeypatch.setattr(Event, "device", made_up, raising=False)
    monkeypatch.setattr(launching, "time", SimpleNamespace(monotonic=lambda: made_up.now_s, sleep=sleep))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: made_up.wait())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    for name, value in {
        "LayerRanges": lambda *_args: nullcontext(),
        "GraphNodes": lambda _stream: Nodes(),
        "pci_bus_id": lambda _device: None,
        "l2_flush": lambda _subject: None,
        "checked_timer": lambda timer, _passes, _notices: timer,
        "open_recorder": lambda _timer: Recorder(made_up, request.param),
        "GraphPasses": lambda _subject, pools: SimpleNamespace(
            runner=SimpleNamespace(cache=SimpleNamespace(restore=lambda: None, kind=made_up.cache_kind)),
            eager=made_up.eager,
            capture=made_up.capture,
            stream=None,
            weights=list(range(pools - 1)) if made_up.memory_for_copies else [],
        ),
    }.items():
        monkeypatch.setattr(gpu_kernels, name, value)
    return made_up


@pytest.fixture
def backend(device: Device) -> GpuKernelBackend:
    layout = SimpleNamespace(
        kinds=(), learned_positions=None, block_rows=lambda: {}, blocks=lambda row: 2 if row == "q_proj" else 1
    )
    runner = SimpleNamespace(forget_masks=lambda *_: None)
    subject: Any = SimpleNamespace(
        device=torch.device("cpu"),
        layout=layout,
        runner=runner,
        model=None,
        most_cached=None,
        notices=[],
        facts=lambda: {},
    )
    opened = GpuKernelBackend(subject)
    opened._eager = SimpleNamespace(sample=eager_results)  # type: ignore[assignment]
    return opened


def eager_results(points: Sequence[SweepPoint], _rule: StoppingRule, _clock: Any) -> Iterator[PointSample]:
    return (PointSample(point, {}, (1,), "eager") for point in points)


POINTS = [SweepPoint(n, 0) for n in range(1, 71)] + [SweepPoint(1, k) for k in range(1, 6)]


def samples(backend: GpuKernelBackend, rule: StoppingRule) -> dict[SweepPoint, PointSample]:
    results = list(backend.sample(POINTS, rule, warmup=10))
    assert sorted(r.point for r in results) == sorted(POINTS), "each point exactly once"
    return {r.point: r for r in results if isinstance(r, PointSample)}


def facts(backend: GpuKernelBackend, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(gpu_kernels, "device_facts", lambda _device: {})
    return dict(backend.facts())


def test_points_of_many_batches_get_their_own_replays(device: Device, backend: GpuKernelBackend) -> None:
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
    assert not device.alive, "all graphs are freed"


@pytest.mark.parametrize(
    ("rule", "passes"),
    [(StoppingRule(), MIN_PASSES), (StoppingRule(repeat=2), 2), (StoppingRule(repeat=12, precision=0), 12)],
)
def test_as_many_passes_as_the_rule_says(
    rule: StoppingRule, passes: int, device: Device, backend: GpuKernelBackend
) -> None:
    assert {len(sample.pass_ns) for sample in samples(backend, rule).values()} == {passes}


def test_long_passes_need_fewer(device: Device, backend: GpuKernelBackend) -> None:
    device.duration_ns = lambda _point: LONG_PASS_NS
    assert {len(sample.pass_ns) for sample in samples(backend, StoppingRule()).values()} == {MIN_LONG_PASSES}


def test_two_points_of_a_kind_run_eagerly_and_later_ones_do_not(device: Device, backend: GpuKernelBackend) -> None:
    samples(backend, StoppingRule())
    assert device.eager_passes == [SweepPoint(1, 0), SweepPoint(2, 0), SweepPoint(1, 1), SweepPoint(1, 2)]
    assert len(device.captures) == GRAPHS * len(POINTS) + 2, "and a trial of either kind"


def test_passes_that_launch_more_at_the_first_use_of_a_length_run_eagerly_before(
    device: Device, backend: GpuKernelBackend
) -> None:
    device.rows = lambda point, ran: ROWS if ran or point.kind == "decode" else (*ROWS, "attn")
    samples(backend, StoppingRule())
    assert {point for point in device.eager_passes if point.kind == "prefill"} == {*POINTS[:70]}
    assert [point for point in device.eager_passes if point.kind == "decode"] == [SweepPoint(1, 1), SweepPoint(1, 2)]


def test_a_length_that_needs_its_first_pass_later_on_gets_it(device: Device, backend: GpuKernelBackend) -> None:
    """Such as one beyond a sliding window, from which on there is a mask."""
    device.refuses_capture = lambda point, ran: point.total_len >= 40 and not ran
    found = samples(backend, StoppingRule())
    assert {sample.timed_by for sample in found.values()} == {"graph-replay"}
    assert {point.total_len for point in device.eager_passes if point.kind == "prefill"} == {1, 2, *range(40, 71)}
    assert backend._captures.error is None


def test_a_model_with_a_cache_of_its_own_has_first_passes(device: Device, request: pytest.FixtureRequest) -> None:
    device.cache_kind = "own"
    samples(request.getfixturevalue("backend"), StoppingRule())
    assert sorted(device.eager_passes) == sorted(POINTS)


@pytest.mark.parametrize(("fits", "copies"), [(True, GRAPHS - 1), (False, 0)])
def test_copies_of_weights_that_do_not_fit_are_told(
    fits: bool, copies: int, device: Device, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.memory_for_copies = fits
    opened: GpuKernelBackend = request.getfixturevalue("backend")
    assert facts(opened, monkeypatch)["weight_copies"] == copies
    assert any("copies of weights" in notice for notice in opened.notices) != fits


def test_the_device_rests_after_each_pass_of_many_tokens_and_decode_steps_fill_the_rests(
    device: Device, backend: GpuKernelBackend
) -> None:
    device.duration_ns = lambda point: 500_000_000 if point.tokens > 64 else 1_000_000  # per kernel
    long, short = [SweepPoint(n, 0) for n in (100, 110, 120)], [SweepPoint(1, n) for n in range(1, 40)]
    found = list(backend.sample([*long, *short], StoppingRule(), warmup=1))
    assert len(found) == len(long) + len(short)
    ran = [(start, end) for point, start, end in device.replays if point in long][1:]  # without an uncounted one
    for (start, end), (next_start, _) in pairwise(ran):
        assert next_start >= end + REST * (end - start) - 1e-6
    filled = [start for point, start, _ in device.replays if point in short]
    assert any(end <= at < next_start for (_, end), (next_start, _) in pairwise(ran) for at in filled)


def test_short_passes_run_back_to_back_after_one_that_does_not_count(device: Device, backend: GpuKernelBackend) -> None:
    points = [SweepPoint(8, 0), SweepPoint(9, 0)]
    assert len(list(backend.sample(points, StoppingRule(repeat=6, precision=0), warmup=10))) == 2
    ran = [point for point, _, _ in device.replays]
    assert (ran.count(points[0]), ran.count(points[1])) == (10 + 6, 1 + 6), "the clock is low before the first"
    assert all(end == pytest.approx(start) for (_, _, end), (_, start, _) in pairwise(device.replays))


def test_no_uncounted_replay_without_warmup(device: Device, backend: GpuKernelBackend) -> None:
    (found,) = backend.sample([SweepPoint(8, 0)], StoppingRule(repeat=6, precision=0), warmup=0)
    assert isinstance(found, PointSample) and len(found.pass_ns) == len(device.replays) == 6


def test_results_come_while_later_points_are_captured(device: Device, backend: GpuKernelBackend) -> None:
    results = backend.sample(POINTS, StoppingRule(repeat=3, precision=0), warmup=1)
    next(results)
    assert 0 < len({*device.captures}) < len(POINTS)
    assert len(list(results)) == len(POINTS) - 1


def test_a_noisy_point_comes_again_and_keeps_its_passes(device: Device, backend: GpuKernelBackend) -> None:
    device.noise = (number % 50 for number in count())
    found = samples(backend, StoppingRule(repeat=40, precision=0.01))
    counts = {point: len(sample.pass_ns) for point, sample in found.items()}
    assert counts[SweepPoint(1, 0)] > MIN_PASSES, "the shortest pass is the noisiest"
    assert min(counts.values()) == MIN_PASSES and max(counts.values()) <= 40
    assert all(len(row.pass_ns) == counts[p] for p, sample in found.items() for row in sample.rows.values())
    assert not device.alive


@pytest.mark.parametrize("share", [0.2, 0.1])
def test_replays_with_missing_records_are_run_again_and_counted(
    share: float, device: Device, backend: GpuKernelBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(1)
    device.graph_kernels = lambda _point: ROWS[1:] if draw.random() < share else ROWS
    found = samples(backend, StoppingRule())
    assert {(sample.timed_by, len(sample.pass_ns)) for sample in found.values()} == {("graph-replay", MIN_PASSES)}
    assert all(sample.pass_ns == (400 * point.total_len,) * MIN_PASSES for point, sample in found.items())
    expected = MIN_PASSES * len(POINTS) * share / (1 - share)
    assert expected * 0.7 < facts(backend, monkeypatch)["lost_replays"] < expected * 1.3


def test_a_point_whose_records_are_always_missing_is_timed_eagerly(device: Device, backend: GpuKernelBackend) -> None:
    lost = SweepPoint(7, 0)
    device.graph_kernels = lambda point: () if point == lost else ROWS
    found = samples(backend, StoppingRule())
    assert {point for point, sample in found.items() if sample.timed_by == "eager"} == {lost}
    assert not device.alive


def test_a_model_that_cannot_be_captured_is_timed_eagerly_and_says_so(
    device: Device, backend: GpuKernelBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.refuses_capture = lambda *_: True
    found = samples(backend, StoppingRule())
    assert {sample.timed_by for sample in found.values()} == {"eager"}
    (notice,) = [text for text in backend.notices if "captured" in text]
    assert "a host sync" in notice
    assert facts(backend, monkeypatch)["not_captured"] == "a host sync"
    assert {sample.timed_by for sample in samples(backend, StoppingRule()).values()} == {"eager"}


def test_where_the_driver_tells_no_nodes_all_is_timed_eagerly(
    device: Device, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver(_stream: Any) -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(gpu_kernels, "GraphNodes", no_driver)
    opened: GpuKernelBackend = request.getfixturevalue("backend")
    assert {sample.timed_by for sample in samples(opened, StoppingRule()).values()} == {"eager"}
    assert any("does not tell the nodes" in notice for notice in opened.notices) and not device.captures


def test_a_point_that_does_not_fit_is_a_failure_and_the_others_go_on(device: Device, backend: GpuKernelBackend) -> None:
    device.too_long = 60
    results = list(backend.sample(POINTS, StoppingRule(), warmup=10))
    failed = {r.point for r in results if isinstance(r, PointFailure)}
    assert failed == {p for p in POINTS if p.total_len >= 60}
    assert {r.reason for r in results if isinstance(r, PointFailure)} == {"out of memory"}
    assert len(results) == len(POINTS)


def test_memory_for_fewer_graphs_is_asked_for_once(device: Device, backend: GpuKernelBackend) -> None:
    asked: list[int] = []
    capture = device.capture

    def two_fit(point: SweepPoint, pool: int = 0, around: Any = None) -> Any:
        asked.append(pool)
        if pool == 2:
            raise torch.OutOfMemoryError("made up")
        return capture(point, pool, around)

    backend._passes.capture = two_fit  # type: ignore[method-assign,assignment]
    found = samples(backend, StoppingRule())
    assert {sample.timed_by for sample in found.values()} == {"graph-replay"}
    assert {len(sample.pass_ns) for sample in found.values()} == {MIN_PASSES}
    assert asked.count(2) == 1
    assert [text for text in backend.notices if "memory" in text] == [
        f"memory suffices for 2 of {GRAPHS} captures of a pass: rows vary a little more from run to run"
    ]


def test_the_cache_is_emptied_before_each_pass_that_counts(device: Device, backend: GpuKernelBackend) -> None:
    flushed: list[int] = []
    backend._flush = lambda: flushed.append(len(device.replays))
    (found,) = backend.sample([SweepPoint(8, 0)], StoppingRule(repeat=6, precision=0), warmup=1)
    assert isinstance(found, PointSample) and len(found.pass_ns) == 6
    assert flushed == [1, 2, 3, 4, 5, 6], "after the uncounted one"


def test_captures_are_made_outside_of_recordings_in_turns(device: Device, backend: GpuKernelBackend) -> None:
    recorder = Recorder(device, concurrent=False)
    results = list(backend._replayed(recorder, iter(POINTS), StoppingRule(), 1, []))
    assert len(results) == len(POINTS) and recorder.captured_inside == 0


@pytest.mark.parametrize(("total", "parts", "split"), [(10, 4, [3, 3, 2, 2]), (3, 3, [1, 1, 1]), (100, 1, [100])])
def test_replays_are_split_evenly_among_graphs(total: int, parts: int, split: list[int]) -> None:
    assert split_evenly(total, parts) == split
