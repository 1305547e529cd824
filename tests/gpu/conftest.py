"""GPU tests are skipped without a GPU; after each file, the device memory that torch still holds is freed."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")


@pytest.fixture(scope="module", autouse=True)
def freed_memory(a_gpu: None) -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()
