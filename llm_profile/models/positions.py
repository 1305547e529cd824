"""How many tokens a model has positions for."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from llm_profile.models.config_names import POSITION_FIELDS

POSITION_NAME = re.compile(r"pos(ition|_)", re.IGNORECASE)
"""What says of a tensor that is no weight, or of its module, that it is a table of positions."""

POSITIONS_WITHOUT_TABLE: dict[str, Callable[[Any], int | None]] = {
    # type -> most tokens, where the length of a table does not say it
    "mpt": lambda config: int(config.max_seq_len),  # each pass makes biases of so many distances
    "prophetnet": lambda config: config.max_position_embeddings - config.pad_token_id - 2,  # it looks up one ahead
    "reformer": lambda config: (  # prompts are padded to whole chunks
        config.max_position_embeddings
        // (chunk := math.lcm(config.local_attn_chunk_length, config.lsh_attn_chunk_length))
        * chunk
    ),
    "xglm": lambda config: None,  # its table grows
}


def learned_positions(model: nn.Module, fired: Iterable[nn.Module]) -> int | None:
    """Most tokens, with those in the cache, that a model has positions for; None where positions do not end.

    They end where a table of so many positions as the configuration declares is looked up: the weights of an embedding
    that ran beside the one of tokens, or a tensor that is no weight. Rotary models have no table. fired: what ran.
    """
    config: Any = model.config
    if config.model_type in POSITIONS_WITHOUT_TABLE:
        return POSITIONS_WITHOUT_TABLE[config.model_type](config)
    text_config = config.get_text_config(decoder=True)
    declared = next((n for name in POSITION_FIELDS if (n := getattr(text_config, name, None))), None)
    lengths = [len(table) for module in fired for table in _position_tables(module, text_config.vocab_size)]
    if declared and any(declared <= length <= declared + 8 for length in lengths):  # OPT keeps 2 rows in reserve
        return int(declared)
    return None


def _position_tables(module: nn.Module, vocab_size: int) -> list[torch.Tensor]:
    """Tensors of a module that could be tables of positions, [positions, channels]."""
    if isinstance(module, nn.Embedding):
        return [module.weight] if module.num_embeddings != vocab_size else []
    tensors = {**module._buffers, **vars(module)}
    named = [t for name, t in tensors.items() if POSITION_NAME.search(f"{type(module).__name__}.{name}")]
    return [t for t in named if isinstance(t, torch.Tensor) and t.ndim == 2 and t.is_floating_point()]
