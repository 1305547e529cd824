"""UsageErrors for models that cannot be measured, or only with `--allow-slow-path`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from llm_profile.errors import UsageError, one_line
from llm_profile.models.quantisation_config import method_of
from llm_profile.models.transformers_quantizer import QUANTISATION_ADVICE
from llm_profile.passes.loaded import LoadedModel

NO_SDPA_BACKEND = ("No available kernel", "No viable backend")
"""Parts of torch's error messages if no allowed SDPA backend can compute attention: on a GPU, and on a CPU."""


@contextmanager
def first_pass_errors(loaded: LoadedModel, sdpa_backend: str) -> Iterator[None]:
    """Context of the first passes. Errors whose reason is known are raised as a UsageError that says what to do."""
    try:
        yield
    # ImportError and OSError come from packages that fetch their kernels when they first run.
    except (RuntimeError, ImportError, OSError) as error:
        if loaded.quantisation is not None:
            method = method_of(loaded.quantisation)
            raise UsageError(
                f"--model: its {method} weights do not run here: {one_line(error)}; {QUANTISATION_ADVICE}"
            ) from error
        if any(said in str(error) for said in NO_SDPA_BACKEND):
            raise UsageError(
                f"--sdpa-backend {sdpa_backend}: it cannot run this model's attention in "
                f"{loaded.dtype_name}; use auto or torch"
            ) from error
        raise


def refuse_slow_path(slow_path: Mapping[str, str]) -> None:
    """Raise UsageError if any row would run slow Python. slow_path: row -> why it does."""
    if slow_path:
        raise UsageError(
            f"--model: some of its layers would run slow Python instead of a kernel: {rows_with_reasons(slow_path)}; "
            "install what is missing, or measure them as they are with --allow-slow-path"
        )


def rows_with_reasons(reasons: Mapping[str, str]) -> str:
    """`row (reason)` of each row, separated by commas."""
    return ", ".join(f"{row} ({why})" for row, why in reasons.items())
