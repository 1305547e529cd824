"""Errors of a model's own code, which become a UsageError. Errors of this project stay as they are, with a traceback.

The traceback tells them apart: an error is the model's if the innermost code that is either the model's or this
project's is the model's.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_profile.errors import UsageError, is_out_of_memory, type_and_text

MODEL_CODE = ("transformers", "transformers_modules")
"""Packages with the code of models: transformers, and the one into which it copies code of a model's repository."""

THIS_PROJECT = __name__.partition(".")[0]

DISPATCH = "__torch_dispatch__"
"""Name of our functions that torch calls in place of an operator, and that call the operator: its errors pass them."""


def line_of_model_code(error: BaseException) -> str | None:
    """The line of the model's code that failed, `<file>:<line> of transformers`; None for an error of this project.

    Frames of other libraries, such as torch, are skipped. None also where memory ran out: that is nobody's mistake.
    """
    if is_out_of_memory(error):
        return None
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in MODEL_CODE:
            owner = "transformers" if package == "transformers" else "the model's code"
            return f"{Path(frame.f_code.co_filename).name}:{line} of {owner}"
        if package == THIS_PROJECT and frame.f_code.co_name != DISPATCH:
            return None
    return None


@contextmanager
def as_usage_error(model_type: object, advice: str) -> Iterator[None]:
    """While open, an error of the model's code, or for lack of memory, is raised as a UsageError.

    advice: end of its message, what the user should check.
    """
    try:
        yield
    except Exception as error:
        # models raise errors of any type for values that a configuration should not have
        if is_out_of_memory(error):
            raise UsageError(
                f"--model: {model_type} does not fit in memory ({type_and_text(error)}); use fewer blocks "
                "(--num-layers) or shorter lengths (--prefill-max, --decode-max)"
            ) from error
        if (where := line_of_model_code(error)) is None:
            raise
        raise UsageError(f"--model: {model_type} does not run: {type_and_text(error)} ({where}); {advice}") from error
