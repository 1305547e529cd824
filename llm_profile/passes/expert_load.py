"""How many tokens each expert of a mixture of experts gets, counted from the arguments of experts modules in passes."""

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
"""Prompt lengths at which tokens per expert are counted, if the sweep has longer ones; and its longest prompt."""


def expert_load(runner: PassRunner, layout: Layout, max_input: int) -> dict[str, Any]:
    """Kind of block -> number of experts, experts per token, routing, and tokens per expert at some prompt lengths.

    Tokens per expert (`min`, `mean`, `max`) are over all experts of the profiled blocks of a kind; `idle` is the number
    of experts of a block that get no token, a mean over blocks. Prompts for which memory does not suffice are left out.
    So are kinds of blocks whose experts modules are given neither the numbers of the chosen experts nor counts of
    tokens: each of their experts computes all tokens.
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
    """Statistics of tokens per expert. counts: tokens of each expert, [blocks, experts]."""
    return {
        "min": int(counts.min()),
        "mean": round(float(counts.double().mean()), 3),
        "max": int(counts.max()),
        "idle": round(float((counts == 0).sum(1).double().mean()), 3),
    }


def _counts(runner: PassRunner, modules: Sequence[nn.Module], tokens: int) -> dict[nn.Module, tuple[torch.Tensor, int]]:
    """Experts module -> tokens of each expert, [experts], and number of experts per token, in the pass of a prompt.

    Modules whose arguments do not say that are left out; all are left out if memory runs out.
    """
    counted: dict[nn.Module, tuple[torch.Tensor, int]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        counts = (_counted(value, num_experts(module), tokens) for value in (*args, *kwargs.values()))
        counted.update((module, count) for count in counts if count is not None)

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


def _counted(value: Any, experts: int, tokens: int) -> tuple[torch.Tensor, int] | None:
    """Tokens of each expert, [experts], and number of experts per token, if an argument of an experts module has them.

    The argument may be the numbers of the chosen experts, [tokens, top_k], or tokens per expert, [experts]. Any other
    gives None.
    """
    if is_choice(value):
        return torch.bincount(value.flatten().cpu(), minlength=experts)[:experts], value.shape[1]
    if isinstance(value, list) and all(isinstance(entry, int) for entry in value):
        value = torch.tensor(value)
    if isinstance(value, torch.Tensor) and value.shape == (experts,) and not value.is_floating_point():
        return value.cpu(), int(value.sum()) // tokens
    return None
