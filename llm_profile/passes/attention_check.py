"""Which attention of a model copies no heads with `--kernels fused`, and whether that computes the same."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from llm_profile.layers.layout import Layout
from llm_profile.layers.probe import running_modules
from llm_profile.layers.roles import Call
from llm_profile.models.patches import patched
from llm_profile.passes.call_sites import copied
from llm_profile.passes.compiling import agree
from llm_profile.passes.grouped_attention import SDPA, grouped
from llm_profile.points import SweepPoint

ATTN = "attn"
OWN = "the model's code computes it by itself"
EAGER_ATTENTION = "eager attention; --attn-implementation sdpa has kernels for it, where the model allows it"
DIFFERS = "grouped heads fail or compute something else"


def attention_not_fused(
    model: nn.Module, run: Callable[[SweepPoint], Any], point_pairs: Iterable[Sequence[SweepPoint]], layout: Layout
) -> dict[str, str]:
    """Rows of attention that keeps the model's kernels, each with the reason. run: makes a pass of `model`."""
    eager: list[bool] = []
    callers: set[nn.Module] = set()
    calls: dict[Any, tuple[Callable[..., Any], Call]] = {}
    original = AttentionInterface.get_interface

    def get_interface(interface: AttentionInterface, name: Any, default: Any, *rest: Any) -> Any:
        chosen = original(interface, name, default, *rest)
        eager.append(chosen is default)
        callers.update(running[-1].modules())  # its projections are no attention of their own

        def attend(*args: Any, **kwargs: Any) -> Any:
            if chosen is interface.get(SDPA) and len(args) >= 4:
                calls.setdefault(tuple(t.shape for t in args[1:4]), (chosen, copied(Call(args, kwargs))))
            return chosen(*args, **kwargs)

        return attend

    with running_modules(model) as running, patched(AttentionInterface, "get_interface", get_interface):
        for points in point_pairs:
            run(points[-1])
    own = [site.row for site in layout.sites if site.kind and site.row.rpartition(".")[2] == ATTN]
    found = {site.row: OWN for site in layout.sites if site.row in own and site.module not in callers}
    if any(eager):
        found[ATTN] = EAGER_ATTENTION
    elif not all(_agrees(*call) for call in calls.values()):
        found[ATTN] = DIFFERS
    return found


def _agrees(attend: Callable[..., Any], call: Call) -> bool:
    """Whether `grouped` computes what `attend` does, with a causal mask, where a mask makes a difference."""
    module, query, key, value, *_ = call.args
    options = {name: option for name, option in call.kwargs.items() if name != "attention_mask"}
    offset = key.shape[2] - query.shape[2]
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(offset)[None, None]
    try:
        wanted = attend(module, query, key, value, mask, **options)[0]
    except RuntimeError:  # no allowed backend takes masks, so no pass will have one
        return True
    try:
        return agree(wanted, grouped(attend)(module, query, key, value, mask, **options)[0])
    except RuntimeError:  # no allowed backend takes keys with a stride of 0
        return False
