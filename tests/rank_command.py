"""`run_profile.py` on fake devices that differ from rank to rank: `torchrun ... -m tests.rank_command JSON ...`.

JSON: number of a rank, or `all`, -> what is wrong with its device: keyword arguments of TroubledBackend, `gpu` (name of
its GPU), `slower` (factor on its times), `hang_at` (waits for ever at its Nth point), `die_at` (kills itself there).
`hang_s` on top: seconds for a hang. The arguments of the command follow.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import run_profile
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.points import SweepPoint
from llm_profile.timing.backends import BACKENDS
from llm_profile.timing.ranks import team
from tests.fake_command import TroubledBackend


class RankBackend(TroubledBackend):
    """A fake device with the troubles of one rank."""

    def __init__(
        self,
        gpu: str = "fake",
        slower: float = 1.0,
        hang_at: int | None = None,
        die_at: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._gpu, self._slower, self._hang_at, self._die_at = gpu, slower, hang_at, die_at
        self._given = 0

    def conditions(self) -> Mapping[str, Any]:
        return {**super().conditions(), "gpu": self._gpu}

    def sample(
        self, points: Iterable[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        for result in super().sample(points, rule, warmup):
            self._given += 1
            if self._given == self._hang_at:
                time.sleep(600)
            if self._given == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if isinstance(result, PointSample) and self._slower != 1:
                result = replace(result, pass_ns=tuple(round(ns * self._slower) for ns in result.pass_ns))
            yield result


def main(troubles: dict[str, Any], words: list[str]) -> int:
    team.HANG_S = troubles.pop("hang_s", team.HANG_S)
    own = troubles.get("all", {}) | troubles.get(os.environ.get("RANK", "0"), {})
    BACKENDS["fake"] = lambda request, source: RankBackend(**own)
    return run_profile.main(words)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2:]))
