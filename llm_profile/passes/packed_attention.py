"""Attention of packed passes: the ways of computing it, and which of them a composition takes.

A way gets queries [tokens, heads, dim] and all that is in the cache, keys and values [total, groups, dim], as views.
It returns [tokens, heads, dim]. All of them compute the same: each new token sees those of its sequence up to itself,
at most as many as the window has.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from llm_profile.passes.packed_layout import PackedLayout


def _varlen_kernel() -> Callable[..., Any] | None:
    """torch's attention for sequences of any lengths; None for a torch before 2.10, which has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


VARLEN = _varlen_kernel()

GROUPED = {"enable_gqa": True} if VARLEN and "enable_gqa" in inspect.signature(VARLEN).parameters else {}
"""torch 2.11 takes grouped heads as they are and does not know the argument; later releases ask for it."""

LARGEST_VARLEN_HEAD = 256
"""Largest head of torch's variable-length kernel (FlashAttention-2)."""

LARGEST_EVEN = 2**31
"""Numbers in the keys of a batch from which on kernels may count beyond 32 bits, so that only `varlen` takes it."""

FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""With `--sdpa-backend auto`. A decode step of 64 sequences at 1,024 tokens takes 68 us by cuDNN and 106 by flash on an
H200 (32 query and 8 KV heads of 128). The plan that cuDNN makes for each shape matters less than in the flat sweep, as
there are few compositions."""


def choose_way(layout: PackedLayout, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> str:
    """The fastest of WAYS that is exact here.

    Decode steps of one history are a batch without padding. SDPA takes them at about half the time of the
    variable-length kernel (H200, 64 sequences at 1,024 tokens: cuDNN 68 us, varlen 121).
    """
    if layout.is_even_decode and key.numel() < LARGEST_EVEN:
        return "even"
    same = key.shape[-1] == value.shape[-1] <= LARGEST_VARLEN_HEAD and key.shape[-1] % 8 == 0
    half = query.dtype in (torch.float16, torch.bfloat16)
    return "varlen" if VARLEN and query.is_cuda and half and same else "padded"


def _even(
    layout: PackedLayout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    first = max(0, layout.longest_kv - window) if window else 0
    keys, values = (
        kept.unflatten(0, (layout.sequences, -1))[:, first:].transpose(1, 2) for kept in (key, value)
    )  # [n, groups, kv, dim]
    grouped = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(query[:, :, None], keys, values, scale=scale, enable_gqa=grouped)
    return out.squeeze(2)


def _varlen(
    layout: PackedLayout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    before = -1 if window is None or window >= layout.longest_kv else window - 1
    # A token alone sees all that is before it, so that needs no window. The kernel is faster without one.
    after = -1 if layout.longest_q == 1 and before == -1 else 0
    ends = (layout.starts_q, layout.starts_kv, layout.longest_q, layout.longest_kv)
    assert VARLEN is not None
    out: torch.Tensor = VARLEN(query, key, value, *ends, scale=scale, window_size=(before, after), **GROUPED)
    return out


def _padded(
    layout: PackedLayout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    padding = layout.padded
    queries, keys, values = (
        kept[places].transpose(1, 2)
        for kept, places in ((query, padding.queries), (key, padding.keys), (value, padding.keys))
    )  # [n, heads, longest, dim]
    grouped = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(
        queries, keys, values, attn_mask=padding.mask(window), scale=scale, enable_gqa=grouped
    )
    return out.transpose(1, 2).flatten(0, 1)[padding.kept]


WAYS: dict[str, Callable[..., torch.Tensor]] = {"even": _even, "varlen": _varlen, "padded": _padded}
"""even: SDPA of a batch of decode steps whose histories have one length. varlen: torch's kernel for sequences of any
lengths. padded: SDPA of all sequences copied and filled up to the longest, which no serving engine does."""


def backends_of(way: str, sdpa_backend: str, device: torch.device) -> AbstractContextManager[None]:
    """A context in which torch may use the backends for this way. sdpa_backend: as of `--sdpa-backend`."""
    if way == "even" and sdpa_backend == "auto" and device.type == "cuda":
        return sdpa_kernel(FASTEST_FIRST, set_priority=True)
    return nullcontext()
