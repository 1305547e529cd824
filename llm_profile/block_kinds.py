"""Decoder blocks of a model that are alike. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockKind:
    """Decoder blocks that are alike. count: in the full model. layers: their original indices. profiled: kept ones."""

    name: str
    count: int
    layers: tuple[int, ...]
    profiled: tuple[int, ...]
