"""How many tokens each expert gets, counted from what reaches the experts in real passes."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from llm_profile.errors import is_out_of_memory
from llm_profile.layers.layout import Layout, expert_modules, num_experts
from llm_profile.passes.routing import is_choice
from llm_profile.passes.runner import PassRunner
from llm_profile.points import SweepPoint

TOKENS = (1, 64, 1024)
"""Tokens of a pass that are counted, as far as the sweep goes, beside those of its longest prompt."""


def expert_load(runner: PassRunner, layout: Layout, max_input: int) -> dict[str, Any]:
    """Kind of block -> its experts, experts per token, routing, and tokens per expert of some passes.

    Tokens per expert are over all experts of the profiled blocks of a kind; `idle` is how many experts of a block get
    none, on average. Passes that memory does not suffice for are left out, and so are kinds whose experts are told
    neither who was chosen nor how often: each of them computes all tokens.
    """
    mixtures = set(expert_modules(runner.model))
    kinds = {site.module: site.kind or "" for site in layout.sites if site.module in mixtures}
    found: dict[str, Any] = {}
    for tokens in sorted({*(count for count in TOKENS if count < max_input), max_input} if kinds else ()):
        counts: dict[str, list[torch.Tensor]] = defaultdict(list)
        for module, (per_expert, per_token) in _counts(runner, list(kinds), tokens).items():
            kind = kinds[module]
            counts[kind].append(per_expert)
            about = {"experts": num_experts(module), "experts_per_token": per_token, "routing": runner.routing}
            found.setdefault(kind, {**about, "tokens_per_expert": []})
        for kind, blocks in counts.items():
            found[kind]["tokens_per_expert"].append({"tokens": tokens, **_spread(torch.stack(blocks))})
    runner.forget_masks()
    return found


def _spread(counts: torch.Tensor) -> dict[str, float]:
    """counts: tokens, [blocks, experts]."""
    return {
        "min": int(counts.min()),
        "mean": round(float(counts.double().mean()), 3),
        "max": int(counts.max()),
        "idle": round(float((counts == 0).sum(1).double().mean()), 3),
    }


def _counts(runner: PassRunner, modules: Sequence[nn.Module], tokens: int) -> dict[nn.Module, tuple[torch.Tensor, int]]:
    """What each module is told in a prompt's pass: tokens of each expert, and experts of each token."""
    counted: dict[nn.Module, tuple[torch.Tensor, int]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        told = (_told(value, num_experts(module), tokens) for value in (*args, *kwargs.values()))
        counted.update((module, count) for count in told if count is not None)

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        runner.run(SweepPoint(tokens, 0))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        counted.clear()
    finally:
        for handle in handles:
            handle.remove()
    return counted


def _told(value: Any, experts: int, tokens: int) -> tuple[torch.Tensor, int] | None:
    """Tokens of each expert and experts of each token, if an argument has them: as numbers of experts, or counted."""
    if is_choice(value):
        return torch.bincount(value.flatten().cpu(), minlength=experts)[:experts], value.shape[1]
    if isinstance(value, list) and all(isinstance(entry, int) for entry in value):
        value = torch.tensor(value)
    if isinstance(value, torch.Tensor) and value.shape == (experts,) and not value.is_floating_point():
        return value.cpu(), int(value.sum()) // tokens
    return None
