"""`--routing`: the experts of each token are chosen by the model's router, or by a table that replaces its choice.

How long experts take depends on how many tokens each of them gets. With random weights, a router's choice is arbitrary.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from llm_profile.layers.layout import expert_modules, num_experts

ASSIGNMENT = "_llm_profile_assignment"
"""Attribute of an experts module: expert numbers [tokens, top_k] on its device, which replace the router's."""


class ExpertRouting:
    """Replaces the router's choice in every experts module that gets it as an argument.

    routing: one of request.ROUTINGS; with `model` nothing is replaced. max_tokens: most tokens of one pass, all
    sequences together. replaced: experts modules in which a choice was replaced so far.
    """

    def __init__(self, model: nn.Module, routing: str, max_tokens: int) -> None:
        self.routing = routing
        self.replaced: set[nn.Module] = set()
        self._model = model
        self._max_tokens = max_tokens
        self._hooks = ExitStack()
        self._tables = ExitStack()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hook the experts modules, until the context ends."""
        with self._tables, self._hooks:
            if self.routing != "model":
                for module in expert_modules(self._model):
                    self._hooks.callback(module.register_forward_pre_hook(self._route, with_kwargs=True).remove)
            yield

    def leave_to_router_if_unused(self, blocks: Iterable[nn.Module]) -> None:
        """Let the router choose in all blocks if there is a block with experts of which no choice was replaced.

        Call it after a pass. It applies to all blocks because `routing` is one condition of the whole table. A block
        may also have experts that every token uses, whose modules get no choice; these do not count.
        """
        experts = set(expert_modules(self._model))
        of_blocks = [experts.intersection(block.modules()) for block in blocks]
        if any(of_block and not of_block & self.replaced for of_block in of_blocks):
            self.routing = "model"
            self._hooks.close()

    def _route(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Hook before a forward: replace the router's choice among its arguments by the one of the table."""

        def replaced(value: Any) -> Any:
            return self._assignment(module, value) if is_choice(value) else value

        return tuple(replaced(a) for a in args), {k: replaced(v) for k, v in kwargs.items()}

    def _assignment(self, module: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        """The choice that replaces `chosen`, of the same shape [tokens, top_k]."""
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
    """Whether an argument of an experts module is the router's choice: whole numbers of experts, [tokens, top_k]."""
    return isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point()


def expert_assignment(routing: str, tokens: int, top_k: int, num_experts: int) -> torch.Tensor:
    """Numbers of experts for each token, [tokens, top_k], distinct within a token.

    routing: `balanced`: of any n successive tokens, each expert gets n * top_k / num_experts, to within one.
    `random`: the experts of each token are drawn uniformly.
    """
    if routing == "balanced":
        return (torch.arange(tokens * top_k) % num_experts).view(tokens, top_k)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(tokens, num_experts, generator=generator).argsort(dim=1)[:, :top_k].contiguous()
