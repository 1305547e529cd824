"""A limit on the modules of a model while it is built: some configurations make constructors add ever more of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import register_module_module_registration_hook

from llm_profile.errors import UsageError
from llm_profile.models.bounds import MOST_MODULES


@contextmanager
def bounded_construction() -> Iterator[None]:
    """While open, UsageError is raised as soon as more than MOST_MODULES modules were added to others."""
    made = 0

    def count(*_registered: Any) -> None:
        nonlocal made
        made += 1
        if made > MOST_MODULES:
            raise UsageError(
                f"--model: it has more than {MOST_MODULES:,} modules, which no model has; look at the counts "
                "(of layers, experts, codebooks) in its config.json"
            )

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
