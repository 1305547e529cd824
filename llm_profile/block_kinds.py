"""A kind of decoder block: blocks of one structure, which are measured once for all. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockKind:
    """Decoder blocks of the same structure, such as all blocks with a mixture of experts.

    count: how many the full model has. layers: their indices in the full model. profiled: those of `layers` that are
    measured.
    """

    name: str
    count: int
    layers: tuple[int, ...]
    profiled: tuple[int, ...]
