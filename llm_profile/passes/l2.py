"""Emptying the GPU's L2 cache before passes, for models whose profiled blocks fit in it and whose full depth does not.

If one block of a small model runs again and again, its weights are read from the L2 cache. In the full model they are
read from memory, since the other blocks have evicted them in the meantime. So the cache is emptied before each pass.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from llm_profile.layers.layout import Layout
from llm_profile.passes.subject import Subject

MARGIN = 2
"""Multiple of the size of the L2 cache. Weights of so many bytes do not stay in the cache from pass to pass, and
writing so many bytes evicts everything else, whatever its replacement policy."""


def weight_bytes(model: nn.Module, layout: Layout) -> tuple[int, int]:
    """Bytes of weights that one pass reads: of the profiled model, and of the full one.

    Counted are all parameters and buffers (some quantised weights are buffers). Embedding tables, of which a pass reads
    a few rows, are counted only if they are the weights of the head as well.
    """
    matrices = {id(p) for m in model.modules() if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    tables = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
    } - matrices
    profiled = sum(tensor_bytes(t) for t in weights(model) if id(t) not in tables)
    full = float(profiled)
    for kind in layout.kinds:
        blocks = [block for block, name in layout.block_kind.items() if name == kind.name]
        of_kind = sum(tensor_bytes(t) for block in blocks for t in weights(block))
        full += of_kind * (kind.count / len(kind.profiled) - 1)
    return profiled, round(full)


def flush_bytes(profiled: int, full: int, l2_bytes: int) -> int:
    """Number of bytes to write before each pass so that its weights are read from memory; 0 if no write is needed.

    profiled, full: as `weight_bytes` returns them. l2_bytes: size of the L2 cache.
    """
    return MARGIN * l2_bytes if profiled < MARGIN * l2_bytes and l2_bytes < full else 0


def l2_flush(subject: Subject) -> Callable[[], None] | None:
    """A function that empties the L2 cache of the subject's device, on the current stream; None if none is needed.

    None is needed if the profiled weights do not stay in the cache, or if those of the full model would stay in it too.
    """
    l2_bytes: int = torch.cuda.get_device_properties(subject.device).L2_cache_size
    size = flush_bytes(*weight_bytes(subject.model, subject.layout), l2_bytes)
    if not size:
        return None
    buffer = torch.empty(size, dtype=torch.uint8, device=subject.device)

    def flush() -> None:
        buffer.zero_()

    return flush


def weights(module: nn.Module) -> Iterator[torch.Tensor]:
    """Each parameter and buffer of a module, once."""
    yield from module.parameters()
    yield from module.buffers()


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's data on the device."""
    return tensor.numel() * tensor.element_size()
