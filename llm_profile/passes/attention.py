"""`--sdpa-backend`: what may compute scaled dot product attention."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

ALLOWED_BACKENDS: dict[str, list[SDPBackend]] = {
    # Name -> the backends that torch may choose from; `torch` changes nothing. On Hopper torch takes cuDNN where it
    # may, whatever the order it is given, and cuDNN builds a plan at each length's first use (60 ms): `auto` is all
    # but cuDNN.
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
