"""Who chooses the experts of a token: the model's router, or a prepared choice in place of the router's.

With random weights the router's choice means nothing, and how tokens are spread over experts decides the time.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from llm_profile.layers.layout import expert_modules, num_experts

ASSIGNMENT = "_llm_profile_assignment"
"""Attribute of an experts module under which its prepared choice is kept, on the module's device."""


class ExpertRouting:
    """Replaces the router's choice in every experts module that is given one as an argument.

    routing: one of request.ROUTINGS; `model` replaces nothing. max_tokens: most tokens of one pass, all sequences
    together. replaced: experts modules of which a choice was replaced so far.
    """

    def __init__(self, model: nn.Module, routing: str, max_tokens: int) -> None:
        self.routing = routing
        self.replaced: set[nn.Module] = set()
        self._model = model
        self._max_tokens = max_tokens
        self._hooks = ExitStack()
        self._tables = ExitStack()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Hook the experts modules."""
        with self._tables, self._hooks:
            if self.routing != "model":
                for module in expert_modules(self._model):
                    self._hooks.callback(module.register_forward_pre_hook(self._route, with_kwargs=True).remove)
            yield

    def settle(self, blocks: Iterable[nn.Module]) -> None:
        """Leave all routing to the model if a block has experts and none of them was given a choice to replace.

        Call it after a pass. All routing, because a table has one condition that says who chooses. A block may have
        further experts that every token uses; those are given no choice.
        """
        experts = set(expert_modules(self._model))
        of_blocks = [experts.intersection(block.modules()) for block in blocks]
        if any(of_block and not of_block & self.replaced for of_block in of_blocks):
            self.routing = "model"
            self._hooks.close()

    def _route(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Replace the router's choice, a [tokens, top_k] tensor of expert numbers, by a prepared one."""

        def replaced(value: Any) -> Any:
            return self._assignment(module, value) if is_choice(value) else value

        return tuple(replaced(a) for a in args), {k: replaced(v) for k, v in kwargs.items()}

    def _assignment(self, module: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        self.replaced.add(module)
        tokens, top_k = chosen.shape
        table = module.__dict__.get(ASSIGNMENT)
        if table is None or table.shape[0] < tokens:
            longest = max(tokens, self._max_tokens)
            table = expert_assignment(self.routing, longest, top_k, num_experts(module)).to(chosen)
            module.__dict__[ASSIGNMENT] = table
            self._tables.callback(module.__dict__.pop, ASSIGNMENT, None)
        return table[:tokens]


def is_choice(value: Any) -> bool:
    """Whether an argument of an experts module is the router's choice: expert numbers, [tokens, top_k]."""
    return isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point()


def expert_assignment(routing: str, tokens: int, top_k: int, num_experts: int) -> torch.Tensor:
    """Expert numbers [tokens, top_k], distinct within a token.

    balanced: any n tokens in a row give each expert n * top_k / num_experts of them, to within one.
    random: each token draws its experts uniformly.
    """
    if routing == "balanced":
        return (torch.arange(tokens * top_k) % num_experts).view(tokens, top_k)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(tokens, num_experts, generator=generator).argsort(dim=1)[:, :top_k].contiguous()
