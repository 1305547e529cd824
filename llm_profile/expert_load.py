"""How many tokens each expert gets, counted from what reaches the experts in real passes."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from llm_profile.errors import is_out_of_memory
from llm_profile.layers import Layout, expert_modules, num_experts
from llm_profile.passes import PassRunner, is_choice
from llm_profile.sweep import SweepPoint

TOKENS = (1, 64, 1024)
"""Tokens of a pass that are counted, as far as the sweep goes, beside those of its longest prompt."""


def expert_load(runner: PassRunner, layout: Layout, max_input: int) -> dict[str, Any]:
    """Kind of block -> its experts, experts per token, routing, and tokens per expert of some passes.

    Tokens per expert are over all experts of the profiled blocks of a kind; `idle` is how many experts of a block get
    none, on average. Passes that memory does not suffice for are left out.
    """
    mixtures = set(expert_modules(runner.model))
    kinds = {site.module: site.kind or "" for site in layout.sites if site.module in mixtures}
    found: dict[str, Any] = {}
    for tokens in sorted({*(count for count in TOKENS if count < max_input), max_input} if kinds else ()):
        chosen = _choices(runner, list(kinds), tokens)
        counts: dict[str, list[torch.Tensor]] = defaultdict(list)
        for module, choice in chosen.items():
            experts, kind = num_experts(module), kinds[module]
            counts[kind].append(torch.bincount(choice.flatten(), minlength=experts)[:experts])
            about = {"experts": experts, "experts_per_token": choice.shape[1], "routing": runner.routing}
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


def _choices(runner: PassRunner, modules: Sequence[nn.Module], tokens: int) -> dict[nn.Module, torch.Tensor]:
    """The numbers of the experts of each token, [tokens, top_k], as each module gets them in a prompt's pass."""
    chosen: dict[nn.Module, torch.Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        choice = next((value for value in (*args, *kwargs.values()) if is_choice(value)), None)
        if choice is not None:
            chosen[module] = choice.detach().cpu()

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        runner.run(SweepPoint(tokens, 0))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        chosen.clear()
    finally:
        for handle in handles:
            handle.remove()
    return chosen
