"""Copies of weights elsewhere in memory.

How long a matrix product takes depends on where its operands lie. Activations move from capture to capture, weights
stay where they were loaded: a run would measure one placement of many, and the next run another. In the full model,
each block's weights lie somewhere else, and what counts is their mean.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from llm_profile.passes.l2 import tensor_bytes

LARGEST_BYTES = 128 * 2**20
"""Weights above this are not copied: they are spread over all of the memory's channels, wherever they lie.

Between processes on an H200, a product with 8 MiB of weights differed by up to 18 %, with 1 GiB by 0.1 %.
"""

MEMORY_SHARE = 0.1
"""Share of the free memory that all copies together may take; none are made if they would take more."""


class WeightCopies:
    """One more copy of a model's weights of up to LARGEST_BYTES each."""

    def __init__(self, model: nn.Module) -> None:
        self._copies = [(p, p.data.clone()) for p in copied(model)]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Passes and captures inside use these weights. Keep this object as long as the graphs that read it."""
        originals = [(p, p.data) for p, _ in self._copies]
        try:
            self._use(self._copies)
            yield
        finally:
            self._use(originals)

    @staticmethod
    def _use(weights: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
        for parameter, data in weights:
            parameter.data = data


def copied(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that copies are made of: plain ones, not those of a quantised type."""
    return [p for p in model.parameters() if type(p) is nn.Parameter and tensor_bytes(p) <= LARGEST_BYTES]


def weight_copies(model: nn.Module, count: int, free_bytes: int) -> list[WeightCopies]:
    """`count` copies, or none where memory is short."""
    if count * sum(map(tensor_bytes, copied(model))) > MEMORY_SHARE * free_bytes:
        return []
    return [WeightCopies(model) for _ in range(count)]
