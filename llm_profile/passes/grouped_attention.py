"""Attention with grouped heads that copies no keys and values, in place of transformers' function for `sdpa`.

That function copies them where there is an attention mask, since torch's fused kernels take grouped heads only without.
Here the heads of a group are rows of one head (decode steps), or each group is a sequence of its own whose keys are a
view with a stride of 0.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from llm_profile.models.patches import patched

SDPA = "sdpa"

LARGEST_GROUPED_HEAD = 256
"""Largest head that torch's fused kernels take with enable_gqa; transformers has the same limit."""

Attend = Callable[..., tuple[torch.Tensor, Any]]


def grouped(attend: Attend) -> Attend:
    """transformers' function for `sdpa`, `attend`, without its copies. Other calls go to `attend` itself."""

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        """query: [batch, heads, q, dim]; key and value: [batch, groups, kv, dim]; result: [batch, q, heads, dim]."""
        if not would_copy(module, query, key, value, attention_mask, options):
            return attend(module, query, key, value, attention_mask, **options)
        compute = _heads_as_rows if query.shape[2] == 1 else _groups_as_sequences
        return compute(query, key, value, attention_mask, options.get("scaling")), None

    return attention


def would_copy(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: dict[str, Any],
) -> bool:
    """Whether transformers would copy keys and values, in a call that can be computed without."""
    heads, groups = query.shape[1], key.shape[1]
    if getattr(module, "num_key_value_groups", 1) * groups != heads or heads == groups:
        return False
    unusual = any(options.get(name) for name in ("dropout", "softcap", "output_attentions"))
    if unusual or options.get("position_bias") is not None:
        return False
    if mask is None:  # without a mask, enable_gqa needs no copies; a prompt needs one, as it is causal
        return query.shape[2] == 1 and not key.shape[-1] == value.shape[-1] <= LARGEST_GROUPED_HEAD
    return mask.ndim == 4 and mask.shape[1] == 1


def _heads_as_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """One token: the heads of a group are queries of one head, [batch, groups, heads / groups, dim]."""
    batch, heads, _, _ = query.shape
    rows = query.reshape(batch, key.shape[1], heads // key.shape[1], -1)
    out = scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, 1, heads, -1)


def _groups_as_sequences(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Each group of each sequence is a sequence, [batch * groups, heads / groups, q, dim]; keys have a stride of 0."""
    batch, heads, tokens, _ = query.shape
    groups = key.shape[1]
    shape = (batch * groups, heads // groups)
    rows = query.unflatten(1, (groups, -1)).flatten(0, 1)
    keys, values = (kept.flatten(0, 1)[:, None].expand(*shape, -1, -1) for kept in (key, value))
    if mask is not None and mask.shape[0] > 1:
        mask = mask.repeat_interleave(groups, dim=0)
    out = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous()


@contextmanager
def grouped_attention() -> Iterator[None]:
    """While open, the attention interface of transformers gives `grouped` where it would give its own for `sdpa`."""
    original = AttentionInterface.get_interface

    def get_interface(interface: AttentionInterface, *args: Any, **kwargs: Any) -> Any:
        chosen = original(interface, *args, **kwargs)
        return grouped(chosen) if chosen is interface.get(SDPA) else chosen

    with patched(AttentionInterface, "get_interface", get_interface):
        yield
