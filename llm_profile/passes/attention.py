"""`--sdpa-backend`: which of torch's backends may compute scaled dot product attention."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

ALLOWED_BACKENDS: dict[str, list[SDPBackend]] = {
    # Name -> the backends that torch may choose from; with `torch`, nothing is changed. `auto` leaves out cuDNN: on
    # Hopper GPUs torch prefers cuDNN whenever it is allowed, whatever order it is given, and cuDNN spends 60 ms on a
    # plan at the first use of each length.
    "auto": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "torch": [],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
}


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Let scaled_dot_product_attention use only the named backends."""
    backends = ALLOWED_BACKENDS[name]
    if not backends:
        yield
        return
    with sdpa_kernel(backends):
        yield
