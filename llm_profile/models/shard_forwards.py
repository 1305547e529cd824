"""Forwards of layers that have a part of their inputs or outputs, without the other ranks."""

from functools import wraps
from math import prod
from typing import Any

import torch
from torch import nn


def split_input(module: nn.Linear) -> None:
    """Let a layer take the first `in_features` of each input: a view, so no kernel."""

    def first_part(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][..., : module.in_features], *args[1:])

    module.register_forward_pre_hook(first_part)


def gather_output(module: nn.Module, width: int) -> None:
    """Let a layer return numbers of its full width, in place of a gather over ranks."""
    module.register_forward_hook(_Gathered(width))


class _Gathered:
    """Hook after a forward: replaces its output [..., part] by random numbers [..., width] that are there already.

    They are made again only for longer passes. Earlier ones are kept, since a captured graph may read them.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._values: list[torch.Tensor] = []

    def __call__(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        shape = (*output.shape[:-1], self._width)
        if not self._values or self._values[-1].numel() < prod(shape):
            self._values.append(output.new_empty(prod(shape)))
            # a graph would record the kernel that fills them, and run it in each of its passes
            if not (output.is_cuda and torch.cuda.is_current_stream_capturing()):
                self._values[-1].normal_()
        return self._values[-1][: prod(shape)].view(shape)


def mask_vocabulary(module: nn.Embedding) -> None:
    """Let an embedding of the first ids give zeros for the others, as engines do before they add up all ranks'."""
    rows = module.num_embeddings
    if module.padding_idx is not None and module.padding_idx >= rows:
        module.padding_idx = None
    embed = module.forward

    @wraps(embed)
    def forward(input: torch.Tensor) -> torch.Tensor:
        elsewhere = input >= rows
        return embed(input.masked_fill(elsewhere, 0)).masked_fill_(elsewhere.unsqueeze(-1), 0)

    module.forward = forward  # type: ignore[method-assign]
