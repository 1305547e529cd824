"""How many points a profiling session has. Imports no torch."""

SESSION_POINTS = 32
"""Most points of one session: so many make the cost of starting it small."""

FIRST_POINTS = 8
"""Points of the first session, when it is not known yet how long they take."""

SESSION_S = 2.0
"""Longest that a session is meant to take, in seconds: its results arrive only when the next session has ended."""


def points_in_time(points: int, seconds: float) -> int:
    """How many points the next session is to have, when `points` of them took `seconds`."""
    return max(1, min(SESSION_POINTS, int(points * SESSION_S / max(seconds, 1e-9))))
