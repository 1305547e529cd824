"""The real model, timed step by step: what estimates are held against.

Two runtimes: `eager`, which is `generate` as transformers runs it, and `cuda-graph`, the same steps captured in CUDA
graphs, which is what serving engines come close to. Both use the model, cache, routing and kernels of the profile.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from llm_profile.backends.base import Reality, StepTimes
from llm_profile.backends.torch_profiler import CaptureError, GraphPasses, check_cuda
from llm_profile.errors import UsageError
from llm_profile.loading import profiled_subject
from llm_profile.subject import Subject
from llm_profile.sweep import SweepPoint
from llm_profile.table import LatencyTable

WARM_REPLAYS = 2
"""Graph replays before those that count."""

REPLAYS = 2
"""Back-to-back replays whose mean is one repeat."""


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
        self._subject = subject
        on_gpu = subject.device.type == "cuda"
        self._synchronize: Callable[[], None] = torch.cuda.synchronize if on_gpu else lambda: None

    def prefill(self, input_lens: Sequence[int], repeat: int) -> Iterator[StepTimes]:
        for input_len in input_lens:
            runs = self._repeat(input_len, 1, repeat)
            if runs is not None:
                yield StepTimes(SweepPoint(input_len, 0), tuple(run[0] for run in runs))

    def decode(self, kv_lens: Sequence[int], repeat: int) -> Iterator[StepTimes]:
        """Each run of consecutive lengths is one `generate`, so that steps follow each other as they do in use."""
        for window in consecutive(kv_lens):
            runs = self._repeat(window[0], 1 + len(window), repeat)
            if runs is not None:
                for step, kv_len in enumerate(window, start=1):
                    yield StepTimes(SweepPoint(1, kv_len), tuple(run[step] for run in runs))

    def close(self) -> None:
        self._subject.close()

    def _repeat(self, input_len: int, tokens: int, repeat: int) -> list[list[int]] | None:
        """Time per token of each of `repeat` runs after one that warms; None if they do not fit in memory."""
        try:
            return [self._generate(input_len, tokens) for _ in range(1 + repeat)][1:]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None

    def _generate(self, input_len: int, tokens: int) -> list[int]:
        runner, model = self._subject.runner, self._subject.model
        runner.cache.rewind(0)
        stamps = _Stamps(self._synchronize)
        settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
        self._synchronize()
        started = time.perf_counter_ns()
        model.generate(  # type: ignore[operator]
            runner.input_ids[:, :input_len],
            generation_config=settings,
            past_key_values=runner.cache,
            stopping_criteria=StoppingCriteriaList([stamps]),
        )
        if len(stamps.times_ns) != tokens:
            raise RuntimeError(f"generate made {len(stamps.times_ns)} tokens where {tokens} were asked for")
        return [after - before for before, after in pairwise([started, *stamps.times_ns])]


class GraphReality:
    """Steps captured in CUDA graphs and replayed, timed with CUDA events."""

    runtime = "cuda-graph"

    def __init__(self, subject: Subject) -> None:
        if subject.device.type != "cuda":
            raise UsageError(f"--scaling-runtime cuda-graph: not on {subject.device.type}; use eager")
        self._subject = subject
        self._passes = GraphPasses(subject)

    def prefill(self, input_lens: Sequence[int], repeat: int) -> Iterator[StepTimes]:
        yield from self._steps([SweepPoint(input_len, 0) for input_len in input_lens], repeat)

    def decode(self, kv_lens: Sequence[int], repeat: int) -> Iterator[StepTimes]:
        yield from self._steps([SweepPoint(1, kv_len) for kv_len in kv_lens], repeat)

    def close(self) -> None:
        self._subject.close()

    def _steps(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[StepTimes]:
        for point in points:
            try:
                yield StepTimes(point, self._time(point, repeat))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
            except CaptureError as error:
                raise UsageError(
                    f"--scaling-runtime cuda-graph: {type(self._subject.model).__name__} cannot be captured "
                    f"({error}); use --scaling-runtime eager"
                ) from error

    def _time(self, point: SweepPoint, repeat: int) -> tuple[int, ...]:
        self._subject.runner.forget_masks()
        self._passes.eager(point, last_token_only=True)  # a length's first use builds plans
        graph = self._passes.capture(point, last_token_only=True)
        events = [(_event(), _event()) for _ in range(repeat)]
        with torch.cuda.stream(self._passes.stream):
            for _ in range(WARM_REPLAYS):
                graph.replay()
            for start, end in events:
                start.record()
                for _ in range(REPLAYS):
                    graph.replay()
                end.record()
        torch.cuda.synchronize()
        graph.reset()
        return tuple(round(start.elapsed_time(end) * 1e6 / REPLAYS) for start, end in events)


REALITIES: dict[str, Callable[[Subject], Reality]] = {"eager": EagerReality, "cuda-graph": GraphReality}
"""`--scaling-runtime`: how the real model is run."""


def open_reality(runtime: str, table: LatencyTable, depth: int, device: str, token: str | None) -> Reality:
    """Load the model that `table` was measured on, with `depth` blocks, under the table's conditions."""
    if device.startswith("cuda"):
        check_cuda(device)
        gc.collect()  # an earlier, shallower model may still hold memory
        torch.cuda.empty_cache()
    return REALITIES[runtime](profiled_subject(table, depth, device, token))


def consecutive(values: Sequence[int]) -> Iterator[list[int]]:
    """Runs of whole numbers that follow each other: 1 2 3 7 8 -> [1, 2, 3], [7, 8]."""
    run: list[int] = []
    for value in values:
        if run and value != run[-1] + 1:
            yield run
            run = []
        run.append(value)
    if run:
        yield run


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
