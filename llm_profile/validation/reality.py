"""The real model, timed step by step: what estimates are held against.

Two runtimes: `eager`, which is `generate` as transformers runs it, and `cuda-graph`, the same steps captured in CUDA
graphs, which is what serving engines come close to. Both use the model, cache, routing and kernels of the profile.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from llm_profile.errors import UsageError, is_out_of_memory, one_line
from llm_profile.passes.cache import PastOfAPrompt
from llm_profile.passes.graphs import CaptureError, GraphPasses, fits
from llm_profile.passes.loading import profiled_subject
from llm_profile.passes.runner import PassRunner
from llm_profile.passes.subject import Subject
from llm_profile.store.conditions import differing_conditions
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import SweepPoint
from llm_profile.timing.backends.torch_profiler import REST, check_cuda, pci_bus_id
from llm_profile.timing.provenance import device_conditions
from llm_profile.timing.telemetry import Telemetry, sharing_notice
from llm_profile.validation.steps import Reality, StepTimes

REPLAYS = 2
"""Back-to-back replays whose mean is one repeat."""

BATCHED_STEPS = 4
"""Steps of `generate` whose mean is a batched step."""


OWN_CACHE_NOTICE = "generate keeps a cache of the model's own making, and real times have what that costs"
"""Said where the cache of the profile is not in place: `generate` then makes its own, anew for each prompt."""


class _Stamps(StoppingCriteria):
    """Notes the time of each token, once the device has finished it. Never stops."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.times_ns: list[int] = []
        self._synchronize = synchronize

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_kwargs: Any) -> torch.Tensor:
        self._synchronize()
        self.times_ns.append(time.perf_counter_ns())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class EagerReality:
    """`generate`, token by token. A prompt's time begins when `generate` is called and ends with its first token."""

    runtime = "eager"

    def __init__(self, subject: Subject) -> None:
        self.notices = _sharing(subject)
        if isinstance(subject.runner.cache, PastOfAPrompt):
            self.notices.append(OWN_CACHE_NOTICE)
        self._subject = subject
        # What a checkpoint says of generation (an end token, penalties) would end runs early or add steps of its own.
        subject.model.generation_config = GenerationConfig()
        self._synchronize = _synchronizer(subject)
        gc.collect()
        gc.freeze()  # going through the millions of objects of torch and transformers takes as long as some steps

    def prefill(self, input_lens: Sequence[int], repeat: int) -> Iterator[StepTimes]:
        """Runs `generate` for one token."""
        for (input_len, _), rounds in self._rounds([(input_len, 1) for input_len in input_lens], repeat):
            yield StepTimes(SweepPoint(input_len, 0), tuple(tokens[0] for tokens in rounds))

    def decode(self, windows: Sequence[Sequence[int]], repeat: int) -> Iterator[StepTimes]:
        """Each window is one `generate`, so that steps follow each other as they do in use."""
        runs = [(window[0], 1 + len(window)) for window in windows]
        for (first, tokens), rounds in self._rounds(runs, repeat):
            for step in range(1, tokens):
                yield StepTimes(SweepPoint(1, first + step - 1), tuple(times[step] for times in rounds))

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        """The mean of a few steps of `generate` after prompts of that length."""
        for point, runner in _batched_runners(self._subject, points, BATCHED_STEPS):
            runs: list[list[int]] = []
            while len(runs) < 1 + repeat:
                tokens = self._generate_if_it_fits(runner, point.kv_len, 1 + BATCHED_STEPS)
                if tokens is None:
                    break
                runs.append(tokens[1:])
            else:
                yield StepTimes(point, tuple(round(statistics.fmean(steps)) for steps in runs[1:]))

    def close(self) -> None:
        gc.unfreeze()
        self._subject.close()

    def _rounds(
        self, runs: Sequence[tuple[int, int]], repeat: int
    ) -> Iterator[tuple[tuple[int, int], list[list[int]]]]:
        """Each (input length, tokens) with its times per token in each of `repeat` rounds after one that warms."""
        times: dict[tuple[int, int], list[list[int]]] = {run: [] for run in runs}
        for number in range(1 + repeat):
            for run in list(times):
                tokens = self._generate_if_it_fits(self._subject.runner, *run)
                if tokens is None:
                    del times[run]
                elif number:
                    times[run].append(tokens)
        yield from times.items()

    def _generate_if_it_fits(self, runner: PassRunner, input_len: int, tokens: int) -> list[int] | None:
        """Time per token of one run; None where it does not fit in memory."""
        times_ns: list[int] = []
        fitted = fits(lambda: times_ns.extend(self._generate(runner, input_len, tokens)))
        return times_ns if fitted else None

    def _generate(self, runner: PassRunner, input_len: int, tokens: int) -> list[int]:
        model = self._subject.model
        past = runner.past(0)
        cache = {} if past is None else {runner.cache_argument: past}
        stamps = _Stamps(self._synchronize)
        settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
        self._synchronize()
        started = time.perf_counter_ns()
        try:
            model.generate(  # type: ignore[operator]
                runner.input_ids[:, :input_len],
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([stamps]),
                **cache,
            )
        except Exception as error:  # a model's own generation code raises errors of many types
            if is_out_of_memory(error):
                raise
            where = "" if self._subject.device.type == "cuda" else ", on a GPU"
            raise UsageError(
                f"--scaling-runtime eager: {type(model).__name__} does not run in generate: {one_line(error)}; use "
                f"--scaling-runtime cuda-graph{where}"
            ) from error
        if len(stamps.times_ns) != tokens:
            raise RuntimeError(f"generate made {len(stamps.times_ns)} tokens where {tokens} were asked for")
        return [after - before for before, after in pairwise([started, *stamps.times_ns])]


