"""Samplers that end a step of `--axes per-sequence`: the next token of each sequence from its logits."""

import torch
from torch import nn

TEMPERATURE = 0.8
"""Of sampling. Its value makes no difference to the time."""


class GreedySampler(nn.Module):
    """The likeliest token."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """logits: [n, vocabulary]. Returns [n]."""
        return logits.argmax(dim=-1)


class TemperatureSampler(nn.Module):
    """A token drawn by its probability at TEMPERATURE, in float32, as serving engines do.

    The draw is the largest quotient of probability and an exponential variate, which is a draw from the multinomial
    distribution (Gumbel 1954). `torch.multinomial` computes the same but waits for the device.
    """

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """logits: [n, vocabulary]. Returns [n]."""
        shares = (logits.float() / TEMPERATURE).softmax(dim=-1)
        return (shares / torch.empty_like(shares).exponential_()).argmax(dim=-1)


def samplers() -> dict[str, nn.Module]:
    """Row -> the sampler that it is the time of."""
    return {"sampler_greedy": GreedySampler(), "sampler_temperature": TemperatureSampler()}
