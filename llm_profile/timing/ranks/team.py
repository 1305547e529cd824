"""All ranks of a torchrun as one `Backend`: rank 0 hands out points and yields the results of all. Imports no torch.

Points are taken, not dealt out (serving.py). What a rank took and did not measure is handed out again when all others
have come to the end, so a rank that dies or hangs costs the points that it had in work, and nothing else.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llm_profile.block_kinds import BlockKind
from llm_profile.errors import UsageError
from llm_profile.measurement import PointFailure, PointSample, StoppingRule
from llm_profile.points import SweepPoint, key_of
from llm_profile.request import Request
from llm_profile.timing.ranks.agreement import (
    SENTINEL_ATTEMPTS,
    SENTINEL_TOLERANCES,
    disagreeing,
    identity,
    pass_time_ns,
    sentinels,
    unlike,
)
from llm_profile.timing.ranks.messages import COMMANDS, ENDED, Box, answers, dropped, received_result
from llm_profile.timing.ranks.processes import why_left
from llm_profile.timing.ranks.serving import POLL_S
from llm_profile.timing.ranks.torchrun import Rank

if TYPE_CHECKING:
    from torch.distributed import Store

HANG_S = 60.0
"""Seconds without a result after which a rank that has points to measure is left out."""

THROTTLING = "throttle_reasons"
"""The fact of a run that is a list: those of all ranks are told."""

Patience = Callable[[int], float | None]
"""Rank -> seconds that it may be silent, None for any time."""


class Team:
    """The ranks of a run, as rank 0 sees them.

    requests: those of the command line, the same on all ranks. tell: prints a line for the user. hardware: short name
    of the ranks' GPUs, known from `meet` on. lost: ranks that are not present any more, each with the reason.
    """

    def __init__(self, rank: Rank, store: "Store", requests: Sequence[Request], tell: Callable[[str], None]) -> None:
        self.present = list(range(rank.count))
        self.introductions: dict[int, dict[str, Any]] = {}
        self.lost: dict[int, str] = {}
        self.hardware = ""
        self._count = rank.count
        self._store = store
        self._requests = requests
        self._tell = tell
        self._commands = Box(store, COMMANDS, kept=True)
        self._boxes = {number: Box(store, answers(number)) for number in self.present}
        self._heard_s = dict.fromkeys(self.present, time.monotonic())
        self._rounds = 0

    def meet(self) -> str:
        """Wait until the ranks have started. Returns a line that names them. Raises UsageError if none can start."""
        for number, message in self._answers("hello", self._patience_of_first()):
            self.introductions[number] = message["hello"]
        self.hardware = self.introductions[self.present[0]]["hardware"]
        names = "; ".join(
            f"{self.name(number)}, process {self.introductions[number]['pid']}" for number in self.present
        )
        return f"{len(self.present)} of {self._count} ranks share the points: {names}"

    def name(self, number: int) -> str:
        """A rank as messages name it, with host and device where they are known."""
        known = self.introductions.get(number)
        return f"rank {number}" + (f" ({known['host']}, {known['device']})" if known else "")

    def open(self, request: Request) -> "SharedBackend":
        """Load the model of a request on all ranks. Raises UsageError if none can.

        Ranks know it by its number in the command line. Its sweep may have been fitted to the model since.
        """
        asked = [(known.model, known.tp) for known in self._requests]
        self.command({"open": asked.index((request.model, request.tp))})
        ready = {}
        for number, message in self._answers("ready", self._patience_of_first()):
            ready[number] = message["ready"]
        for number, text in unlike({number: identity(ready[number]) for number in self.present}).items():
            self.drop(number, f"is refused: {text}; run like GPUs only (CUDA_VISIBLE_DEVICES chooses)")
        return SharedBackend(self, {number: ready[number] for number in self.present})

    def close_model(self) -> None:
        """Free the model on all ranks."""
        if self.present:
            self.command({"close": True})
            for _ in self._answers("closed", lambda _number: HANG_S):
                pass

    def end(self) -> None:
        """Let all ranks end."""
        self._store.set(ENDED, "1")

    def measured(
        self, points: Iterable[SweepPoint], rule: StoppingRule, warmup: int, *, everyone: bool = False
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Have points measured once, or on every rank; yields what ranks answer, until each has come to the end."""
        number, self._rounds = self._rounds, self._rounds + 1
        keys = [key_of(point) for point in points]
        self.command({"round": number, "points": keys, "everyone": everyone, "rule": asdict(rule), "warmup": warmup})
        yield from self._answers("done", lambda _number: HANG_S)

    def command(self, message: Mapping[str, Any]) -> None:
        """Tell all ranks."""
        self._heard_s = dict.fromkeys(self._heard_s, time.monotonic())
        self._commands.send(message)

    def drop(self, number: int, why: str, *, usage: bool = True) -> None:
        """Name a rank and go on without it.

        usage: whether the user can mend it. Raises UsageError, or RuntimeError if not, when no rank is left.
        """
        self._store.set(dropped(number), "1")
        self.present.remove(number)
        self.lost[number] = why
        line = f"{self.name(number)} {why}"
        if self.present:
            self._tell(f"{line}; the run goes on with {len(self.present)} of {self._count} ranks")
        elif usage:
            raise UsageError(f"{line}; no rank is left, and the same command resumes from here")
        else:
            raise RuntimeError(f"{line}; no rank is left, and the same command resumes from here")

    def _patience_of_first(self) -> Patience:
        """All ranks may start or load for any time; once one is done, others for twice that and HANG_S more."""
        began = time.monotonic()
        waiting = set(self.present)

        def patience(number: int) -> float | None:
            arrived = [heard - began for other, heard in self._heard_s.items() if other in waiting and heard > began]
            return None if not arrived else 2 * min(arrived) + HANG_S

        return patience

    def _answers(self, last: str, patience: Patience) -> Iterator[tuple[int, dict[str, Any]]]:
        """What ranks tell, until each present one has told something with the name `last`."""
        waiting: Collection[int] = set(self.present)
        while waiting := {number for number in waiting if number in self.present}:
            found = {number: message for number in sorted(waiting) if (message := self._take(number, patience))}
            waiting = {number for number in waiting if last not in found.get(number, {})}
            yield from found.items()
            if not found:
                time.sleep(POLL_S)

    def _take(self, number: int, patience: Patience) -> dict[str, Any] | None:
        """The next message of a rank, if it is there. Drops the rank if it has ended or is silent for too long."""
        ended = why_left(self._store, number)  # first: what it told before it ended counts
        if message := self._boxes[number].take():
            self._heard_s[number] = time.monotonic()
            return message
        silent_s, most_s = time.monotonic() - self._heard_s[number], patience(number)
        if ended is not None:
            self.drop(number, ended[0], usage=ended[1])
        elif most_s is not None and silent_s > most_s:
            self.drop(number, f"hangs: nothing came from it for {silent_s:.0f} s")
        return None


