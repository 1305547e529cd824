"""Rests between long passes, so that the GPU stays below its power limit and its clock does not fall."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llm_profile.points import SweepPoint

FEW_TOKENS = 64
"""Passes of up to so many tokens are limited by memory bandwidth and stay below the power limit: they need no rest."""

REST = 1.0
"""Idle time after each pass of more tokens, as a multiple of the time that the pass took.

Back to back, such passes draw more power than the card may. Its clock then falls by a fifth (1,460 to 1,700 MHz on an
H200 that has 1,980), and that of the small kernels behind `lm_head` falls first. One card stayed at 1,965 and more with
a rest of half of each pass; another fell to 1,950 at times, with three tenths to 1,905 and with 0.15 to 1,770, where
rows took 3 % longer. With rests as long as the pass both stayed at 1,965 and more.
"""


def needs_rest(point: SweepPoint) -> bool:
    """Whether passes of this point can take the GPU to its power limit."""
    return point.batch * point.input_len > FEW_TOKENS


class Pacer:
    """Waits out the rest that earlier passes made necessary before the next ones run."""

    def __init__(self) -> None:
        self._rest_until = 0.0  # time.monotonic

    @contextmanager
    def around(self, rests: bool) -> Iterator[None]:
        """Wrap passes: waits for the end of the last rest before them, and for the device to finish after them.

        rests: whether the device is to rest after these.
        """
        time.sleep(max(0.0, self._rest_until - time.monotonic()))
        started = time.monotonic()
        yield
        torch.cuda.synchronize()
        if rests:
            ended = time.monotonic()
            self._rest_until = ended + REST * (ended - started)
