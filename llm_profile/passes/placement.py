"""Copies of a model's weights at other places in the device's memory.

How long a matrix product takes depends on where in memory its operands lie. Activations lie elsewhere in each captured
graph, but weights stay where they were loaded. With one set of weights, a run would measure one placement, and the next
run another. In the full model, the weights of each block lie elsewhere, and the mean over these placements counts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from llm_profile.passes.l2 import tensor_bytes

LARGEST_BYTES = 128 * 2**20
"""Largest weight matrix that is copied. Larger ones are spread over all memory channels, wherever they lie.

On an H200, the time of a product with 8 MiB of weights differed by up to 18 % between processes, with 1 GiB by 0.1 %.
"""

MEMORY_SHARE = 0.1
"""Largest share of the free device memory for all copies together. If they would take more, none are made."""


class WeightCopies:
    """One copy of those weights of a model that have up to LARGEST_BYTES."""

    def __init__(self, model: nn.Module) -> None:
        self._copies = [(p, p.data.clone()) for p in copied_parameters(model)]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context in which passes and captures use these weights.

        Keep this object as long as the graphs that were captured in the context: they read its memory.
        """
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


def copied_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model that are copied: plain ones of up to LARGEST_BYTES, none of a quantised type."""
    return [p for p in model.parameters() if type(p) is nn.Parameter and tensor_bytes(p) <= LARGEST_BYTES]


def weight_copies(model: nn.Module, count: int, free_bytes: int) -> list[WeightCopies]:
    """`count` copies of a model's weights, or none if they would take more than MEMORY_SHARE of the free memory."""
    if count * sum(map(tensor_bytes, copied_parameters(model))) > MEMORY_SHARE * free_bytes:
        return []
    return [WeightCopies(model) for _ in range(count)]
