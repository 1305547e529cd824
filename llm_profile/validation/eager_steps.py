"""Steps of `generate`, as a plain script calls it.

Nothing of the profile is in them: no patches, the cache that `generate` makes, torch's own choice of attention kernels,
the model's own router.
"""

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from llm_profile.errors import UsageError, is_out_of_memory, one_line
from llm_profile.models.transformers_names import takes
from llm_profile.passes.attention import attention_backend
from llm_profile.passes.graphs import fits
from llm_profile.points import SweepPoint
from llm_profile.validation.real_steps import Step

BATCHED_STEPS = 8
"""Steps of `generate` whose mean is a batched step."""


CHOICE_OF_A_SCRIPT = {"auto": "torch"}
"""--sdpa-backend of a table -> that of `eager`: unless the user named one, torch chooses, as in a plain script."""


class _Stamps(StoppingCriteria):
    """Notes when each token of `batch` sequences is finished, without waiting for the device. Never stops."""

    def __init__(self, device: torch.device, batch: int) -> None:
        self._clock = _GpuClock() if device.type == "cuda" else _CpuClock()
        self._go_on = torch.zeros(batch, dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_kwargs: Any) -> torch.Tensor:
        self._clock.stamp()
        return self._go_on

    def durations_ns(self) -> list[int]:
        """From each token to the next."""
        return [round(after - before) for before, after in pairwise(self._clock.read_ns())]


class _CpuClock:
    def __init__(self) -> None:
        self._times_ns: list[float] = []

    def stamp(self) -> None:
        self._times_ns.append(time.perf_counter_ns())

    def read_ns(self) -> list[float]:
        return self._times_ns


class _GpuClock:
    """CUDA events."""

    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []

    def stamp(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def read_ns(self) -> list[float]:
        first = self._events[0]
        return [first.elapsed_time(event) * 1e6 for event in self._events]  # of a device that is idle by now


class EagerSteps:
    """`generate`. A prompt's time is that of the call for one token, a step's that from one token to the next."""

    def __init__(self, model: Any, sdpa_backend: str = "torch", seed: int = 0) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self._seed = seed
        self._vocab_size: int = self.model.config.get_text_config(decoder=True).vocab_size
        # What a checkpoint says of generation (an end token, penalties) would end runs early or add steps of its own.
        self.model.generation_config = GenerationConfig()
        self._runs: list[tuple[int, Sequence[int]]] = []
        self._undo = ExitStack()
        self._undo.enter_context(attention_backend(CHOICE_OF_A_SCRIPT.get(sdpa_backend, sdpa_backend)))

    def prepare(self, input_lens: Sequence[int], windows: Sequence[Sequence[int]]) -> None:
        """One `generate` of each prompt and of each window."""
        runs: list[tuple[int, Sequence[int]]] = [(input_len, ()) for input_len in input_lens]
        runs += [(window[0], window) for window in windows]
        # mixed, as the host's caches are warmer for a prompt behind another prompt than behind decode steps
        random.Random(self._seed).shuffle(runs)
        self._runs = [(input_len, window) for input_len, window in runs if self._if_it_fits(input_len, 1 + len(window))]

    def round(self) -> Iterator[Step]:
        """Each window is one `generate`, so that steps follow each other as they do in use."""
        for input_len, window in self._runs:
            times_ns = self._if_it_fits(input_len, 1 + len(window))
            if times_ns is None:
                continue
            if not window:
                yield SweepPoint(input_len, 0), times_ns[0]
            for kv_len, step_ns in zip(window, times_ns[1:], strict=True):
                yield SweepPoint(1, kv_len), step_ns

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> Iterator[tuple[SweepPoint, tuple[int, ...]]]:
        """The mean of a few steps of `generate` after prompts of that length; one run warms."""
        for point in points:
            runs = [self._if_it_fits(point.kv_len, 1 + BATCHED_STEPS, point.batch) for _ in range(1 + repeat)]
            if None not in runs:
                means = [round(statistics.fmean(run[1:])) for run in runs[1:] if run]
                yield point, tuple(means)

    def close(self) -> None:
        self._undo.close()

    def _if_it_fits(self, input_len: int, tokens: int, batch: int = 1) -> list[int] | None:
        """Time per token of one run; None where it does not fit in memory."""
        times_ns: list[int] = []
        fitted = fits(lambda: times_ns.extend(self._generate(input_len, tokens, batch)))
        return times_ns if fitted else None

    def _generate(self, input_len: int, tokens: int, batch: int) -> list[int]:
        generator = torch.Generator(self.device).manual_seed(self._seed)
        ids = torch.randint(self._vocab_size, (batch, input_len), device=self.device, generator=generator)
        mask = {"attention_mask": torch.ones_like(ids)} if takes(self.model, "attention_mask") else {}
        stamps = _Stamps(self.device, batch)
        self._wait()
        started = time.perf_counter_ns()
        try:
            self.model.generate(
                ids,
                **mask,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([stamps]),
            )
        except Exception as error:  # a model's own generation code raises errors of many types
            if is_out_of_memory(error):
                raise
            where = "" if self.device.type == "cuda" else ", on a GPU"
            raise UsageError(
                f"--scaling-runtime eager: {type(self.model).__name__} does not run in generate: {one_line(error)}; "
                f"use --scaling-runtime cuda-graph{where}"
            ) from error
        self._wait()
        call_ns = time.perf_counter_ns() - started
        steps_ns = stamps.durations_ns()
        if len(steps_ns) != tokens - 1:
            raise RuntimeError(f"generate made {len(steps_ns) + 1} tokens where {tokens} were asked for")
        return [call_ns - sum(steps_ns), *steps_ns]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
