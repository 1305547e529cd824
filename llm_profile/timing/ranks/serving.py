"""What each rank does with its GPU: it loads the models that rank 0 names and measures points until none are left.

Ranks take points by a counter in the store, so a fast rank takes more and no rank waits for another. Imports no torch.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llm_profile.measurement import StoppingRule
from llm_profile.points import SweepPoint, point_of_key
from llm_profile.timing.backends.base import Backend
from llm_profile.timing.ranks.messages import COMMANDS, Box, answers, claims, is_over, result_message
from llm_profile.timing.ranks.torchrun import Rank

if TYPE_CHECKING:
    from torch.distributed import Store

CLAIM = 4
"""Points that a rank takes at a time: on a GPU about 50 ms of work, for which it asks the store once."""

SEND_EVERY_S = 0.25
"""Seconds between two messages with results, if results come faster."""

POLL_S = 0.01
"""Seconds between two looks into the store."""


class Server:
    """Obeys rank 0 until the run ends.

    open_model: opens the backend of the request with this number in the command line.
    """

    def __init__(self, rank: Rank, store: "Store", open_model: Callable[[int], Backend]) -> None:
        self._rank = rank
        self._store = store
        self._open_model = open_model
        self._answers = Box(store, answers(rank.number))
        self._backend: Backend | None = None

    def run(self, introduction: Mapping[str, Any]) -> None:
        """Say who this is, then obey."""
        self._answers.send({"hello": introduction})
        for command in self._commands():
            if "open" in command:
                self._backend = self._open_model(command["open"])
                self._answers.send({"ready": _description(self._backend)})
            elif "close" in command:
                if self._backend is not None:
                    self._backend.close()
                self._backend = None
                self._answers.send({"closed": True})
            elif self._backend is not None:
                self._measure(self._backend, **command)

    def _commands(self) -> Iterator[dict[str, Any]]:
        box = Box(self._store, COMMANDS, kept=True)
        while not is_over(self._store, self._rank.number):
            if (command := box.take()) is None:
                time.sleep(POLL_S)
            else:
                yield command

    def _measure(
        self, backend: Backend, round: int, points: Sequence[Any], everyone: bool, rule: Mapping[str, Any], warmup: int
    ) -> None:
        """Measure a part of the points, or all of them if `everyone` is to, and send the results as they come."""
        laid_out = [point_of_key(key) for key in points]
        own: Iterator[SweepPoint] = iter(laid_out) if everyone else self._claimed(round, laid_out)
        results: list[dict[str, Any]] = []
        sent = time.monotonic()
        for result in backend.sample(own, StoppingRule(**rule), warmup):
            results.append(result_message(result))
            if time.monotonic() - sent > SEND_EVERY_S:
                self._answers.send({"results": results})
                results, sent = [], time.monotonic()
        facts, notices = dict(backend.facts()), list(backend.notices)
        self._answers.send({"results": results, "done": round, "facts": facts, "notices": notices})

    def _claimed(self, round: int, points: Sequence[SweepPoint]) -> Iterator[SweepPoint]:
        """Points that no other rank has, each when it is asked for."""
        while not is_over(self._store, self._rank.number):
            first = self._store.add(claims(round), CLAIM) - CLAIM
            if first >= len(points):
                return
            yield from points[first : first + CLAIM]


def _description(backend: Backend) -> dict[str, Any]:
    return {
        "clock": backend.clock,
        "kinds": [asdict(kind) for kind in backend.kinds],
        "block_rows": dict(backend.block_rows),
        "learned_positions": backend.learned_positions,
        "most_cached": backend.most_cached,
        "notices": list(backend.notices),
        "conditions": dict(backend.conditions()),
        "facts": dict(backend.facts()),
    }
