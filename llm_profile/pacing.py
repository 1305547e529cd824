"""How long a GPU idles after a pass of many tokens, so that its clock stays up. Imports no torch."""

from collections.abc import Iterable

LEAST_REST, MOST_REST = 0.5, 2.0
"""Bounds of the idle time after a pass, over the time that the pass took.

Back to back, long prompts draw more power than the card may. Its clock then falls by a fifth (1,460 to 1,700 MHz on an
H200 that has 1,980), and that of the small kernels behind `lm_head` falls first. With a rest of half of each pass it
stayed at 1,965 and more on one H200, and rows differed as much (median 0.4 %) from those with twice the rest as these
did from each other; on another it was 1,950 at times. Three tenths were too little there: 1,905, and rows 1 % slower.
"""

CLOCK_DROP = 0.01
"""A clock this far below the highest that was seen asks for more rest."""

LONGER, SHORTER = 1.3, 0.97
"""By what the rest grows when the clock is down, and shrinks when it is not: quickly, and slowly back."""


class Pacing:
    """Finds the rest that the clock asks for. share: of the time that a pass took; most: the largest share so far."""

    def __init__(self) -> None:
        self.share = self.most = LEAST_REST
        self._top_mhz = 0.0

    def heed(self, clocks_mhz: Iterable[tuple[float | None, bool]]) -> None:
        """Take in the SM clock at each point of a session, None where it is not known, and whether it needs rest.

        The lower quartile counts: how much power a pass draws depends on its length, and a session has many.
        """
        known = [(clock, needs_rest) for clock, needs_rest in clocks_mhz if clock is not None]
        self._top_mhz = max([self._top_mhz, *(clock for clock, _ in known)])
        rested = sorted(clock for clock, needs_rest in known if needs_rest)
        if not rested:
            return
        down = rested[len(rested) // 4] < (1 - CLOCK_DROP) * self._top_mhz
        self.share = min(MOST_REST, self.share * LONGER) if down else max(LEAST_REST, self.share * SHORTER)
        self.most = max(self.most, self.share)
