"""The arguments of a pass: random token ids, positions, and what models of some types need in addition."""

from typing import Any

import torch
from torch import nn

from llm_profile.errors import check_at_least_one
from llm_profile.models.transformers_names import adds_past, takes
from llm_profile.points import SweepPoint

OWN_POSITIONS = frozenset({"reformer"})
"""Model types whose forward has a `position_ids` argument but fails if it is given; it makes its own positions."""

WHOLE_SEQUENCE = frozenset({"cpmant"})
"""Model types whose decode steps are given the ids of all tokens so far, although there is a cache; the cache also
holds tokens that the model adds itself."""

PARALLEL_CODES = frozenset({"musicgen_decoder", "musicgen_melody_decoder"})
"""Model types that need one sequence of token ids for each of their codebooks."""

NEEDS_MASK = frozenset({"git"})
"""Model types that need an attention mask. It has ones only, since no token is padding."""


class PassInputs:
    """Makes the arguments of a model's forward, except the cache. Tensors are made once, and a pass gets views of them.

    max_input: most tokens of a pass, per sequence. max_total: the same with the tokens in the cache. batch: sequences
    of every pass. takes_positions, takes_logits_to_keep: whether the model's code takes `position_ids` and
    `logits_to_keep`, and can use them.
    """

    def __init__(self, model: nn.Module, max_input: int, max_total: int, seed: int, batch: int) -> None:
        config: Any = model.config
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        vocab_size = config.get_text_config(decoder=True).vocab_size
        check_at_least_one("vocab_size", vocab_size)
        self.input_ids = torch.randint(vocab_size, (batch, max_input), device=device, generator=generator)
        self.position_ids = torch.arange(max_total, device=device)[None]  # [1, max_total]
        self.takes_positions = takes(model, "position_ids") and config.model_type not in OWN_POSITIONS
        self.takes_logits_to_keep = takes(model, "logits_to_keep")
        self._adds_past = adds_past(model)
        self._config = config

    def of_pass(self, point: SweepPoint, last_token_only: bool) -> dict[str, Any]:
        """Arguments of one pass. last_token_only: `lm_head` sees only the last token, if the model's code allows it."""
        arguments: dict[str, Any] = {"input_ids": self.input_ids[:, : point.input_len], **self._of_type(point)}
        if self.takes_positions:
            first = 0 if self._adds_past else point.kv_len
            arguments["position_ids"] = self.position_ids[:, first : first + point.input_len]
        if last_token_only and self.takes_logits_to_keep:
            arguments["logits_to_keep"] = 1
        return arguments

    def prompt_ids(self, tokens: int) -> torch.Tensor:
        """Token ids of a prompt of any length, [batch, tokens]: the first token of each sequence, repeated."""
        return self.input_ids[:, :1].expand(-1, tokens)

    def _of_type(self, point: SweepPoint) -> dict[str, Any]:
        """Arguments that models of some types need in addition to `input_ids`, or other `input_ids`."""
        if self._config.model_type in WHOLE_SEQUENCE:
            return {"input_ids": self.prompt_ids(point.total_len)}
        if self._config.model_type in PARALLEL_CODES:
            return {"input_ids": self.input_ids[:, : point.input_len].repeat(self._config.num_codebooks, 1)}
        if self._config.model_type in NEEDS_MASK:
            return {"attention_mask": torch.ones_like(self.input_ids[:, : point.input_len])}
        return {}
