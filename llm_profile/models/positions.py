"""How many positions a model has: the most tokens, cached ones included, that it can process."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from llm_profile.models.config_names import POSITION_FIELDS

POSITION_NAME = re.compile(r"pos(ition|_)", re.IGNORECASE)
"""In the name of a tensor that is no parameter, or of its module's class: the tensor may be a table of positions."""

POSITIONS_WITHOUT_TABLE: dict[str, Callable[[Any], int | None]] = {
    # type -> most tokens, for types where it is not the length of a table; None for no limit
    "mpt": lambda config: int(config.max_seq_len),  # each pass computes attention biases for so many distances
    "prophetnet": lambda config: config.max_position_embeddings - config.pad_token_id - 2,  # looks up the next position
    "reformer": lambda config: (  # pads prompts to whole chunks
        config.max_position_embeddings
        // (chunk := math.lcm(config.local_attn_chunk_length, config.lsh_attn_chunk_length))
        * chunk
    ),
    "xglm": lambda config: None,  # makes its table longer when needed
}


def learned_positions(model: nn.Module, fired: Iterable[nn.Module]) -> int | None:
    """Most tokens, cached ones included, that a model has positions for; None for no limit.

    fired: modules that ran in a pass. There is a limit if one of them has a table with as many positions as the
    configuration declares: an embedding that is not the one of tokens, or a tensor that is no parameter. Models with
    rotary positions have no table.
    """
    config: Any = model.config
    if config.model_type in POSITIONS_WITHOUT_TABLE:
        return POSITIONS_WITHOUT_TABLE[config.model_type](config)
    text_config = config.get_text_config(decoder=True)
    declared = next((n for name in POSITION_FIELDS if (n := getattr(text_config, name, None))), None)
    lengths = [len(table) for module in fired for table in _position_tables(module, text_config.vocab_size)]
    if declared and any(declared <= length <= declared + 8 for length in lengths):  # OPT's table has 2 rows more
        return int(declared)
    return None


def _position_tables(module: nn.Module, vocab_size: int) -> list[torch.Tensor]:
    """Tensors of a module that may be tables of positions, [positions, channels]."""
    if isinstance(module, nn.Embedding):
        return [module.weight] if module.num_embeddings != vocab_size else []
    tensors = {**module._buffers, **vars(module)}
    named = [t for name, t in tensors.items() if POSITION_NAME.search(f"{type(module).__name__}.{name}")]
    return [t for t in named if isinstance(t, torch.Tensor) and t.ndim == 2 and t.is_floating_point()]
