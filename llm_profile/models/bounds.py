"""Refuses a config.json with absurd sizes before anything is built from it. Imports no torch.

Classes of transformers make lists and modules of any length that a configuration asks for, until the machine's memory
is used up.
"""

import re
from collections.abc import Mapping
from typing import Any

from llm_profile.errors import UsageError, one_line
from llm_profile.json_text import nesting

MOST_BLOCKS = 1_000
"""Most decoder blocks of one stack. The deepest models have about 200."""

MOST_MODULES = 200_000
"""Most modules of a model at full depth. The largest models have a module for each of about 100,000 expert matrices."""

MOST_NESTED = 50
"""Most lists and objects nested one inside the other in a config.json. Those of real models nest up to six."""

NUMBER_OF_BLOCKS = re.compile(r"(^|_)(layers?|blocks?)$")
"""Names of fields with a number of blocks: `num_hidden_layers`, `n_layer`, `encoder_layers`, `num_blocks`."""


def check_bounds(config: Mapping[str, Any]) -> None:
    """Raise UsageError for a config.json with more blocks or deeper nesting than any model has.

    Also for a model_type that is not a string, because looking it up would fail in many places.
    """
    if nesting(config) > MOST_NESTED:
        raise UsageError(
            f"--model: its config.json nests lists or objects more than {MOST_NESTED} deep; fetch or write it again"
        )
    for name, value in config.items():
        if name == "model_type" and not isinstance(value, str | None):
            raise UsageError(
                f"--model: its model_type is {one_line(value, 80)}, and must be a name such as llama; correct its "
                "config.json"
            )
        if isinstance(value, Mapping):
            check_bounds(value)
        elif NUMBER_OF_BLOCKS.search(name) and _is_number(value) and value > MOST_BLOCKS:
            raise UsageError(
                f"--model: its {name} is {value:.6g}, and may be at most {MOST_BLOCKS}; correct its config.json"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
