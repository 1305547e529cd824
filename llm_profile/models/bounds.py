"""What no configuration says in earnest, refused before anything is built by it. Imports no torch.

A class of transformers makes lists and modules of whatever length a configuration names, which ends when the memory of
the machine does.
"""

import re
from collections.abc import Mapping
from typing import Any

from llm_profile.errors import UsageError, one_line
from llm_profile.json_text import nesting

MOST_BLOCKS = 1_000
"""Of one stack. The deepest models have some 200."""

MOST_MODULES = 200_000
"""Of a model at full depth. Those with the most have a module for each of some 100,000 matrices of experts."""

MOST_NESTED = 50
"""Lists and objects, one inside the other. Configurations of models nest up to six."""

NUMBER_OF_BLOCKS = re.compile(r"(^|_)(layers?|blocks?)$")
"""Fields that say how many blocks there are: `num_hidden_layers`, `n_layer`, `encoder_layers`, `num_blocks`."""


def check_bounds(config: Mapping[str, Any]) -> None:
    """Raise UsageError for a config.json that names more blocks, or nests deeper, than any model does.

    And for a model type that is no name: what is looked up by it would fail in many places.
    """
    if nesting(config) > MOST_NESTED:
        raise UsageError(
            f"--model: its config.json nests lists or objects more than {MOST_NESTED} deep; fetch or write it again"
        )
    for name, value in config.items():
        if name == "model_type" and not isinstance(value, str | None):
            raise UsageError(
                f"--model: its model_type is {one_line(value, 80)}, and has to be a name such as llama; mend its "
                "config.json"
            )
        if isinstance(value, Mapping):
            check_bounds(value)
        elif NUMBER_OF_BLOCKS.search(name) and _is_number(value) and value > MOST_BLOCKS:
            raise UsageError(
                f"--model: its {name} is {value:.6g}, where {MOST_BLOCKS} blocks are the most; mend its config.json"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
