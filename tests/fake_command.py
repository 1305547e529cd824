"""`run_profile.py` on a fake device that can be slow or fail.

`python3 -m tests.fake_command '{"delay_s": 0.1}' --model ...` takes the arguments of TroubledBackend as JSON, then
those of the command.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import run_profile
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.models.hub import ModelSource
from llm_profile.points import SweepPoint
from llm_profile.request import Request
from llm_profile.timing.backends import BACKENDS
from llm_profile.timing.backends.base import Backend
from llm_profile.timing.backends.fake import FakeBackend

OPTIONS = ["--model", "tiny-llama", "--device", "fake", "--skip-scaling", "--prefill-max", "6", "--decode-max", "6"]
"""A sweep of 12 points. (1, 0), which belongs to both phases, counts once."""

POINTS = 12

CSV = Path("FAKE", "tiny-llama.csv")
"""Path of the table of that sweep in the output folder."""


class TroubledBackend(FakeBackend):
    """A fake device that can fail.

    learned_positions: of the model that it pretends to run. crash_at: at a point of this total length it raises an
    error that nothing handles. clocks: point -> its SM clocks in MHz, one for each time that it is measured; further
    measurements and other points have 1,980 MHz. asked: all points, in the order in which they were measured.
    """

    def __init__(
        self,
        num_layers: int = 4,
        profiled: int = 1,
        delay_s: float = 0.0,
        out_of_memory_at: int | None = None,
        learned_positions: int | None = None,
        crash_at: int | None = None,
        clocks: Mapping[SweepPoint, Sequence[float]] | None = None,
    ) -> None:
        super().__init__(num_layers, profiled, delay_s, out_of_memory_at)
        self.learned_positions = learned_positions
        self.crash_at = crash_at
        self.clocks = {point: list(values) for point, values in (clocks or {}).items()}
        self.asked: list[SweepPoint] = []

    def sample(
        self, points: Iterable[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        for result in super().sample(points, rule, warmup):
            self.asked.append(result.point)
            if result.point.total_len == self.crash_at:
                raise RuntimeError("an error of the device")
            if isinstance(result, PointSample) and self.clocks.get(result.point):
                result = replace(result, sm_clock_mhz=self.clocks[result.point].pop(0))
            yield result


def use(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    """Make `--device fake` mean this backend."""
    monkeypatch.setitem(BACKENDS, "fake", lambda request, source: backend)


def opener(options: Mapping[str, object]) -> Callable[[Request, ModelSource], Backend]:
    """An entry of BACKENDS that opens a TroubledBackend with these arguments."""
    return lambda request, source: TroubledBackend(4, request.num_layers, **options)  # type: ignore[arg-type]


if __name__ == "__main__":
    BACKENDS["fake"] = opener(json.loads(sys.argv[1]))
    sys.exit(run_profile.main(sys.argv[2:]))
