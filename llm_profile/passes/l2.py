"""Weights that would stay in the GPU's L2 cache from pass to pass, where those of the full model could not.

One block of a small model, run again and again, is read from the cache; in the full model the other blocks have pushed
it out by its turn. So the cache is emptied between such passes.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from llm_profile.layers.layout import Layout
from llm_profile.passes.subject import Subject

MARGIN = 2
"""Times the size of the cache: weights of so many bytes do not stay in it, and writing as many bytes empties it,
whatever its replacement rule."""


def weight_bytes(model: nn.Module, layout: Layout) -> tuple[int, int]:
    """Bytes of weights that one pass reads: of the profiled model, and of the full one.

    All parameters, and buffers, which some quantised weights are; but embedding tables only where they are the head's
    weights too: a pass reads few of their rows.
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
    """How much to write between passes so that weights are read from memory, as in the full model; 0 for nothing."""
    return MARGIN * l2_bytes if profiled < MARGIN * l2_bytes and l2_bytes < full else 0


def l2_flush(subject: Subject) -> Callable[[], None] | None:
    """A function that empties the L2 cache of the subject's device, on the current stream; None where weights do not
    stay in it."""
    l2_bytes: int = torch.cuda.get_device_properties(subject.device).L2_cache_size
    size = flush_bytes(*weight_bytes(subject.model, subject.layout), l2_bytes)
    if not size:
        return None
    buffer = torch.empty(size, dtype=torch.uint8, device=subject.device)

    def flush() -> None:
        buffer.zero_()

    return flush


def weights(module: nn.Module) -> Iterator[torch.Tensor]:
    """Each parameter and buffer once."""
    yield from module.parameters()
    yield from module.buffers()


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's data on the device."""
    return tensor.numel() * tensor.element_size()
