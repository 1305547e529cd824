"""What cannot be measured, or only with the user's consent, as a UsageError that says what to do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from llm_profile.errors import UsageError, one_line
from llm_profile.models.quantisation_config import method_of
from llm_profile.models.transformers_quantizer import QUANTISATION_ADVICE
from llm_profile.passes.loaded import LoadedModel

NO_SDPA_BACKEND = ("No available kernel", "No viable backend")
"""What torch says where no allowed backend can compute attention: on a GPU, and on a CPU."""


@contextmanager
def first_pass_errors(loaded: LoadedModel, sdpa_backend: str) -> Iterator[None]:
    """Raise UsageError in place of an error of the first passes whose reason is known."""
    try:
        yield
    except (RuntimeError, ImportError, OSError) as error:  # the last two: kernels that are fetched when they run
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
    """Raise UsageError if there are slow rows. slow_path: row -> why it is slow."""
    if slow_path:
        raise UsageError(
            f"--model: rows that would run slow Python in place of a kernel: {slow_rows_text(slow_path)}; install what "
            "is missing, or measure them as they are with --allow-slow-path"
        )


def slow_rows_text(slow_path: Mapping[str, str]) -> str:
    """Slow rows, each with the reason."""
    return ", ".join(f"{row} ({why})" for row, why in slow_path.items())
