"""Idle time after long passes, so that the GPU stays below its power limit and its clock does not fall."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llm_profile.points import SweepPoint

FEW_TOKENS = 64
"""Passes of at most so many tokens are limited by memory bandwidth and stay below the power limit without rests."""

REST = 1.0
"""Idle time after each pass of more tokens than that, as a multiple of the time that the pass took.

Back to back, such passes draw more power than the card's limit, and its clock falls by a fifth (1,460 to 1,700 MHz on
an H200 whose maximum is 1,980). The small kernels after `lm_head` slow down first. With rests of 0.5 of each pass, one
H200 stayed at 1,965 MHz or more, and another fell to 1,950 at times. The second fell to 1,905 with rests of 0.3, and to
1,770 with 0.15, where rows took 3 % longer. With rests as long as the pass, both stayed at 1,965 MHz or more.
"""


def needs_rest(point: SweepPoint) -> bool:
    """Whether the GPU has to rest after each pass of this point, since its passes can reach the power limit."""
    return point.tokens > FEW_TOKENS


class Pacer:
    """Delays passes until the rest after the pass before them is over."""

    def __init__(self) -> None:
        self._rest_until = 0.0  # time.monotonic

    @contextmanager
    def around(self, rests: bool) -> Iterator[None]:
        """Context of one pass or several: waits for the end of the last rest first, and for the device at the end.

        rests: whether a rest has to follow, REST times as long as the passes took.
        """
        time.sleep(max(0.0, self._rest_until - time.monotonic()))
        started = time.monotonic()
        yield
        torch.cuda.synchronize()
        if rests:
            ended = time.monotonic()
            self._rest_until = ended + REST * (ended - started)
