"""How the passes of a point are run on a GPU: how many at first, from how many graphs, and with how much rest."""

from dataclasses import dataclass

from llm_profile.sweep import SweepPoint

FEW_TOKENS = 64
"""Passes of no more tokens than this wait for memory, and draw less power than the card may."""

REST = 0.5
"""Idle time after each pass of more tokens over the time that it took.

Back to back, such passes draw more power than the card may. Its clock then falls by a fifth (1,460 to 1,700
MHz on an H200 that has 1,980), and that of the small kernels behind `lm_head` falls first. With a rest of half of each
pass it stayed at 1,965 and more; rows differed as much (median 0.4 %) from those with twice the rest as these did from
each other.
"""


@dataclass(frozen=True)
class Regime:
    """One way of running a point's passes.

    graphs: captures that share its replays, each with activations and weights in device memory of their own.
    first_passes: how many run before the stopping rule is asked, if it allows as many. rest: idle time after each over
    the time that it took; 0: back to back.

    How long a kernel takes depends on where its tensors lie. In an H200, 16 graphs of one decode pass differed by 2 %
    (standard deviation; median kernel below 5 us) to 9 %, the same way in each round of replays. Between two processes,
    with the same weights in all graphs, 98.5 % of prefill rows agreed within 5 % or 100 ns, whether of 4 graphs or of
    8; with weights of their own, 99.9 %. Kernels of longer passes depend on it less, and vary less from pass to pass.
    Of 100 passes over four graphs at 48 random lengths in each phase (Llama-3.1-8B), taken twice, rows of

    * ten decode passes of four graphs were 0.4 % (median; 99th percentile 3.6 %) off those of all 100, and 99.5 % of
      them within 5 % or 100 ns of those of the other time; of one graph 0.9 % (7.8 %);
    * eight prefill passes of two graphs 0.3 % (2.6 %), and 99.8 %.
    """

    graphs: int
    first_passes: int
    rest: float


FEW = Regime(graphs=4, first_passes=10, rest=0.0)
MANY = Regime(graphs=2, first_passes=8, rest=REST)


def regime_of(point: SweepPoint) -> Regime:
    """Which one a point's passes take, by the tokens that they compute."""
    return FEW if point.batch * point.input_len <= FEW_TOKENS else MANY