class GraphReality:
    """Steps captured in CUDA graphs and replayed, timed with CUDA events.

    Replays hardly vary, so of a window of consecutive decode steps the first, the middle and the last stand for all.
    """

    runtime = "cuda-graph"

    def __init__(self, subject: Subject) -> None:
        if subject.device.type != "cuda":
            raise UsageError(f"--scaling-runtime cuda-graph: not on {subject.device.type}; use eager")
        self.notices = _sharing(subject)
        self._subject = subject
        self._passes = GraphPasses(subject)

    def prefill(self, input_lens: Sequence[int], repeat: int) -> Iterator[StepTimes]:
        """One pass each."""
        yield from self._steps([SweepPoint(input_len, 0) for input_len in input_lens], repeat)

    def decode(self, windows: Sequence[Sequence[int]], repeat: int) -> Iterator[StepTimes]:
        """Three steps of each window."""
        chosen = [sorted({w[0], w[len(w) // 2], w[-1]}) for w in windows]
        yield from self._steps([SweepPoint(1, kv_len) for window in chosen for kv_len in window], repeat)

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        """One pass each."""
        own = self._subject.runner
        for point, runner in _batched_runners(self._subject, points, steps=1):
            self._passes.runner = runner
            try:
                yield from self._steps([point], repeat)
            finally:
                self._passes.runner = own

    def close(self) -> None:
        self._subject.close()

    def _steps(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        self._passes.runner.forget_masks()  # those of these steps stay: graphs read them
        graphs = {point: graph for point in points if (graph := self._capture(point)) is not None}
        times: dict[SweepPoint, list[int]] = {point: [] for point in graphs}
        for _ in range(repeat):
            for point, graph in graphs.items():
                times[point].append(self._time(graph))
        for graph in graphs.values():
            graph.reset()
        yield from (StepTimes(point, tuple(walls)) for point, walls in times.items())

    def _capture(self, point: SweepPoint) -> torch.cuda.CUDAGraph | None:
        captured: list[torch.cuda.CUDAGraph] = []

        def capture() -> None:
            self._passes.eager(point, last_token_only=True)  # a length's first use builds plans
            captured.append(self._passes.capture(point, last_token_only=True))

        try:
            return captured[0] if fits(capture) else None
        except CaptureError as error:
            raise UsageError(
                f"--scaling-runtime cuda-graph: {type(self._subject.model).__name__} cannot be captured "
                f"({error}); use --scaling-runtime eager"
            ) from error

    def _time(self, graph: torch.cuda.CUDAGraph) -> int:
        """Mean of REPLAYS back-to-back replays, after one that warms and a rest as the profile takes it."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began = time.monotonic()
        with torch.cuda.stream(self._passes.stream):
            graph.replay()
            start.record()
            for _ in range(REPLAYS):
                graph.replay()
            end.record()
        end.synchronize()
        time.sleep(REST * (time.monotonic() - began))
        return round(start.elapsed_time(end) * 1e6 / REPLAYS)


def _synchronizer(subject: Subject) -> Callable[[], None]:
    return torch.cuda.synchronize if subject.device.type == "cuda" else lambda: None


def _sharing(subject: Subject) -> list[str]:
    if subject.device.type != "cuda":
        return []
    telemetry = Telemetry(pci_bus_id(subject.device))
    try:
        return sharing_notice(telemetry)
    finally:
        telemetry.close()


def _batched_runners(
    subject: Subject, points: Sequence[SweepPoint], steps: int
) -> Iterator[tuple[SweepPoint, PassRunner]]:
    """Each point with a runner of its batch size, for so many steps after it."""
    seed = subject.options.model.seed
    for point in points:
        longest = point.kv_len + steps
        with PassRunner(subject.model, point.kv_len, longest, seed, subject.routing, point.batch) as runner:
            yield point, runner


def machine_conditions(device: torch.device) -> dict[str, Any]:
    """What of the machine is compared, as a profile on this device has it among its conditions."""
    if device.type != "cuda":
        return device_conditions(device)
    telemetry = Telemetry(pci_bus_id(device))
    try:
        return device_conditions(device) | {"driver": telemetry.driver}
    finally:
        telemetry.close()


REALITIES: dict[str, Callable[[Subject], Reality]] = {"eager": EagerReality, "cuda-graph": GraphReality}
"""`--scaling-runtime`: how the real model is run."""


def open_reality(
    runtime: str, table: LatencyTable, depth: int, device: str, token: str | None, trust_remote_code: bool = False
) -> Reality:
    """Load the model that `table` was measured on, with `depth` blocks, under the table's conditions.

    Raises UsageError where the machine, or what is installed on it, is another.
    """
    if device.startswith("cuda"):
        check_cuda(device)
    if differing := differing_conditions(table.meta["conditions"], machine_conditions(torch.device(device))):
        raise UsageError(
            f"--csv: the table was measured under other conditions: {'; '.join(differing)}; validate it under the "
            "same, or measure it anew with run_profile.py"
        )
    if device.startswith("cuda"):
        gc.collect()  # an earlier, shallower model may still hold memory
        torch.cuda.empty_cache()
    return REALITIES[runtime](profiled_subject(table, depth, device, token, trust_remote_code))
