"""How many points are measured in one profiling session. Imports no torch."""

SESSION_POINTS = 32
"""Most points of one session. With so many, the time to start and end a session hardly counts."""

FIRST_POINTS = 8
"""Points of the first session, before it is known how long a point takes."""

SESSION_S = 2.0
"""Target duration of a session in seconds. It is short because results arrive only when the next session has ended."""


def next_session_points(points: int, seconds: float) -> int:
    """How many points the next session gets, if the latest one took `seconds` for `points`."""
    return max(1, min(SESSION_POINTS, int(points * SESSION_S / max(seconds, 1e-9))))
