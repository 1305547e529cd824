"""Errors of a model's own code. The user is told of them in a line; those of this project show as tracebacks.

Which of the two an error is, its traceback says: it is the model's where the model's code called what failed.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_profile.errors import UsageError, is_out_of_memory, typed_line

MODEL_CODE = ("transformers", "transformers_modules")
"""Packages of the code of models: transformers, and what it makes of the code of a model's repository."""

OURS = __name__.partition(".")[0]

GO_BETWEEN = "__torch_dispatch__"
"""Functions of ours between a call of an operator and the operator: they fail where it does."""


def place(error: BaseException) -> str | None:
    """Where the model's code failed, `<file>:<line> of transformers`; None for an error of this project.

    Libraries below say nothing of whose error it is, nor does memory that ran out.
    """
    if is_out_of_memory(error):
        return None
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in MODEL_CODE:
            owner = "transformers" if package == "transformers" else "the model's code"
            return f"{Path(frame.f_code.co_filename).name}:{line} of {owner}"
        if package == OURS and frame.f_code.co_name != GO_BETWEEN:
            return None
    return None


@contextmanager
def told_in_a_line(model_type: object, advice: str) -> Iterator[None]:
    """Raise UsageError in place of an error of the model's code. advice: what the user should look at."""
    try:
        yield
    except Exception as error:
        # models raise errors of any type for values that a configuration should not have
        if is_out_of_memory(error):
            raise UsageError(
                f"--model: {model_type} does not fit in memory ({typed_line(error)}); use fewer blocks (--num-layers, "
                "--scaling-num-layers) or shorter lengths (--prefill-max, --decode-max)"
            ) from error
        if (where := place(error)) is None:
            raise
        raise UsageError(f"--model: {model_type} does not run: {typed_line(error)} ({where}); {advice}") from error