class SharedBackend:
    """A `Backend` whose points are measured by the ranks of a team.

    ready: what each rank told of its model. What they have in common is that of any of them.
    """

    def __init__(self, team: Team, ready: Mapping[int, Mapping[str, Any]]) -> None:
        first = ready[team.present[0]]
        self.clock: str = first["clock"]
        self.kinds: Sequence[BlockKind] = [
            BlockKind(kind["name"], kind["count"], tuple(kind["layers"]), tuple(kind["profiled"]))
            for kind in first["kinds"]
        ]
        self.block_rows: dict[str, str] = first["block_rows"]
        self.learned_positions: int | None = first["learned_positions"]
        cached = [of_rank["most_cached"] for of_rank in ready.values() if of_rank["most_cached"] is not None]
        self.most_cached: int | None = min(cached, default=None)
        self.notices: list[str] = []
        self._team = team
        self._conditions = first["conditions"]
        self._facts = {number: of_rank["facts"] for number, of_rank in ready.items()}
        self._measured = dict.fromkeys(ready, 0)
        self._agreed = False
        for of_rank in ready.values():
            self._note(of_rank["notices"])

    def conditions(self) -> Mapping[str, Any]:
        return self._conditions

    def facts(self) -> Mapping[str, Any]:
        """Those of the first rank, with what each rank did."""
        team = self._team
        facts = dict(self._facts[min(self._facts)])
        if THROTTLING in facts:
            facts[THROTTLING] = sorted({reason for of_rank in self._facts.values() for reason in of_rank[THROTTLING]})
        ranks = [
            {
                "rank": number,
                **{name: team.introductions[number][name] for name in ("host", "device")},
                "points": points,
                "left": team.lost.get(number),
            }
            for number, points in self._measured.items()
        ]
        return {**facts, "ranks": ranks}

    def sample(
        self, points: Iterable[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        """Measure points on all ranks: sentinels on each, the others on any."""
        left = dict.fromkeys(points)
        if not self._agreed:
            for result in self._sentinels([*left], rule, warmup):
                del left[result.point]
                yield result
            self._agreed = True
        while left:
            before = len(self._team.lost)
            for result in self._round(left, rule, warmup):
                if result.point in left:
                    del left[result.point]
                    yield result
            if left and len(self._team.lost) == before:
                raise RuntimeError(f"no rank measured {len(left)} points (the first: {next(iter(left))})")

    def close(self) -> None:
        self._team.close_model()

    def _round(
        self, points: Iterable[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        for number, message in self._team.measured(points, rule, warmup):
            self._learn(number, message)
            yield from map(received_result, message["results"])

    def _learn(self, number: int, message: Mapping[str, Any]) -> None:
        self._measured[number] += len(message["results"])
        if "done" in message:
            self._facts[number] = message["facts"]
            self._note(message["notices"])

    def _sentinels(
        self, points: Sequence[SweepPoint], rule: StoppingRule, warmup: int
    ) -> Iterator[PointSample | PointFailure]:
        """Measure some points on every rank, and leave out ranks that disagree. Yields those of the first one left."""
        tolerance = SENTINEL_TOLERANCES.get(self.clock)
        chosen = sentinels(points)
        if tolerance is None or len(self._team.present) < 2 or len(chosen) == 0:
            return
        results: dict[int, dict[SweepPoint, PointSample | PointFailure]] = {}
        for attempt in range(SENTINEL_ATTEMPTS):
            for number, message in self._team.measured(chosen, rule, warmup, everyone=True):
                self._learn(number, message)
                results.setdefault(number, {}).update({r.point: r for r in map(received_result, message["results"])})
            off = self._disagreeing(results, tolerance)
            if not off:
                break
            if attempt == SENTINEL_ATTEMPTS - 1:
                for number, ratio in off.items():
                    self._team.drop(number, disagreement_text(ratio, tolerance))
        yield from results[self._team.present[0]].values()

    def _disagreeing(
        self, results: Mapping[int, Mapping[SweepPoint, PointSample | PointFailure]], tolerance: float
    ) -> dict[int, float]:
        times_ns = {
            number: {p: pass_time_ns(r) for p, r in results[number].items() if isinstance(r, PointSample)}
            for number in self._team.present
        }
        return disagreeing(times_ns, tolerance)

    def _note(self, notices: Iterable[str]) -> None:
        self.notices += [text for text in dict.fromkeys(notices) if text not in self.notices]


def disagreement_text(ratio: float, tolerance: float) -> str:
    """What is said of a rank whose sentinel points take `ratio` times as long as those of the others."""
    apart = f"{abs(ratio - 1):.1%} {'slower' if ratio > 1 else 'faster'}"
    return f"disagrees: its passes are {apart} than those of the others, more than {tolerance:.0%}; check its clocks"
