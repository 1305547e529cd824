"""How long a sweep will still take, from the points measured so far and when each was known. Imports no torch.

The time of a point is taken as a fixed part, a part for each token fed and a part for each token in the cache, for each
kind of points its own. The parts are fitted to the times so far, and start from assumed ones (ASSUMED_MS) whose unit
alone is fitted at once. So a kind that was not measured yet is predicted from those that were: by how much slower or
faster than assumed these are.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_profile.points import KINDS, SweepPoint

ASSUMED_MS = dict.fromkeys(KINDS, (14.0, 20 / 2048, 0.2 / 2048)) | {"decode": (12.0, 20 / 2048, 0.2 / 2048)}
"""Kind -> milliseconds of a point, for each token fed, and for each token in the cache. Only their ratios matter, and
these only until points of the kind are measured."""

POINT_NOISE = 2.0
"""Standard deviation of a point's time, relative to that of a mean point."""

PART_SPREAD = 0.3
"""How far a part is taken to be off its assumed one beside the others (standard deviation, relative)."""

SAME_TIME = 0.1
"""Results that come within this share of a mean point's time belong to one profiling session, whose time they share."""

LATER_WEIGHT = 64
"""Points of an adaptive grid's later rounds are taken to cost what those of its first do, until so many are known."""

PARTS = 3

FloatArray = NDArray[np.float64]


def assumed_parts(point: SweepPoint) -> FloatArray:
    """Assumed milliseconds of the parts of a point's time. Shape [KINDS x PARTS]; zero for other kinds than its own."""
    parts = np.zeros(len(KINDS) * PARTS)
    first = KINDS.index(point.kind) * PARTS
    parts[first : first + PARTS] = np.multiply(ASSUMED_MS[point.kind], (1, point.tokens, point.history))
    return parts


class SweepTimeLeft:
    """The time left of a sweep.

    asked: the points that are known to be measured: all of them, or the first round of an adaptive grid. most: how many
    are measured in all, at most. started_s: when the first one began, in seconds of any clock.
    """

    def __init__(self, asked: Sequence[SweepPoint], most: int, started_s: float) -> None:
        self._asked = set(asked)
        self._waiting = len(self._asked)
        self._done: set[SweepPoint] = set()
        self._later = max(0, most - len(asked))
        self._left_ms = sum(map(assumed_parts, asked), np.zeros(len(KINDS) * PARTS))
        self._mean_asked_ms = self._left_ms / max(1, len(asked))
        self._known_later_ms = np.zeros_like(self._left_ms)
        self._known_later = 0
        self._last_s = self._started_s = started_s
        self._results = 0
        self._session = _Session()
        self._fit = _Fit()
        self._told: tuple[float, float] | None = None

    def result(self, point: SweepPoint, now_s: float) -> None:
        """A result came, of a point that was asked, of a later round, or of one that was measured again."""
        took_s, self._last_s = now_s - self._last_s, now_s
        self._results += 1
        mean_s = (now_s - self._started_s) / self._results
        if self._session.points and took_s > SAME_TIME * mean_s:
            self._fit.add(self._session)
            self._session = _Session()
        parts_ms = assumed_parts(point)
        self._session.add(parts_ms, took_s)
        if point not in self._done:
            self._done.add(point)
            self._count(point, parts_ms)
        left_s = self._predict()
        self._told = None if left_s is None else (left_s, now_s)

    def left_s(self, now_s: float) -> float | None:
        """Seconds left; None until the second profiling session, since the first one has what is done once, and when
        only points that are measured again are left."""
        told = self._told  # one value, as another thread may ask
        return None if told is None else max(0.0, told[0] - (now_s - told[1]))

    def _count(self, point: SweepPoint, parts_ms: FloatArray) -> None:
        if point in self._asked:
            self._waiting -= 1
            self._left_ms = self._left_ms - parts_ms
        else:
            self._later = max(0, self._later - 1)
            self._known_later_ms = self._known_later_ms + parts_ms
            self._known_later += 1

    def _predict(self) -> float | None:
        if not self._waiting and not self._later:
            return None
        s_per_assumed_ms = self._fit.solve(self._session)
        if s_per_assumed_ms is None:
            return None
        later_ms = LATER_WEIGHT * self._mean_asked_ms + self._known_later_ms
        later_ms = later_ms * (self._later / (LATER_WEIGHT + self._known_later))
        return float((self._left_ms + later_ms) @ s_per_assumed_ms)


class _Session:
    """Points whose results came together, and the time that they took together."""

    def __init__(self) -> None:
        self.points = 0
        self.seconds = 0.0
        self.parts_ms = np.zeros(len(KINDS) * PARTS)

    def add(self, parts_ms: FloatArray, seconds: float) -> None:
        self.points += 1
        self.seconds += seconds
        self.parts_ms = self.parts_ms + parts_ms


class _Fit:
    """Least squares over sessions but the first, drawn towards the assumed parts (ridge regression)."""

    def __init__(self) -> None:
        size = len(KINDS) * PARTS
        self._first: _Session | None = None
        self._points = 0
        self._seconds = 0.0
        self._assumed_ms = 0.0
        self._products = np.zeros((size, size))
        self._times = np.zeros(size)

    def add(self, session: _Session) -> None:
        if self._first is None:
            self._first = session
            return
        self._points += session.points
        self._seconds += session.seconds
        self._assumed_ms += float(session.parts_ms.sum())
        self._products += np.outer(session.parts_ms, session.parts_ms) / session.points
        self._times += session.parts_ms * (session.seconds / session.points)

    def solve(self, under_way: _Session) -> FloatArray | None:
        """Seconds for each assumed millisecond of each part, shape [KINDS x PARTS]; None of the first session alone.

        under_way: a session that may still get results; it only counts where there is none between it and the first.
        """
        if not self._points:
            if self._first is None:
                return None
            return np.full(len(self._times), under_way.seconds / max(float(under_way.parts_ms.sum()), 1e-9))
        unit = self._seconds / self._assumed_ms
        if unit <= 0:
            return np.zeros_like(self._times)
        noise = (POINT_NOISE * self._assumed_ms / self._points) ** 2
        drawn = 1 / PART_SPREAD**2
        left = self._products / noise + drawn * np.eye(len(self._times))
        relative = np.linalg.solve(left, self._times / unit / noise + drawn)
        return unit * np.maximum(relative, 0.0)
