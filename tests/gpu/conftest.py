"""GPU tests run one at a time, and each file leaves the device's memory as empty as it can."""

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
